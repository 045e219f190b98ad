//! Who is connected: a bounded number of producers. When all places are taken, whoever was silent for
//! longest gives way, so that nobody holds the socket by doing nothing; only if all of them are busy is the
//! one who comes turned away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most producers at once.
pub(super) const CONNECTIONS_MAX: usize = 32;

/// The places of all producers.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    taken: HashMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    received_at: Instant,
    /// Lines without an answer.
    unanswered: usize,
    leave: CancellationToken,
}

/// A place. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    number: u64,
    leave: CancellationToken,
}

impl Seats {
    /// Takes a place; `None` when all are taken by producers that are busy.
    /// A producer that was silent for `idle` may have to give way.
    pub(super) fn take(&self, now: Instant, idle: Duration) -> Option<Seat> {
        let mut table = self.lock();
        if table.taken.len() >= CONNECTIONS_MAX {
            let idlest = table
                .taken
                .iter()
                .filter(|(_, taken)| taken.unanswered == 0)
                .filter(|(_, taken)| now.duration_since(taken.received_at) >= idle)
                .min_by_key(|(_, taken)| taken.received_at)
                .map(|(number, _)| *number)?;
            if let Some(taken) = table.taken.remove(&idlest) {
                taken.leave.cancel();
            }
        }
        table.next += 1;
        let number = table.next;
        let leave = CancellationToken::new();
        let taken = Taken {
            received_at: now,
            unanswered: 0,
            leave: leave.clone(),
        };
        table.taken.insert(number, taken);
        drop(table);
        Some(Seat {
            seats: self.clone(),
            number,
            leave,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Notes that so many lines were received.
    pub(super) fn received(&self, lines: usize, now: Instant) {
        self.change(|taken| {
            taken.received_at = now;
            taken.unanswered += lines;
        });
    }

    /// Notes that so many lines were answered; returns whether none waits any more.
    pub(super) fn answered(&self, lines: usize) -> bool {
        self.change(|taken| {
            taken.unanswered -= lines.min(taken.unanswered);
            taken.unanswered == 0
        })
        .unwrap_or(true)
    }

    /// Whether lines wait for their answers.
    pub(super) fn is_unanswered(&self) -> bool {
        self.change(|taken| taken.unanswered > 0).unwrap_or(false)
    }

    /// Waits until somebody else needs the place.
    pub(super) async fn given_away(&self) {
        self.leave.cancelled().await;
    }

    /// Changes the table's entry; does nothing when the place was given away.
    fn change<T>(&self, change: impl FnOnce(&mut Taken) -> T) -> Option<T> {
        self.seats.lock().taken.get_mut(&self.number).map(change)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(5);

    #[test]
    fn the_idlest_gives_way_and_the_busy_stay() {
        let (seats, begun) = (Seats::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let all: Vec<Seat> = (0..CONNECTIONS_MAX)
            .map(|_| seats.take(at(0), IDLE).unwrap())
            .collect();
        assert!(
            seats.take(at(4), IDLE).is_none(),
            "nobody was silent for long"
        );
        for seat in &all[..30] {
            seat.received(1, at(3));
        }
        all[30].received(1, at(1));
        assert!(all[30].answered(1) && !all[30].is_unanswered());
        // 31 never said anything, 30 was answered, the others wait for their answers.
        let next = seats.take(at(60), IDLE).unwrap();
        assert!(all[31].leave.is_cancelled() && !all[30].leave.is_cancelled());
        let after = seats.take(at(60), IDLE).unwrap();
        assert!(all[30].leave.is_cancelled());
        assert!(
            seats.take(at(60), IDLE).is_none(),
            "the others are busy or new"
        );
        // Who gave way frees nothing when it is gone.
        drop(all);
        let others: Vec<_> = (2..CONNECTIONS_MAX)
            .map(|_| seats.take(at(60), IDLE).unwrap())
            .collect();
        assert!(seats.take(at(60), IDLE).is_none());
        drop((next, after, others));
        assert!(seats.take(at(60), IDLE).is_some());
    }

    #[test]
    fn answers_are_counted() {
        let (seats, now) = (Seats::default(), Instant::now());
        let seat = seats.take(now, IDLE).unwrap();
        seat.received(3, now);
        assert!(!seat.answered(2) && seat.is_unanswered());
        assert!(seat.answered(1) && !seat.is_unanswered());
        assert!(seat.answered(7));
    }
}
