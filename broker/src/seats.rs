//! Who is connected under which client id, so that the same client comes in only once: the one
//! that came before is told to go, and is gone, will and all, before the next begins.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use schema::DeviceId;
use tokio_util::sync::CancellationToken;

use crate::error::Close;

/// A client: its identity's name, and its client id under that.
pub(crate) type Client = (DeviceId, String);

/// Ends a connection from outside, once and for one reason.
#[derive(Debug, Default)]
pub(crate) struct Kick {
    why: OnceLock<Close>,
    asked: CancellationToken,
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
    /// Asks the connection to end; the first reason counts.
    pub(crate) fn kick(&self, why: Close) {
        let _ = self.why.set(why);
        self.asked.cancel();
    }

    /// Waits until the connection is asked to end.
    pub(crate) async fn asked(&self) -> Close {
        self.asked.cancelled().await;
        self.why.get().copied().unwrap_or(Close::Lost)
    }
}

impl Seats {
    /// Takes a client's place, once whoever has it has gone.
    pub(crate) async fn take(self: &Arc<Self>, client: Client, kick: Arc<Kick>) -> Seat {
        loop {
            let before = {
                let mut taken = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, Arc<Kick>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.client);
        self.kick.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> Client {
        ("d1".parse().unwrap(), id.to_owned())
    }

    #[tokio::test]
    async fn the_next_begins_after_the_one_before_has_gone() {
        let seats = Arc::new(Seats::default());
        let first = Arc::new(Kick::default());
        let seat = seats.take(client("a"), Arc::clone(&first)).await;
        let other = seats.take(client("b"), Arc::default()).await;
        let next = {
            let seats = Arc::clone(&seats);
            tokio::spawn(async move { seats.take(client("a"), Arc::default()).await })
        };
        assert_eq!(first.asked().await, Close::TakenOver);
        assert!(!next.is_finished());
        drop(seat);
        let next = next.await.unwrap();
        drop((next, other));
        assert!(seats.lock().is_empty());
    }

    #[tokio::test]
    async fn the_first_reason_counts() {
        let kick = Kick::default();
        kick.kick(Close::Slow);
        kick.kick(Close::TakenOver);
        assert_eq!(kick.asked().await, Close::Slow);
    }
}
