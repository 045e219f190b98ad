//! The way in for those who ask and wait: readings over HTTP, and dead letters that are tried again.
//! They are admitted like what comes over MQTT, share its commits, and hear what became of them after
//! the commit. Promise P5: what is in hand is bounded, and whoever finds no room is asked to come back.
//!
//! ```text
//! request ─ hold(memory) ─► body read ─► deliver ─► queue ─► pipeline, once it has room ─► commit ─► answer
//!             └─ no room: Busy               └─ not answered within PATIENCE: Busy
//! ```
//!
//! An answer proves the commit. No answer proves nothing: the same again is the same, by epoch and
//! sequence.

use std::sync::Arc;
use std::time::Duration;

use daemon::registered;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use schema::{Batch, DeviceId};
use store::{Delivery, Origin, Settled, StoreClock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::admit::{AdmitError, Bounds, admit_batch};

/// Memory of all requests in hand, from before a body is read until it is answered.
const HAND_KIB: usize = 32 * 1024;

/// What the smallest request takes of it: with that, at most 2,048 are in hand.
const REQUEST_KIB_MIN: usize = 16;

/// Deliveries between the requests and the pipeline. Others wait in their requests.
const QUEUE: usize = 64;

/// How long a request waits for its commit: less than a request may take, so that it hears why.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A delivery, and who waits for its commit.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) delivery: Delivery,
    /// What it counts for in the pipeline.
    pub(crate) bytes: usize,
    pub(crate) answer: oneshot::Sender<Settled>,
}

/// Room for one request.
#[derive(Debug)]
pub(crate) struct Hold {
    _permit: OwnedSemaphorePermit,
}

/// The senders' end.
#[derive(Debug, Clone)]
pub(crate) struct Direct {
    queue: mpsc::Sender<Request>,
    hand: Arc<Semaphore>,
    patience: Duration,
    bounds: Bounds,
    clock: StoreClock,
    committed: Counter,
    busy: Counter,
}

/// Why a delivery has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DirectError {
    /// It cannot be admitted.
    #[error(transparent)]
    Refused(#[from] AdmitError),
    /// There is no room, or the database takes its time.
    #[error("the bridge has too much in hand, or its database is slow; send it again")]
    Busy,
    /// Nothing can be judged.
    #[error("the database's time is not known now; send it again")]
    NoTime,
    /// The bridge stops.
    #[error("the bridge stops; send it again")]
    Stopping,
}

/// Both ends of an empty queue; its metrics are registered.
pub(crate) fn direct(
    bounds: Bounds,
    clock: StoreClock,
    registry: &mut Registry,
) -> (Direct, mpsc::Receiver<Request>) {
    let (queue, requests) = mpsc::channel(QUEUE);
    let direct = Direct {
        queue,
        hand: Arc::new(Semaphore::new(HAND_KIB)),
        patience: PATIENCE,
        bounds,
        clock,
        committed: registered(
            registry,
            "tideline_bridge_direct_deliveries",
            "Batches committed for requests that waited for it",
        ),
        busy: registered(
            registry,
            "tideline_bridge_direct_busy",
            "Requests with readings turned away, because there was no room or no commit in time",
        ),
    };
    (direct, requests)
}

impl Direct {
    /// Room for a request that needs so many bytes of memory.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Hold, DirectError> {
        if !self.clock.is_known() {
            return Err(DirectError::NoTime);
        }
        let kib = bytes.div_ceil(1024).max(REQUEST_KIB_MIN);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        match Arc::clone(&self.hand).try_acquire_many_owned(kib) {
            Ok(permit) => Ok(Hold { _permit: permit }),
            Err(_) => {
                self.busy.inc();
                Err(DirectError::Busy)
            }
        }
    }

    /// The time here, microseconds since the Unix epoch.
    pub(crate) fn now_micros(&self) -> i64 {
        self.clock.now().micros()
    }

    /// What admission says of a batch, now.
    pub(crate) fn admit(
        &self,
        device: DeviceId,
        batch: Batch,
        origin: Origin,
    ) -> Result<Delivery, AdmitError> {
        let delivery = admit_batch(device, batch, self.clock.now(), &self.bounds)?;
        Ok(Delivery { origin, ..delivery })
    }

    /// Has a delivery written, beside others; returns after the commit.
    pub(crate) async fn deliver(
        &self,
        delivery: Delivery,
        bytes: usize,
        _hold: Hold,
    ) -> Result<Settled, DirectError> {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            delivery,
            bytes,
            answer,
        };
        let exchange = async {
            let queued = self.queue.send(request).await;
            queued.map_err(|_| DirectError::Stopping)?;
            // What the database refuses is let go without an answer.
            answered.await.map_err(|_| match self.queue.is_closed() {
                true => DirectError::Stopping,
                false => DirectError::Busy,
            })
        };
        let settled = timeout(self.patience, exchange)
            .await
            .unwrap_or(Err(DirectError::Busy));
        match &settled {
            Ok(_) => self.committed.inc(),
            Err(_) => self.busy.inc(),
        };
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Epoch;
    use schema::time::ReceivedAt;

    fn ends() -> (Direct, mpsc::Receiver<Request>) {
        let clock = StoreClock::of_this_machine();
        let (mut direct, requests) = direct(Bounds::default(), clock, &mut Registry::default());
        direct.patience = Duration::from_millis(20);
        (direct, requests)
    }

    fn delivery() -> Delivery {
        Delivery {
            device: "d".parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: Vec::new(),
                rows: Vec::new(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::from_micros(0),
            origin: Origin::Device,
        }
    }

    #[test]
    fn requests_in_hand_are_bounded_by_memory_and_by_number() {
        let (direct, _requests) = ends();
        let most = HAND_KIB * 1024;
        assert_eq!(direct.hold(most + 1).unwrap_err(), DirectError::Busy);
        let all = direct.hold(most).unwrap();
        assert_eq!(direct.hold(0).unwrap_err(), DirectError::Busy);
        drop(all);
        let holds: Vec<Hold> = (0..HAND_KIB / REQUEST_KIB_MIN)
            .map(|_| direct.hold(1).unwrap())
            .collect();
        assert_eq!(holds.len(), 2_048);
        assert_eq!(direct.hold(1).unwrap_err(), DirectError::Busy);
        drop(holds);
        assert!(direct.hold(most).is_ok());
    }

    #[test]
    fn without_the_databases_time_nothing_is_taken() {
        let (mut direct, _requests) = ends();
        direct.clock = StoreClock::of_a_database();
        assert_eq!(direct.hold(1).unwrap_err(), DirectError::NoTime);
        direct
            .clock
            .sampled(direct.clock.begin_sample(), 1_800_000_000_000_000);
        assert!(direct.hold(1).is_ok());
    }

    #[tokio::test]
    async fn a_commit_answers_and_room_is_given_back() {
        let (direct, mut requests) = ends();
        let hold = direct.hold(HAND_KIB * 1024).unwrap();
        let commits = tokio::spawn(async move {
            let request = requests.recv().await.unwrap();
            request.answer.send(Settled::default()).unwrap();
        });
        let settled = direct.deliver(delivery(), 1, hold).await;
        assert_eq!(settled, Ok(Settled::default()));
        commits.await.unwrap();
        assert!(direct.hold(HAND_KIB * 1024).is_ok());
    }

    #[tokio::test]
    async fn who_finds_no_room_in_time_is_told_to_come_again() {
        let (direct, mut requests) = ends();
        // Nobody takes anything: the queue fills, and more wait in front of it.
        let waiting: Vec<_> = (0..=QUEUE)
            .map(|_| {
                let direct = direct.clone();
                let hold = direct.hold(1).unwrap();
                tokio::spawn(async move { direct.deliver(delivery(), 1, hold).await })
            })
            .collect();
        for one in waiting {
            assert_eq!(one.await.unwrap(), Err(DirectError::Busy));
        }
        // What is left in the queue is for nobody, and shows it.
        let mut left = 0;
        while let Ok(request) = requests.try_recv() {
            assert!(request.answer.is_closed());
            left += 1;
        }
        assert_eq!(left, QUEUE);
        requests.close();
        let hold = direct.hold(1).unwrap();
        let refused = direct.deliver(delivery(), 1, hold).await;
        assert_eq!(refused, Err(DirectError::Stopping));
    }
}
