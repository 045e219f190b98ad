//! When to write what, and what a commit releases. Pure: deliveries and the time come in, writes
//! go out.
//!
//! ```text
//! offer ─► waiting ──linger, or enough rows──► in flight (one write each) ──committed──► released
//!             ▲                                    └──the shell repeats a failed write──┘
//!             └─ a device with a write in flight waits for its end
//! ```
//!
//! Invariants: what is offered is released exactly once, and only by its commit; one device is in
//! at most one write at a time; rows and bytes held, waiting and in flight together, pass their
//! bounds by less than one delivery (promise P5): the shell takes nothing while there is no room.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use schema::DeviceId;

use crate::store::Delivery;

/// The bounds of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineConfig {
    /// Rows that make a write due at once. The database's cost per row is flat from about here.
    pub write_rows: usize,
    /// How long the first delivery of a write waits for others. Long enough that a thousand
    /// devices share a commit, short beside a device's own linger.
    pub linger: Duration,
    /// Writes in flight, each on a connection of its own.
    pub writes_max: usize,
    /// Rows held at most.
    pub rows_max: usize,
    /// Bytes of payload held at most. Decoded rows take some 20 times as much memory.
    pub bytes_max: usize,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            write_rows: 5_000,
            linger: Duration::from_millis(5),
            writes_max: 2,
            rows_max: 200_000,
            bytes_max: 8 * 1024 * 1024,
        }
    }
}

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(u64);

/// Deliveries to be written in one commit. `Token` is whatever the shell must do after it.
#[derive(Debug)]
pub struct Write<Token> {
    /// Its name.
    pub id: WriteId,
    /// What to write.
    pub deliveries: Vec<Delivery>,
    /// What its commit releases, one for each delivery.
    pub tokens: Vec<Token>,
}

/// Deliveries on their way into the database.
#[derive(Debug)]
pub struct Pipeline<Token> {
    config: PipelineConfig,
    waiting: VecDeque<Item<Token>>,
    waiting_rows: usize,
    in_flight: Vec<InFlight>,
    held: Held,
    writes: u64,
}

#[derive(Debug)]
struct Item<Token> {
    delivery: Delivery,
    token: Token,
    bytes: usize,
    since: Duration,
}

#[derive(Debug)]
struct InFlight {
    id: WriteId,
    devices: HashSet<DeviceId>,
    held: Held,
}

/// What is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Rows, admitted and rejected.
    pub rows: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

impl<Token> Pipeline<Token> {
    /// An empty pipeline.
    #[must_use]
    pub fn new(config: PipelineConfig) -> Self {
        Self {
            config,
            waiting: VecDeque::new(),
            waiting_rows: 0,
            in_flight: Vec::new(),
            held: Held::default(),
            writes: 0,
        }
    }

    /// What is held, waiting and in flight together.
    #[must_use]
    pub const fn held(&self) -> Held {
        self.held
    }

    /// Whether nothing waits or is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Whether another delivery may be offered.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.held.rows < self.config.rows_max && self.held.bytes < self.config.bytes_max
    }

    /// Takes a delivery, made of `bytes` of payload. There must be room.
    pub fn offer(&mut self, delivery: Delivery, bytes: usize, token: Token, now: Duration) {
        debug_assert!(self.has_room());
        let rows = rows(&delivery);
        self.held.rows += rows;
        self.held.bytes += bytes;
        self.waiting_rows += rows;
        self.waiting.push_back(Item {
            delivery,
            token,
            bytes,
            since: now,
        });
    }

    /// The next write, if one is due: enough rows wait, the oldest has waited long enough, or
    /// `hurry`.
    pub fn next_write(&mut self, now: Duration, hurry: bool) -> Option<Write<Token>> {
        if self.in_flight.len() >= self.config.writes_max {
            return None;
        }
        let busy = |device: &DeviceId| {
            self.in_flight
                .iter()
                .any(|write| write.devices.contains(device))
        };
        let oldest = self
            .waiting
            .iter()
            .find(|item| !busy(&item.delivery.device))?;
        let due = hurry
            || self.waiting_rows >= self.config.write_rows
            || oldest.since + self.config.linger <= now;
        if !due {
            return None;
        }
        let mut taken = Vec::new();
        let mut rows_taken = 0;
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for item in self.waiting.drain(..) {
            let in_flight = &self.in_flight;
            let busy = in_flight
                .iter()
                .any(|write| write.devices.contains(&item.delivery.device));
            if busy || rows_taken >= self.config.write_rows {
                left.push_back(item);
            } else {
                rows_taken += rows(&item.delivery);
                taken.push(item);
            }
        }
        self.waiting = left;
        Some(self.write(taken))
    }

    /// When to ask for the next write again, if nothing else happens before.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Duration> {
        if self.in_flight.len() >= self.config.writes_max {
            return None;
        }
        self.waiting
            .iter()
            .find(|item| {
                !self
                    .in_flight
                    .iter()
                    .any(|write| write.devices.contains(&item.delivery.device))
            })
            .map(|item| item.since + self.config.linger)
    }

    /// A write is committed: its room is free again.
    ///
    /// # Panics
    /// When there is no such write: each is completed once.
    pub fn complete(&mut self, id: WriteId) {
        let at = self
            .in_flight
            .iter()
            .position(|write| write.id == id)
            .expect("a write is completed once");
        let write = self.in_flight.swap_remove(at);
        self.held.rows -= write.held.rows;
        self.held.bytes -= write.held.bytes;
    }

    fn write(&mut self, items: Vec<Item<Token>>) -> Write<Token> {
        self.writes += 1;
        let id = WriteId(self.writes);
        let held = Held {
            rows: items.iter().map(|item| rows(&item.delivery)).sum(),
            bytes: items.iter().map(|item| item.bytes).sum(),
        };
        self.waiting_rows -= held.rows;
        self.in_flight.push(InFlight {
            id,
            devices: items
                .iter()
                .map(|item| item.delivery.device.clone())
                .collect(),
            held,
        });
        let (deliveries, tokens) = items
            .into_iter()
            .map(|item| (item.delivery, item.token))
            .unzip();
        Write {
            id,
            deliveries,
            tokens,
        }
    }
}

/// Rows of a delivery; one that was rejected whole still takes room.
fn rows(delivery: &Delivery) -> usize {
    delivery.batch.rows.len() + delivery.rejected.len()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::store::Origin;
    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, Value};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn delivery(device: u8, rows: usize) -> Delivery {
        Delivery {
            device: format!("d{device}").parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: vec!["s".parse().unwrap()],
                rows: (0..rows)
                    .map(|n| Row {
                        sensor: 0,
                        observed_at: ObservedAt::from_millis(n as i64),
                        hlc: Hlc::default(),
                        seq: n as u64 + 1,
                        quality: Quality::Good,
                        value: Value::Bool(true),
                    })
                    .collect(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::from_micros(0),
            origin: Origin::Device,
        }
    }

    fn config() -> PipelineConfig {
        PipelineConfig {
            write_rows: 10,
            linger: MS(5),
            writes_max: 2,
            rows_max: 40,
            bytes_max: 1_000,
        }
    }

    #[test]
    fn a_write_is_due_by_rows_or_by_linger() {
        let mut pipeline = Pipeline::new(config());
        pipeline.offer(delivery(1, 4), 40, 1, MS(100));
        assert!(pipeline.next_write(MS(104), false).is_none());
        assert_eq!(pipeline.next_wakeup(), Some(MS(105)));
        pipeline.offer(delivery(2, 6), 60, 2, MS(104));
        let write = pipeline.next_write(MS(104), false).unwrap();
        assert_eq!(write.tokens, [1, 2]);
        pipeline.offer(delivery(3, 1), 10, 3, MS(104));
        assert!(pipeline.next_write(MS(108), false).is_none());
        assert!(pipeline.next_write(MS(109), false).is_some());
    }

    #[test]
    fn a_device_is_in_one_write_at_a_time() {
        let mut pipeline = Pipeline::new(config());
        pipeline.offer(delivery(1, 1), 10, 1, MS(0));
        let first = pipeline.next_write(MS(9), false).unwrap();
        pipeline.offer(delivery(1, 1), 10, 2, MS(9));
        assert!(pipeline.next_write(MS(99), true).is_none());
        assert_eq!(pipeline.next_wakeup(), None);
        pipeline.complete(first.id);
        assert_eq!(pipeline.next_write(MS(99), true).unwrap().tokens, [2]);
    }

    #[test]
    fn there_is_room_below_the_bounds_of_rows_and_of_bytes() {
        let mut pipeline = Pipeline::new(config());
        pipeline.offer(delivery(1, 39), 10, (), MS(0));
        assert!(pipeline.has_room());
        pipeline.offer(delivery(2, 1), 10, (), MS(0));
        assert!(!pipeline.has_room());
        let write = pipeline.next_write(MS(9), true).unwrap();
        assert!(!pipeline.has_room(), "what is in flight is still held");
        pipeline.complete(write.id);
        assert!(pipeline.has_room());
        pipeline.offer(delivery(3, 1), 989, (), MS(9));
        assert!(pipeline.has_room());
        pipeline.offer(delivery(4, 0), 1, (), MS(9));
        assert!(!pipeline.has_room());
    }

    proptest! {
        #[test]
        fn every_offer_is_released_once_and_devices_keep_their_order(
            steps in prop::collection::vec((0..4u8, 0..5u8, 0..9usize), 1..200)
        ) {
            let mut pipeline = Pipeline::new(config());
            let (mut now, mut token) = (MS(0), 0u64);
            let mut taken: Vec<(u8, u64)> = Vec::new();
            let mut writes: Vec<Write<(u8, u64)>> = Vec::new();
            let mut released: Vec<(u8, u64)> = Vec::new();
            let mut finish = |pipeline: &mut Pipeline<_>, write: Write<(u8, u64)>| {
                pipeline.complete(write.id);
                released.extend(write.tokens);
            };
            for (what, device, rows) in steps {
                now += MS(1);
                match what {
                    0 | 1 => {
                        token += 1;
                        if pipeline.has_room() {
                            pipeline.offer(delivery(device, rows), 10 * rows, (device, token), now);
                            taken.push((device, token));
                        }
                    }
                    2 => writes.extend(pipeline.next_write(now, device == 0)),
                    _ if writes.is_empty() => {}
                    _ => {
                        let write = writes.remove(rows % writes.len());
                        finish(&mut pipeline, write);
                    }
                }
                prop_assert!(writes.len() <= 2);
                let mut busy = HashSet::new();
                for write in &writes {
                    let devices: HashSet<u8> = write.tokens.iter().map(|(device, _)| *device).collect();
                    for device in devices {
                        prop_assert!(busy.insert(device), "a device is in two writes");
                    }
                }
                prop_assert!(pipeline.held().rows < 40 + 9 && pipeline.held().bytes < 1_000 + 90);
            }
            for write in writes {
                finish(&mut pipeline, write);
            }
            while let Some(write) = pipeline.next_write(now, true) {
                finish(&mut pipeline, write);
            }
            prop_assert!(pipeline.is_empty());
            prop_assert_eq!(pipeline.held(), Held::default());
            let by_device = |all: &[(u8, u64)]| {
                let mut map: HashMap<u8, Vec<u64>> = HashMap::new();
                for (device, token) in all {
                    map.entry(*device).or_default().push(*token);
                }
                map
            };
            prop_assert_eq!(by_device(&released), by_device(&taken));
        }
    }
}
