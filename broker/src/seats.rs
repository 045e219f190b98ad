//! Who is connected under which client id, so that the same client comes in only once: the one
//! that came before is asked to go, and is gone, will and all, before the next begins. Also the
//! way to every connection at once, when certificates are revoked and when the broker stops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use certs::Serial;
use daemon::lock;
use schema::CommonName;
use tokio_util::sync::CancellationToken;

use crate::error::Close;

/// A client: its identity's name, and its client id under that.
pub(crate) type Client = (CommonName, String);

/// Ends a connection from outside, once and for one reason.
#[derive(Debug)]
pub(crate) struct Kick {
    serial: Serial,
    why: OnceLock<Close>,
    kicked: CancellationToken,
    /// Cancelled when the connection has gone.
    gone: CancellationToken,
}

/// All clients that are connected.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    taken: Mutex<HashMap<Client, Arc<Kick>>>,
}

/// A client's place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    client: Client,
    kick: Arc<Kick>,
}

impl Kick {
    /// For a connection whose certificate has this serial number.
    pub(crate) fn new(serial: Serial) -> Self {
        Self {
            serial,
            why: OnceLock::new(),
            kicked: CancellationToken::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Asks the connection to end; the first reason counts.
    pub(crate) fn kick(&self, why: Close) {
        let _ = self.why.set(why);
        self.kicked.cancel();
    }

    /// Waits until the connection is asked to end.
    pub(crate) async fn kicked(&self) -> Close {
        self.kicked.cancelled().await;
        self.why.get().copied().unwrap_or(Close::Lost)
    }
}

impl Seats {
    /// Takes a client's place, once whoever has it has gone.
    pub(crate) async fn take(self: &Arc<Self>, client: Client, kick: Arc<Kick>) -> Seat {
        loop {
            let before = {
                let mut taken = lock(&self.taken);
                match taken.get(&client) {
                    None => {
                        taken.insert(client.clone(), Arc::clone(&kick));
                        return Seat {
                            seats: Arc::clone(self),
                            client,
                            kick,
                        };
                    }
                    Some(before) => Arc::clone(before),
                }
            };
            before.kick(Close::TakenOver);
            before.gone.cancelled().await;
        }
    }

    /// Asks every connection to end whose certificate is among these.
    pub(crate) fn kick_revoked(&self, is_revoked: impl Fn(&Serial) -> bool) {
        for kick in lock(&self.taken)
            .values()
            .filter(|kick| is_revoked(&kick.serial))
        {
            kick.kick(Close::Revoked);
        }
    }

    /// Asks every connection to end.
    pub(crate) fn kick_all(&self, why: Close) {
        for kick in lock(&self.taken).values() {
            kick.kick(why);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.seats.taken).remove(&self.client);
        self.kick.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kick() -> Arc<Kick> {
        Arc::new(Kick::new(Serial::random()))
    }

    fn client(id: &str) -> Client {
        ("d1".parse().unwrap(), id.to_owned())
    }

    #[tokio::test]
    async fn the_next_begins_after_the_one_before_has_gone() {
        let seats = Arc::new(Seats::default());
        let first = kick();
        let seat = seats.take(client("a"), Arc::clone(&first)).await;
        let other = seats.take(client("b"), kick()).await;
        let next = {
            let seats = Arc::clone(&seats);
            tokio::spawn(async move { seats.take(client("a"), kick()).await })
        };
        assert_eq!(first.kicked().await, Close::TakenOver);
        assert!(!next.is_finished());
        drop(seat);
        let next = next.await.unwrap();
        drop((next, other));
        assert!(lock(&seats.taken).is_empty());
    }

    #[tokio::test]
    async fn the_first_reason_counts() {
        let kick = kick();
        kick.kick(Close::Slow);
        kick.kick(Close::TakenOver);
        assert_eq!(kick.kicked().await, Close::Slow);
    }

    #[tokio::test]
    async fn the_revoked_are_asked_to_go_and_no_others() {
        let seats = Arc::new(Seats::default());
        let (stolen, good) = (kick(), kick());
        let _stolen = seats.take(client("a"), Arc::clone(&stolen)).await;
        let _good = seats.take(client("b"), Arc::clone(&good)).await;
        seats.kick_revoked(|serial| *serial == stolen.serial);
        assert_eq!(stolen.kicked().await, Close::Revoked);
        assert!(!good.kicked.is_cancelled());
        seats.kick_all(Close::Stopping);
        assert_eq!(good.kicked().await, Close::Stopping);
    }
}
