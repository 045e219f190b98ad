//! What the database has refused, tried apart from all others until it is known whose fault that is. Pure.
//!
//! ```text
//! refused write ─► doubtful (halved by device) ─► one device: suspect (halved to single readings)
//!                    └─ committed: it was not these       ├─ committed: it was not these
//!                                                         └─ refused alone, while others are committed ─► set aside
//! ```
//!
//! Invariants:
//! - nothing here stands in the way of deliveries of other devices: one write of it is in flight at a time;
//! - suspects hold at most a quarter of the pipeline's room; beyond it their deliveries are let go, unacknowledged, and
//!   their devices send them again;
//! - a reading leaves only by its commit, by being let go, or by [`Evidence`].

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use schema::message::{RejectReason, Rejection};
use schema::{Batch, DeviceId, Epoch, SeqRange};

use super::evidence::Evidence;
use super::{Delivery, Held, Item, PipelineConfig, WriteId, rows};

/// Most groups; beyond it they are not halved any more.
const GROUPS_MAX: usize = 1_024;

/// Most groups of one device.
const DEVICE_GROUPS_MAX: usize = 64;

/// Suspects hold at most this part of the pipeline's room, and one device that part of it.
const SUSPECTS_SHARE: usize = 4;
const DEVICE_SHARE: usize = 16;

/// Tokens that suspects hold: few, because each holds a place in the broker's window for all devices.
const TOKENS_MAX: usize = 32;

/// How long a device is tried apart after its last refusal: what refused it may refuse its next reading.
const PROBATION: Duration = Duration::from_secs(10);

/// Pause before a reading is tried alone again: for the first rounds, and at most.
const ALONE_FIRST: Duration = Duration::from_secs(1);
const ALONE_MAX: Duration = Duration::from_secs(60);

/// How long readings that were set aside are remembered, and how many, for requests that hand them in again.
const ASIDE: Duration = Duration::from_secs(60);
const ASIDE_MAX: usize = 1_024;

/// Tries alone before the pause grows.
const ALONE_QUICK: u32 = 4;

/// Deliveries that were refused together, or were never tried with others.
#[derive(Debug)]
pub(super) struct Group<Token> {
    pub(super) items: Vec<Item<Token>>,
    pub(super) rows: usize,
    not_before: Duration,
    /// How often this very group was refused.
    tries: u32,
    evidence: Evidence,
    /// The last write that had begun when it was refused: only later ones say how the database is since then.
    judged_by: WriteId,
}

/// A device that is tried apart.
#[derive(Debug)]
struct Suspect {
    until: Duration,
    reason: String,
    /// Since when.
    since: Duration,
}

/// A device of which readings are refused while those of others are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The device.
    pub device: DeviceId,
    /// What the database said last.
    pub reason: String,
    /// Readings of it that are held.
    pub rows: usize,
}

/// A reading that was set aside.
#[derive(Debug)]
struct Aside {
    device: DeviceId,
    epoch: Epoch,
    seq: u64,
    until: Duration,
}

/// All that is tried apart.
#[derive(Debug)]
pub(super) struct Apart<Token> {
    /// A stack: what was halved last is tried first.
    doubtful: Vec<Group<Token>>,
    /// Each of one device.
    suspected: VecDeque<Group<Token>>,
    suspects: BTreeMap<DeviceId, Suspect>,
    /// Whose turn it is: doubtful ones, or suspects.
    turn: bool,
    /// Readings that were set aside lately: a request with one of them had no answer then.
    aside: VecDeque<Aside>,
    /// Tokens of deliveries that are let go: their devices get no acknowledgement, and send again.
    let_go: Vec<Token>,
}

impl<Token> Group<Token> {
    fn new(items: Vec<Item<Token>>, not_before: Duration) -> Self {
        Self {
            rows: items.iter().map(|item| rows(&item.delivery)).sum(),
            items,
            not_before,
            tries: 0,
            evidence: Evidence::default(),
            judged_by: WriteId(0),
        }
    }

    /// One to be filled.
    pub(super) fn empty(now: Duration) -> Self {
        Self::new(Vec::new(), now)
    }

    /// Whether it is one reading.
    fn is_single(&self) -> bool {
        matches!(&self.items[..], [item]
            if item.delivery.batch.rows.len() == 1 && item.delivery.rejected.is_empty())
    }

    /// Whether there is nothing to halve.
    fn is_whole(&self) -> bool {
        matches!(&self.items[..], [item] if rows(&item.delivery) <= 1 || item.delivery.batch.rows.is_empty())
    }

    fn device(&self) -> &DeviceId {
        // A group is never empty.
        &self.items[0].delivery.device
    }

    fn is_of_one_device(&self) -> bool {
        let device = self.device();
        self.items
            .iter()
            .all(|item| item.delivery.device == *device)
    }

    fn is_any(&self, busy: impl Fn(&DeviceId) -> bool) -> bool {
        self.items.iter().any(|item| busy(&item.delivery.device))
    }

    fn tokens(&self) -> usize {
        self.items
            .iter()
            .filter(|item| item.token.is_some())
            .count()
    }

    /// Two halves: of devices, of deliveries, or of the readings of one.
    fn halved(mut self, now: Duration) -> (Self, Self) {
        if let [item] = &mut self.items[..] {
            let second = item.split();
            let first = self.items;
            return (Self::new(first, now), Self::new(vec![second], now));
        }
        let mut at = self.items.len() / 2;
        if !self.is_of_one_device() {
            self.items
                .sort_by(|a, b| a.delivery.device.cmp(&b.delivery.device));
            let device = |at: usize| &self.items[at].delivery.device;
            // The border between two devices that is nearest to the middle.
            let borders = (1..self.items.len()).filter(|at| device(at - 1) != device(*at));
            at = borders
                .min_by_key(|border| border.abs_diff(at))
                .unwrap_or(at);
        }
        let second = self.items.split_off(at);
        (Self::new(self.items, now), Self::new(second, now))
    }
}

impl<Token> Item<Token> {
    /// Leaves the first half of its readings, and returns the rest. What was rejected before goes apart from readings.
    fn split(&mut self) -> Self {
        let whole = rows(&self.delivery);
        let batch = &self.delivery.batch;
        let (first, second, rejected) = match (batch.rows.len(), self.delivery.rejected.is_empty())
        {
            (count, true) => {
                let (first, second) = batch.rows.split_at(count / 2);
                (part(batch, first), part(batch, second), Vec::new())
            }
            (_, false) => (
                part(batch, &batch.rows),
                part(batch, &[]),
                std::mem::take(&mut self.delivery.rejected),
            ),
        };
        let mut delivery = self.delivery.clone();
        delivery.batch = second;
        delivery.rejected = rejected;
        self.delivery.batch = first;
        let bytes = self.bytes * rows(&self.delivery) / whole.max(1);
        let rest = Self {
            delivery,
            token: None,
            bytes: self.bytes - bytes,
            since: self.since,
        };
        self.bytes = bytes;
        rest
    }
}

/// Some rows of a batch, with the names that they need.
fn part(batch: &Batch, rows: &[schema::Row]) -> Batch {
    let mut places: BTreeMap<u16, u16> = BTreeMap::new();
    let mut sensors = Vec::new();
    let rows = rows.iter().map(|row| {
        let sensor = *places.entry(row.sensor).or_insert_with(|| {
            sensors.push(batch.sensor(row).clone());
            // Not more names than the batch had.
            u16::try_from(sensors.len() - 1).unwrap_or(u16::MAX)
        });
        schema::Row {
            sensor,
            ..row.clone()
        }
    });
    let rows = rows.collect();
    Batch {
        epoch: batch.epoch,
        sensors,
        rows,
    }
}

impl<Token> Apart<Token> {
    pub(super) const fn new() -> Self {
        Self {
            doubtful: Vec::new(),
            suspected: VecDeque::new(),
            suspects: BTreeMap::new(),
            turn: false,
            aside: VecDeque::new(),
            let_go: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.doubtful.is_empty() && self.suspected.is_empty()
    }

    /// Whether nothing waits that was not refused alone.
    pub(super) fn is_drained(&self) -> bool {
        self.doubtful.is_empty() && self.suspected.iter().all(|group| group.tries > 0)
    }

    /// Whether a device's deliveries are to be offered here.
    pub(super) fn is_suspect(&self, device: &DeviceId) -> bool {
        self.suspects.contains_key(device)
    }

    /// Devices whose refusals are some time ago, and of which nothing is left, are like others again. One that is `trying`
    /// is not.
    pub(super) fn forgive(&mut self, trying: Option<&DeviceId>, now: Duration) {
        if self.suspects.values().all(|suspect| now < suspect.until) {
            return;
        }
        let held: HashSet<DeviceId> = self
            .suspected
            .iter()
            .map(Group::device)
            .chain(trying)
            .cloned()
            .collect();
        self.suspects
            .retain(|device, suspect| now < suspect.until || held.contains(device));
    }

    /// Those of which something is held, or is `trying` with so many rows, and why.
    pub(super) fn refused(
        &self,
        trying: Option<(&DeviceId, usize)>,
        now: Duration,
        age: Duration,
    ) -> Vec<Refused> {
        let mut rows: BTreeMap<&DeviceId, usize> = trying.into_iter().collect();
        for group in &self.suspected {
            *rows.entry(group.device()).or_default() += group.rows;
        }
        let old = self
            .suspects
            .iter()
            .filter(|(_, suspect)| now >= suspect.since + age);
        let held = old.filter_map(|(device, suspect)| Some((device, suspect, *rows.get(device)?)));
        held.map(|(device, suspect, rows)| Refused {
            device: device.clone(),
            reason: suspect.reason.clone(),
            rows,
        })
        .collect()
    }

    /// Tokens of deliveries that were let go since the last call.
    pub(super) fn take_let_go(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.let_go)
    }

    /// Marks the readings of a delivery as rejected that were set aside lately.
    pub(super) fn recall(&mut self, delivery: &mut Delivery, now: Duration) {
        while self.aside.front().is_some_and(|aside| aside.until <= now) {
            self.aside.pop_front();
        }
        let epoch = delivery.batch.epoch;
        let known: HashSet<u64> = self
            .aside
            .iter()
            .filter(|aside| aside.device == delivery.device && aside.epoch == epoch)
            .map(|aside| aside.seq)
            .collect();
        if known.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut delivery.batch.rows);
        let (bad, good): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| known.contains(&row.seq));
        delivery.batch.rows = good;
        let rejected = bad.iter().filter_map(|row| unstorable(row.seq));
        delivery.rejected.extend(rejected);
    }

    /// Takes another delivery of a suspect: its readings that wait here alone already are left out. Returns what is not
    /// held here.
    pub(super) fn offer(
        &mut self,
        mut item: Item<Token>,
        config: &PipelineConfig,
        now: Duration,
    ) -> Held {
        let before = item.held();
        let alone: HashSet<(Epoch, u64)> = self
            .of(&item.delivery.device)
            .filter(|group| group.is_single())
            .flat_map(|group| &group.items)
            .map(|item| (item.delivery.batch.epoch, item.delivery.batch.rows[0].seq))
            .collect();
        let batch = &mut item.delivery.batch;
        let epoch = batch.epoch;
        batch.rows.retain(|row| !alone.contains(&(epoch, row.seq)));
        if rows(&item.delivery) == 0 {
            self.let_go.extend(item.token);
            return before;
        }
        let tokens: usize = self.suspected.iter().map(Group::tokens).sum();
        if tokens >= TOKENS_MAX {
            self.let_go.extend(item.token.take());
        }
        let after = item.held();
        let left_out = Held {
            rows: before.rows - after.rows,
            bytes: before.bytes - after.bytes,
        };
        let dropped = self.suspect_group(Group::new(vec![item], now), config);
        Held {
            rows: left_out.rows + dropped.rows,
            bytes: left_out.bytes + dropped.bytes,
        }
    }

    fn of<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = &'a Group<Token>> {
        self.suspected
            .iter()
            .filter(move |group| group.device() == device)
    }

    /// Adds a group of one device, or lets it go when there is no room. Returns what is not held.
    fn suspect_group(&mut self, group: Group<Token>, config: &PipelineConfig) -> Held {
        let bytes = |groups: &mut dyn Iterator<Item = &Group<Token>>| -> (usize, usize) {
            groups.fold((0, 0), |(rows, bytes), group| {
                (rows + group.rows, bytes + group.held().bytes)
            })
        };
        let (all_rows, all_bytes) = bytes(&mut self.suspected.iter());
        let (its_rows, its_bytes) = bytes(&mut self.of(group.device()));
        let held = group.held();
        // The first delivery of a device fits always, if anything does.
        let fits = all_rows + held.rows <= config.rows_max / SUSPECTS_SHARE
            && all_bytes + held.bytes <= config.bytes_max / SUSPECTS_SHARE
            && (its_rows == 0 || its_rows + held.rows <= config.rows_max / DEVICE_SHARE)
            && (its_rows == 0 || its_bytes + held.bytes <= config.bytes_max / DEVICE_SHARE)
            && self.of(group.device()).count() < DEVICE_GROUPS_MAX
            && self.suspected.len() < GROUPS_MAX;
        if fits {
            self.suspected.push_back(group);
            return Held::default();
        }
        let tokens = group.items.into_iter().filter_map(|item| item.token);
        self.let_go.extend(tokens);
        held
    }

    /// The next group to be tried whose devices are not busy.
    pub(super) fn next(
        &mut self,
        now: Duration,
        busy: impl Fn(&DeviceId) -> bool,
    ) -> Option<Group<Token>> {
        let is_due = |group: &Group<Token>| group.not_before <= now && !group.is_any(&busy);
        let doubtful = self.doubtful.iter().rposition(is_due);
        let suspected = self.suspected.iter().position(is_due);
        self.turn = !self.turn;
        match (doubtful, suspected) {
            (Some(at), None) => Some(self.doubtful.remove(at)),
            (Some(at), Some(_)) if self.turn => Some(self.doubtful.remove(at)),
            (_, Some(at)) => self.suspected.remove(at),
            (None, None) => None,
        }
    }

    /// When the next group is to be tried whose devices are not busy.
    pub(super) fn next_wakeup(&self, busy: impl Fn(&DeviceId) -> bool) -> Option<Duration> {
        let groups = self.doubtful.iter().chain(&self.suspected);
        groups
            .filter(|group| !group.is_any(&busy))
            .map(|group| group.not_before)
            .min()
    }

    /// A group was refused, alone. Returns what is not held any more, and whether it says something about the database: a
    /// reading that was refused alone before says nothing new.
    pub(super) fn refuse(
        &mut self,
        mut group: Group<Token>,
        judged_by: WriteId,
        reason: &str,
        config: &PipelineConfig,
        now: Duration,
    ) -> (Held, bool) {
        if !group.is_of_one_device() {
            if self.doubtful.len() >= GROUPS_MAX {
                group.not_before = now + ALONE_FIRST;
                self.doubtful.insert(0, group);
                return (Held::default(), true);
            }
            let (first, second) = group.halved(now);
            self.doubtful.push(second);
            self.doubtful.push(first);
            return (Held::default(), true);
        }
        let device = group.device().clone();
        let suspect = self
            .suspects
            .entry(device.clone())
            .or_insert_with(|| Suspect {
                until: now,
                reason: String::new(),
                since: now,
            });
        suspect.until = now + PROBATION;
        suspect.reason.clear();
        suspect.reason.push_str(reason);
        if group.is_whole() {
            let is_news = group.tries == 0;
            if group.is_single() {
                group.evidence.failed_alone();
            }
            // Who waits for an answer hears that it is to be sent again.
            self.let_go.extend(group.items[0].token.take());
            group.judged_by = judged_by;
            group.tries += 1;
            group.not_before = now + pause(group.tries);
            return (self.suspect_group(group, config), is_news);
        }
        if self.suspected.len() + 2 > GROUPS_MAX || self.of(&device).count() + 2 > DEVICE_GROUPS_MAX
        {
            group.tries += 1;
            group.not_before = now + pause(group.tries);
            return (self.suspect_group(group, config), true);
        }
        if let [item] = &mut group.items[..] {
            self.let_go.extend(item.token.take());
        }
        let (first, second) = group.halved(now);
        let mut gone = Held::default();
        for half in [first, second] {
            let held = self.suspect_group(half, config);
            gone.rows += held.rows;
            gone.bytes += held.bytes;
        }
        (gone, true)
    }

    /// Moves deliveries of suspects here that wait among others.
    pub(super) fn divert(
        &mut self,
        waiting: &mut VecDeque<Item<Token>>,
        config: &PipelineConfig,
        now: Duration,
    ) -> Held {
        let mut gone = Held::default();
        if waiting
            .iter()
            .any(|item| self.is_suspect(&item.delivery.device))
        {
            for item in std::mem::take(waiting) {
                // What is only rejected is no reading that could be refused again.
                if self.is_suspect(&item.delivery.device) && !item.delivery.batch.rows.is_empty() {
                    let held = self.offer(item, config, now);
                    gone.rows += held.rows;
                    gone.bytes += held.bytes;
                } else {
                    waiting.push_back(item);
                }
            }
        }
        gone
    }

    /// Rows of devices were stored by a write. Returns the readings that may be set aside now, as deliveries that say so.
    pub(super) fn committed(
        &mut self,
        id: WriteId,
        devices: &BTreeSet<DeviceId>,
        now: Duration,
    ) -> Vec<Item<Token>> {
        let mut aside = Vec::new();
        let mut at = 0;
        while let Some(group) = self.suspected.get_mut(at) {
            if group.tries > 0
                && group.judged_by < id
                && devices.iter().any(|device| device != group.device())
            {
                group.evidence.others_committed();
            }
            if !(group.is_single() && group.evidence.is_conclusive()) {
                at += 1;
                continue;
            }
            for mut item in self
                .suspected
                .remove(at)
                .into_iter()
                .flat_map(|group| group.items)
            {
                let rows = std::mem::take(&mut item.delivery.batch.rows);
                let rejected = rows.iter().filter_map(|row| unstorable(row.seq));
                item.delivery.rejected.extend(rejected);
                if self.aside.len() >= ASIDE_MAX {
                    self.aside.pop_front();
                }
                self.aside.extend(rows.iter().map(|row| Aside {
                    device: item.delivery.device.clone(),
                    epoch: item.delivery.batch.epoch,
                    seq: row.seq,
                    until: now + ASIDE,
                }));
                aside.push(item);
            }
        }
        aside
    }
}

impl<Token> Group<Token> {
    fn held(&self) -> Held {
        Held {
            rows: self.rows,
            bytes: self.items.iter().map(|item| item.bytes).sum(),
        }
    }
}

fn unstorable(seq: u64) -> Option<Rejection> {
    let reason = RejectReason::Unstorable;
    SeqRange::one(seq).map(|range| Rejection { range, reason })
}

fn pause(tries: u32) -> Duration {
    let doublings = tries.saturating_sub(ALONE_QUICK).min(16);
    ALONE_FIRST.saturating_mul(1 << doublings).min(ALONE_MAX)
}
