//! When to write what, and what a commit releases. Pure: deliveries and the time come in, writes
//! go out.
//!
//! ```text
//! offer ─► waiting ──linger, or enough rows──► in flight (one write each) ──committed──► released
//!             ▲                                    │ └──the shell repeats a write that found no database──┘
//!             └─ a device with a write in flight   └──refused──► apart ──► in flight, one at a time
//!                waits for its end
//! ```
//!
//! What the database refuses is nobody's fault until it is known whose: [`apart`] tries it by itself, [`evidence`] says
//! when a reading may be set aside. While nothing at all is committed, attempts become rare ([`doubt`]): the database is at
//! fault.
//!
//! Reading order: [`item`] (one delivery, and the room it takes) → here → [`in_flight`] → [`doubt`] → [`apart`] →
//! [`evidence`].
//!
//! Invariants: what is offered is released exactly once: by its commit, or unacknowledged, when it is let go to be sent
//! again; one device is in at most one write at a time; rows and bytes held, waiting, apart and in flight together, pass
//! their bounds by less than one delivery (promise P5): the shell takes nothing while there is no room.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use schema::DeviceId;

use store::Delivery;

mod apart;
mod doubt;
mod evidence;
mod in_flight;
mod item;
#[cfg(test)]
mod model;

pub use apart::Refused;
use apart::{Apart, Group};
use doubt::Doubt;
use in_flight::InFlight;
pub use item::Held;
use item::{Item, rows};

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
    /// What its commit releases, one for each delivery; none where nobody waits any more.
    pub tokens: Vec<Option<Token>>,
}

/// Deliveries on their way into the database.
#[derive(Debug)]
pub struct Pipeline<Token> {
    config: PipelineConfig,
    waiting: VecDeque<Item<Token>>,
    waiting_rows: usize,
    in_flight: InFlight<Token>,
    held: Held,
    writes: u64,
    apart: Apart<Token>,
    /// The last write was of what is apart.
    was_apart: bool,
    doubt: Option<Doubt>,
    /// When it was last asked for a write.
    now: Duration,
}

impl<Token> Pipeline<Token> {
    /// An empty pipeline.
    #[must_use]
    pub fn new(config: PipelineConfig) -> Self {
        Self {
            config,
            waiting: VecDeque::new(),
            waiting_rows: 0,
            in_flight: InFlight::new(),
            held: Held::default(),
            writes: 0,
            apart: Apart::new(),
            was_apart: false,
            doubt: None,
            now: Duration::ZERO,
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
        self.waiting.is_empty() && self.in_flight.is_empty() && self.apart.is_empty()
    }

    /// Whether all that waits is refused by the database: a stopping bridge could write none of it.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty() && self.apart.is_drained()
    }

    /// Whether another delivery may be offered.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.held.rows < self.config.rows_max && self.held.bytes < self.config.bytes_max
    }

    /// Takes a delivery, made of `bytes` of payload. There must be room.
    pub fn offer(&mut self, delivery: Delivery, bytes: usize, token: Token, now: Duration) {
        debug_assert!(self.has_room());
        let trying = self.in_flight.trying().map(|(device, _)| device);
        self.apart.forgive(trying, now);
        let item = Item {
            delivery,
            token: Some(token),
            bytes,
            since: now,
        };
        self.held.add(item.held());
        if self.apart.is_suspect(&item.delivery.device) {
            let gone = self.apart.offer(item, &self.config, now);
            self.held.remove(gone);
        } else {
            self.wait(item);
        }
    }

    /// Marks the readings of a delivery as rejected that were set aside lately. A request had no answer then, and hands them
    /// in again; a device had its acknowledgement.
    pub fn recall(&mut self, delivery: &mut Delivery, now: Duration) {
        self.apart.recall(delivery, now);
    }

    fn wait(&mut self, item: Item<Token>) {
        self.waiting_rows += rows(&item.delivery);
        self.waiting.push_back(item);
    }

    /// The next write, if one is due: enough rows wait, the oldest has waited long enough, or
    /// `hurry`.
    pub fn next_write(&mut self, now: Duration, hurry: bool) -> Option<Write<Token>> {
        self.now = now;
        if !self.may_write() || self.doubt.as_ref().is_some_and(|doubt| now < doubt.until) {
            return None;
        }
        // In turns, so that neither waits for the other.
        let write = match self.was_apart {
            true => self
                .next_waiting(now, hurry)
                .or_else(|| self.next_apart(now)),
            false => self
                .next_apart(now)
                .or_else(|| self.next_waiting(now, hurry)),
        };
        if let Some(write) = &write {
            self.was_apart = self.in_flight.is_apart(write.id);
        }
        write
    }

    /// Whether a connection is free. A database that refuses everything is asked once at a time.
    fn may_write(&self) -> bool {
        let most = match &self.doubt {
            Some(doubt) if doubt.is_deep() => 1,
            _ => self.config.writes_max,
        };
        self.in_flight.len() < most
    }

    fn next_waiting(&mut self, now: Duration, hurry: bool) -> Option<Write<Token>> {
        let oldest = self
            .waiting
            .iter()
            .find(|item| !self.in_flight.is_busy(&item.delivery.device))?;
        let due = hurry
            || self.waiting_rows >= self.config.write_rows
            || oldest.since + self.config.linger <= now;
        if !due {
            return None;
        }
        let chosen = self.chosen();
        let mut taken = Vec::new();
        let mut rows_taken = 0;
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for item in self.waiting.drain(..) {
            let is_due = chosen.contains(&item.delivery.device);
            if !is_due || rows_taken >= self.config.write_rows {
                left.push_back(item);
            } else {
                rows_taken += rows(&item.delivery);
                taken.push(item);
            }
        }
        self.waiting = left;
        self.waiting_rows -= rows_taken;
        Some(self.write(taken, None))
    }

    /// The devices of the next write, those that wait longest first: no more than fill it with all that waits of each. One
    /// delivery of every device would leave nobody for a second write beside it.
    fn chosen(&self) -> HashSet<DeviceId> {
        let mut waiting: HashMap<&DeviceId, usize> = HashMap::new();
        let mut order = Vec::new();
        for item in &self.waiting {
            let device = &item.delivery.device;
            if self.in_flight.is_busy(device) {
                continue;
            }
            let rows_of = waiting.entry(device).or_insert_with(|| {
                order.push(device);
                0
            });
            *rows_of += rows(&item.delivery);
        }
        let mut room = self.config.write_rows;
        let fits = |device: &&DeviceId| {
            let is_room = room > 0;
            room = room.saturating_sub(waiting[device]);
            is_room
        };
        order.into_iter().take_while(fits).cloned().collect()
    }

    fn next_apart(&mut self, now: Duration) -> Option<Write<Token>> {
        if self.in_flight.is_any_apart() {
            return None;
        }
        let mut group = self
            .apart
            .next(now, |device| self.in_flight.is_busy(device))?;
        let items = std::mem::take(&mut group.items);
        Some(self.write(items, Some(group)))
    }

    fn is_any_apart(&self) -> bool {
        !self.apart.is_empty() || self.in_flight.is_any_apart()
    }

    /// Whether there may be something to show of what is refused, now or after a while.
    #[must_use]
    pub fn is_any_refused(&self) -> bool {
        self.is_in_doubt() || self.is_any_apart()
    }

    /// When to ask for the next write again, if nothing else happens before.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Duration> {
        if !self.may_write() {
            return None;
        }
        let waiting = self
            .waiting
            .iter()
            .find(|item| !self.in_flight.is_busy(&item.delivery.device))
            .map(|item| item.since + self.config.linger);
        let apart = match self.in_flight.is_any_apart() {
            true => None,
            false => self
                .apart
                .next_wakeup(|device| self.in_flight.is_busy(device)),
        };
        let next = waiting.into_iter().chain(apart).min()?;
        Some(
            self.doubt
                .as_ref()
                .map_or(next, |doubt| next.max(doubt.until)),
        )
    }

    /// A write is committed: its room is free again. `stored` names the devices of which it has put rows into the table:
    /// only these say that the table takes any. What was known before, or is only rejected, is settled while the database
    /// refuses every row, and would else convict readings that are in order.
    ///
    /// # Panics
    /// When there is no such write: each ends once.
    pub fn complete(&mut self, id: WriteId, stored: &BTreeSet<DeviceId>) {
        let write = self.in_flight.end(id);
        self.held.remove(write.held);
        if stored.is_empty() {
            // Whatever was refused is known by now, as where another bridge has written it.
            if !self.is_any_apart() {
                self.doubt = None;
            }
            return;
        }
        self.doubt = None;
        for item in self.apart.committed(id, stored, self.now) {
            self.wait(item);
        }
    }

    /// The database has refused a write, for `reason`: it is tried apart.
    ///
    /// # Panics
    /// When there is no such write: each ends once.
    pub fn refused(&mut self, write: Write<Token>, reason: &str, now: Duration) {
        let Write {
            id,
            deliveries,
            tokens,
        } = write;
        let ended = self.in_flight.end(id);
        let items = deliveries.into_iter().zip(tokens).zip(ended.parts);
        let items = items.map(|((delivery, token), (bytes, since))| Item {
            delivery,
            token,
            bytes,
            since,
        });
        let mut group = ended.apart.unwrap_or_else(|| Group::empty(now));
        group.items = items.collect();
        group.rows = ended.held.rows;
        let judged_by = WriteId(self.writes);
        let (gone, is_news) = self
            .apart
            .refuse(group, judged_by, reason, &self.config, now);
        self.held.remove(gone);
        if is_news {
            let doubt = self.doubt.get_or_insert_with(|| Doubt::new(now));
            doubt.refused(reason, now);
        }
        let before: usize = self.waiting.iter().map(|item| rows(&item.delivery)).sum();
        let gone = self.apart.divert(&mut self.waiting, &self.config, now);
        let after: usize = self.waiting.iter().map(|item| rows(&item.delivery)).sum();
        self.waiting_rows -= before - after;
        self.held.remove(gone);
    }

    /// Tokens of deliveries that were let go since the last call: nothing of them is acknowledged to
    /// their devices, which send them again.
    pub fn take_let_go(&mut self) -> Vec<Token> {
        self.apart.take_let_go()
    }

    /// Whether the database refused a write, and has stored no row since.
    #[must_use]
    pub const fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// Why nothing is committed, when that has been so for `age` or was tried often.
    #[must_use]
    pub fn refused_by_all(&self, now: Duration, age: Duration) -> Option<&str> {
        let doubt = self.doubt.as_ref()?;
        (doubt.is_deep() || now >= doubt.since + age).then_some(doubt.reason.as_str())
    }

    /// Devices of which readings are refused, for at least `age`, while those of others are committed.
    #[must_use]
    pub fn refused_devices(&self, now: Duration, age: Duration) -> Vec<Refused> {
        self.apart.refused(self.in_flight.trying(), now, age)
    }

    fn write(&mut self, items: Vec<Item<Token>>, apart: Option<Group<Token>>) -> Write<Token> {
        self.writes += 1;
        let id = WriteId(self.writes);
        self.in_flight.begin(id, &items, apart);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn delivery(device: u8, rows: usize) -> Delivery {
        let seqs: Vec<u64> = (1..=rows as u64).collect();
        model::delivery(device, &seqs)
    }

    /// As if all of it were new.
    fn stored<Token>(write: &Write<Token>) -> BTreeSet<DeviceId> {
        let devices = write.deliveries.iter();
        devices.map(|delivery| delivery.device.clone()).collect()
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
    fn a_backlog_of_all_devices_is_shared_by_two_writes() {
        let mut pipeline = Pipeline::new(config());
        for token in 0..20 {
            pipeline.offer(delivery(token % 10, 1), 10, token, MS(0));
        }
        let mut write = || pipeline.next_write(MS(0), false).unwrap().tokens;
        let tokens = |numbers: [u8; 10]| numbers.map(Some).to_vec();
        assert_eq!(write(), tokens([0, 1, 2, 3, 4, 10, 11, 12, 13, 14]));
        assert_eq!(write(), tokens([5, 6, 7, 8, 9, 15, 16, 17, 18, 19]));
    }

    #[test]
    fn a_write_is_due_by_rows_or_by_linger() {
        let mut pipeline = Pipeline::new(config());
        pipeline.offer(delivery(1, 4), 40, 1, MS(100));
        assert!(pipeline.next_write(MS(104), false).is_none());
        assert_eq!(pipeline.next_wakeup(), Some(MS(105)));
        pipeline.offer(delivery(2, 6), 60, 2, MS(104));
        let write = pipeline.next_write(MS(104), false).unwrap();
        assert_eq!(write.tokens, [Some(1), Some(2)]);
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
        pipeline.complete(first.id, &stored(&first));
        assert_eq!(pipeline.next_write(MS(99), true).unwrap().tokens, [Some(2)]);
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
        pipeline.complete(write.id, &stored(&write));
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
                pipeline.complete(write.id, &stored(&write));
                released.extend(write.tokens.into_iter().flatten());
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
                    let devices: HashSet<u8> = write.tokens.iter().flatten().map(|(device, _)| *device).collect();
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
