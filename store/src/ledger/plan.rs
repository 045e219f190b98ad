//! What of some deliveries is new: pure, the same for both databases.
//!
//! ```text
//! deliveries ─ Intake::new ─► groups by (device, epoch), sequences ascending, unstorable rows refused
//!            ─ Intake::select(states) ─► rows that the ledger does not have, with digests
//!            ─ Intake::settle ─► for each delivery, what is committed and what is refused
//! ```
//!
//! Invariant: every reading of every delivery is either selected, known to the ledger, or refused
//! with a reason; selecting again after a part was committed selects only the rest.
//!
//! Only what is committed is known: what was quarantined, evicted or discarded and comes again is
//! judged anew, and when it is admitted it is written. What is refused again enters nothing new.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use schema::digest::Digester;
use schema::limits::SQL_INTEGER_MAX;
use schema::message::{RejectReason, Rejection};
use schema::{DeviceId, Epoch, ObservedAt, RangeSet, Row, SeqRange, Version};

use super::contest;
use super::epoch::EpochState;
use super::group::{Group, Item};
use super::kind::Track;
use super::span::{Extent, Run};
use crate::{Delivery, Kind, Origin, Settled, StoredReading};

/// The earliest time that every store can hold: 4713 BC, where PostgreSQL's calendar begins, with
/// a year to spare.
pub const OBSERVED_AT_MIN: ObservedAt = ObservedAt::from_micros(-210_000_000_000_000_000);

/// The latest time that every store can hold: the year 294235, 41 years before PostgreSQL's
/// calendar ends.
pub const OBSERVED_AT_MAX: ObservedAt = ObservedAt::from_micros(9_223_000_000_000_000_000);

/// What is not to be found any more although it was committed, of some devices.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    /// Before which time rows are gone, of devices of which retention has removed any.
    pub(crate) before: HashMap<DeviceId, ObservedAt>,
    /// Between which sequences versions are that lost and were not kept.
    pub(crate) dropped: HashMap<(DeviceId, Epoch), SeqRange>,
}

/// Deliveries, sorted for writing.
#[derive(Debug)]
pub(crate) struct Intake<'a> {
    pub(crate) deliveries: &'a [Delivery],
    pub(crate) groups: Vec<Group>,
    refused: Vec<Refused>,
    /// Rows that came over HTTP, and whose sequences are committed.
    repeated: Vec<NewRow>,
}

#[derive(Debug, Clone, Copy)]
struct Refused {
    delivery: u32,
    seq: u64,
    reason: RejectReason,
}

/// A row to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRow {
    pub(crate) group: u32,
    delivery: u32,
    row: u32,
    pub(crate) seq: u64,
    pub(crate) digest: u64,
    /// Not later than what came before it: its key may be taken.
    pub(crate) is_late: bool,
    /// Its key is taken, as far as is known, or another row of the call has it.
    pub(crate) is_compared: bool,
}

impl<'a> Intake<'a> {
    /// Sorts deliveries into groups, and refuses what no store can hold.
    pub(crate) fn new(deliveries: &'a [Delivery]) -> Self {
        let mut by_file: HashMap<(&DeviceId, Epoch), usize> = HashMap::new();
        let mut intake = Self {
            deliveries,
            groups: Vec::new(),
            refused: Vec::new(),
            repeated: Vec::new(),
        };
        for (at, delivery) in deliveries.iter().enumerate() {
            let epoch = delivery.batch.epoch;
            let groups = &mut intake.groups;
            let group = *by_file.entry((&delivery.device, epoch)).or_insert_with(|| {
                groups.push(Group {
                    is_direct: true,
                    ..Group::new(delivery.device.clone(), epoch)
                });
                groups.len() - 1
            });
            intake.add(group, index(at), delivery);
        }
        for group in &mut intake.groups {
            // Stable, so that of two rows with one sequence the first delivered stays.
            if !group.items.is_sorted_by_key(|item| item.seq) {
                group.items.sort_by_key(|item| item.seq);
            }
        }
        intake
    }

    fn add(&mut self, group: usize, at: u32, delivery: &Delivery) {
        let group = &mut self.groups[group];
        group.received_at = group.received_at.max(delivery.received_at);
        group.is_direct &= delivery.origin == Origin::Direct;
        group.items.reserve(delivery.batch.rows.len());
        for (index_of_row, row) in delivery.batch.rows.iter().enumerate() {
            match storable(row) {
                Ok(()) => {
                    group.floor = group.floor.min(row.seq);
                    group.items.push(Item {
                        seq: row.seq,
                        delivery: at,
                        row: index(index_of_row),
                    });
                }
                Err(reason) => {
                    group.claim_refused(delivery, SeqRange::one(row.seq), reason);
                    self.refused.push(Refused {
                        delivery: at,
                        seq: row.seq,
                        reason,
                    });
                }
            }
        }
        for rejection in &delivery.rejected {
            group.claim_refused(delivery, Some(rejection.range), rejection.reason);
            // Unless it is committed already.
            group.has_known = true;
        }
    }

    /// Selects what is new of all groups. Those come last in which versions met lately; returns how
    /// many rows are before them.
    pub(crate) fn select_all(
        &mut self,
        states: &[Option<EpochState>],
        digester: &mut Digester,
        rows: &mut Vec<NewRow>,
    ) -> usize {
        let mut quiet = 0;
        self.repeated.clear();
        for contested in [false, true] {
            for (group, state) in states.iter().enumerate() {
                if let Some(state) = state
                    && state.contested == contested
                {
                    self.select(group, state, digester, rows);
                }
            }
            if !contested {
                quiet = rows.len();
            }
        }
        quiet
    }

    /// Drops the states that were remembered where an answer would rest on them. Returns whether there
    /// are such.
    pub(crate) fn doubt(&self, states: &mut [Option<EpochState>]) -> bool {
        let mut doubted = false;
        for (group, state) in self.groups.iter().zip(states) {
            if group.rests_on_ledger() && state.as_ref().is_some_and(|state| state.is_remembered) {
                *state = None;
                doubted = true;
            }
        }
        doubted
    }

    /// Appends to `rows` those of one group that the ledger does not have, by sequence. A row
    /// whose sequence is committed with other content is refused for good.
    fn select(
        &mut self,
        group: usize,
        state: &EpochState,
        digester: &mut Digester,
        rows: &mut Vec<NewRow>,
    ) {
        let before = rows.len();
        let Group { epoch, items, .. } = &self.groups[group];
        let committed = state.track(Track::Committed);
        let mut reused = Vec::new();
        let mut repeated = Vec::new();
        let mut at = 0;
        let mut last: Option<Item> = None;
        for item in items {
            let row = self.item_row(item);
            if let Some(twin) = last.filter(|last| last.seq == item.seq) {
                let is_same = same_content(self.item_row(&twin), row);
                if !is_same || self.sensor(&twin) != self.sensor(item) {
                    reused.push(*item);
                }
                continue;
            }
            last = Some(*item);
            while committed
                .get(at)
                .is_some_and(|span| span.range.last() < item.seq)
            {
                at += 1;
            }
            match committed.get(at) {
                Some(span) if span.range.first() <= item.seq => {
                    if span.extent.is_some_and(|extent| row.hlc > extent.hlc_max) {
                        reused.push(*item);
                    } else if self.deliveries[item.delivery as usize].origin == Origin::Direct {
                        repeated.push(item.row_of(group, 0));
                    }
                }
                _ => {
                    let digest = digester.row(*epoch, self.sensor(item), row);
                    rows.push(item.row_of(group, digest));
                }
            }
        }
        let has_known = rows.len() - before < items.len();
        self.groups[group].has_known |= has_known;
        self.repeated.extend(repeated);
        for item in reused {
            self.refuse_item(group, item, RejectReason::EpochReuse);
        }
    }

    /// The rows that came over HTTP and are known. Devices give each sequence once; who asks over HTTP
    /// chooses them, and may send another value under one.
    pub(crate) fn repeated(&mut self) -> Vec<NewRow> {
        std::mem::take(&mut self.repeated)
    }

    /// Those of `repeated` that are not stored as they came: with other content, under another key, or not at
    /// all. `held` is what was found under their keys, each with the place of the row in `repeated`, of what
    /// is stored and of what lost. What retention may remove today is left out.
    pub(crate) fn changed(
        &self,
        repeated: &[NewRow],
        held: &[(usize, StoredReading)],
        retention: Option<Duration>,
    ) -> Vec<NewRow> {
        let mut is_stored = vec![false; repeated.len()];
        for (at, found) in held {
            if let (Some(row), Some(is_stored)) = (repeated.get(*at), is_stored.get_mut(*at)) {
                let version = self.version(row);
                let name = (version.epoch, version.seq);
                *is_stored |= (found.version.epoch, found.version.seq) == name
                    && contest::is_stored(self, row, found);
            }
        }
        let kept = retention.and_then(|kept| i64::try_from(kept.as_micros()).ok());
        let is_kept = |row: &NewRow| {
            let (delivery, _, reading) = self.row(row);
            let (now, then) = (delivery.received_at.micros(), reading.observed_at.micros());
            kept.is_none_or(|kept| now.saturating_sub(then) < kept)
        };
        let rows = repeated.iter().zip(is_stored);
        rows.filter(|(row, is_stored)| !is_stored && is_kept(row))
            .map(|(row, _)| *row)
            .collect()
    }

    /// Refuses rows that are not stored as they came, but for those that retention removed, as it was set
    /// before, and those that may have lost without having been kept: they stay known.
    pub(crate) fn refuse_changed(&mut self, changed: &[NewRow], gone: &Gone) {
        for row in changed {
            let (delivery, _, reading) = self.row(row);
            let before = gone.before.get(&delivery.device);
            let file = (delivery.device.clone(), delivery.batch.epoch);
            let dropped = gone.dropped.get(&file);
            let is_gone = before.is_some_and(|before| reading.observed_at < *before)
                || dropped.is_some_and(|of| (of.first()..=of.last()).contains(&row.seq));
            if is_gone {
                continue;
            }
            let item = Item {
                seq: row.seq,
                delivery: row.delivery,
                row: row.row,
            };
            self.refuse_item(row.group as usize, item, RejectReason::EpochReuse);
        }
    }

    fn refuse_item(&mut self, group: usize, item: Item, reason: RejectReason) {
        let group = &mut self.groups[group];
        group
            .items
            .retain(|other| (other.delivery, other.row) != (item.delivery, item.row));
        let delivery = &self.deliveries[item.delivery as usize];
        group.claim_refused(delivery, SeqRange::one(item.seq), reason);
        self.refused.push(Refused {
            delivery: item.delivery,
            seq: item.seq,
            reason,
        });
    }

    /// Which device, sensor and reading a row is.
    pub(crate) fn row(&self, row: &NewRow) -> (&'a Delivery, &'a str, &'a Row) {
        let delivery = &self.deliveries[row.delivery as usize];
        let reading = &delivery.batch.rows[row.row as usize];
        (delivery, delivery.batch.sensor(reading).as_str(), reading)
    }

    /// The version of a row.
    pub(crate) fn version(&self, row: &NewRow) -> Version {
        let (delivery, _, reading) = self.row(row);
        delivery.batch.version(reading)
    }

    /// The runs of sequences that `rows`, a part of what was selected, adds to the ledger:
    /// for each group its number and its runs.
    pub(crate) fn runs(&self, rows: &[NewRow]) -> Vec<(usize, Vec<Run>)> {
        rows.chunk_by(|a, b| a.group == b.group)
            .map(|of_group| {
                let runs = of_group
                    .chunk_by(|a, b| a.seq.checked_add(1) == Some(b.seq))
                    .filter_map(|run| self.run(run))
                    .collect();
                (of_group[0].group as usize, runs)
            })
            .collect()
    }

    fn run(&self, rows: &[NewRow]) -> Option<Run> {
        let (first, last) = (rows.first()?, rows.last()?);
        let mut digest = 0u64;
        let mut extent: Option<Extent> = None;
        for row in rows {
            let (_, _, reading) = self.row(row);
            digest = digest.wrapping_add(row.digest);
            let one = Extent {
                hlc_max: reading.hlc,
                observed_min: reading.observed_at,
                observed_max: reading.observed_at,
            };
            extent = Some(extent.map_or(one, |extent| extent.joined(one)));
        }
        Some(Run {
            kind: Kind::Committed,
            range: SeqRange::new(first.seq, last.seq)?,
            digest,
            extent,
        })
    }

    /// The devices of some rows, each once.
    pub(crate) fn devices_of(&self, rows: &[NewRow]) -> Vec<String> {
        let devices = rows.iter().map(|row| self.row(row).0.device.as_str());
        let devices: BTreeSet<&str> = devices.collect();
        devices.into_iter().map(str::to_owned).collect()
    }

    /// The devices of some groups.
    pub(crate) fn devices(&self, groups: impl IntoIterator<Item = u32>) -> BTreeSet<DeviceId> {
        let groups: BTreeSet<u32> = groups.into_iter().collect();
        let device = |group: u32| self.groups[group as usize].device.clone();
        groups.into_iter().map(device).collect()
    }

    /// How many readings the deliveries hold.
    pub(crate) fn readings(&self) -> u64 {
        let rows = self.deliveries.iter().map(|d| d.batch.rows.len() as u64);
        rows.sum()
    }

    /// How many of them are refused so far.
    pub(crate) fn refusals(&self) -> u64 {
        self.refused.len() as u64
    }

    /// How each delivery is settled, once everything selected is committed. `states` are the
    /// groups' states after that.
    pub(crate) fn settle(mut self, states: &[EpochState]) -> Vec<Settled> {
        self.refused
            .sort_by_key(|refused| (refused.delivery, refused.seq));
        let groups: HashMap<(&DeviceId, Epoch), usize> = self
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| ((&group.device, group.epoch), at))
            .collect();
        self.deliveries
            .iter()
            .enumerate()
            .map(|(at, delivery)| {
                let from = self.refused.partition_point(|r| (r.delivery as usize) < at);
                let to = self
                    .refused
                    .partition_point(|r| (r.delivery as usize) <= at);
                let group = groups[&(&delivery.device, delivery.batch.epoch)];
                settle_one(delivery, &self.refused[from..to], &states[group])
            })
            .collect()
    }

    fn item_row(&self, item: &Item) -> &'a Row {
        &self.deliveries[item.delivery as usize].batch.rows[item.row as usize]
    }

    fn sensor(&self, item: &Item) -> &'a str {
        let delivery = &self.deliveries[item.delivery as usize];
        delivery.batch.sensor(self.item_row(item)).as_str()
    }
}

fn settle_one(delivery: &Delivery, refused: &[Refused], state: &EpochState) -> Settled {
    // What the ledger says, and nothing that it does not: a row that is neither committed nor refused
    // is not answered, and stays with its sender.
    let mut committed = state.committed_of(delivery.batch.ranges());
    let mut rejected = Vec::new();
    for refused in refused {
        if let Some(range) = SeqRange::one(refused.seq) {
            committed.remove(range);
            push_rejection(&mut rejected, range, refused.reason);
        }
    }
    for rejection in &delivery.rejected {
        // What is committed stays committed: an earlier delivery had these rows in order.
        let mut rest = RangeSet::from_iter([rejection.range]);
        for span in state.track(Track::Committed) {
            if let Some(both) = span.range.intersection(rejection.range) {
                committed.insert(both);
                rest.remove(both);
            }
        }
        for range in rest.iter() {
            push_rejection(&mut rejected, range, rejection.reason);
        }
    }
    Settled {
        committed: committed.as_slice().to_vec(),
        rejected,
        evicted: Vec::new(),
    }
}

fn push_rejection(rejected: &mut Vec<Rejection>, range: SeqRange, reason: RejectReason) {
    if let Some(last) = rejected.last_mut()
        && last.reason == reason
        && last.range.last().checked_add(1) == Some(range.first())
        && let Some(joined) = SeqRange::new(last.range.first(), range.last())
    {
        last.range = joined;
    } else {
        rejected.push(Rejection { range, reason });
    }
}

impl NewRow {
    /// What names it within a call.
    pub(crate) const fn name(&self) -> (u32, u64) {
        (self.group, self.seq)
    }
}

impl Item {
    fn row_of(self, group: usize, digest: u64) -> NewRow {
        NewRow {
            group: index(group),
            delivery: self.delivery,
            row: self.row,
            seq: self.seq,
            digest,
            is_late: false,
            is_compared: false,
        }
    }
}

/// Cuts `rows` into parts of at most `rows_max`.
pub(crate) fn parts(rows: Range<usize>, rows_max: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(rows_max.max(1))
        .map(move |from| from..(from + rows_max.max(1)).min(end))
}

/// Whether two rows of one sensor say the same. Their sensors have other numbers in batches that
/// were put together differently.
fn same_content(a: &Row, b: &Row) -> bool {
    (a.observed_at, a.hlc, a.quality) == (b.observed_at, b.hlc, b.quality) && a.value == b.value
}

fn storable(row: &Row) -> Result<(), RejectReason> {
    use schema::reading::ValueError;
    row.value.validate().map_err(|error| match error {
        ValueError::NotFinite => RejectReason::NotFinite,
        ValueError::TextTooLong { .. } | ValueError::TextHoldsNul => RejectReason::BadText,
    })?;
    if row.seq == 0 || row.seq > SQL_INTEGER_MAX || row.hlc.bits() > SQL_INTEGER_MAX {
        return Err(RejectReason::OutOfRange);
    }
    if row.observed_at < OBSERVED_AT_MIN {
        return Err(RejectReason::TooOld);
    }
    if row.observed_at > OBSERVED_AT_MAX {
        return Err(RejectReason::TooNew);
    }
    Ok(())
}

/// Rows and deliveries are counted in 32 bits: a call holds far fewer.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use schema::time::ReceivedAt;

    use super::*;
    use schema::{Batch, Hlc, Quality, Value};

    fn delivery(seqs: std::ops::RangeInclusive<u64>) -> Delivery {
        let rows = seqs.map(|seq| Row {
            sensor: 0,
            observed_at: ObservedAt::from_millis(seq.cast_signed()),
            hlc: Hlc::new(seq, 0),
            seq,
            quality: Quality::Good,
            value: match seq {
                2 => Value::F64(f64::NAN),
                _ => Value::Bool(true),
            },
        });
        Delivery {
            device: "d".parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: vec!["s".parse().unwrap()],
                rows: rows.collect(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::default(),
            origin: Origin::Device,
        }
    }

    /// The second is a retransmission of the first, and in the same call.
    #[test]
    fn a_row_that_is_refused_is_refused_in_every_delivery_that_has_it() {
        let deliveries = [delivery(1..=3), delivery(2..=4)];
        let mut intake = Intake::new(&deliveries);
        let states = [Some(EpochState::empty(0, 1))];
        let mut again = Vec::new();
        intake.select_all(&states, &mut Digester::default(), &mut again);
        assert_eq!(
            again.iter().map(|row| row.seq).collect::<Vec<_>>(),
            [1, 3, 4]
        );
        assert_eq!(intake.refusals(), 2);
        let mut after = EpochState::empty(1, 1);
        for run in &intake.runs(&again)[0].1 {
            after.put(after.grown(run, ReceivedAt::default()));
        }
        let settled = intake.settle(&[after]);
        let one = SeqRange::one(2).unwrap();
        for (settled, others) in settled.iter().zip([[1, 3], [3, 4]]) {
            let refused: Vec<SeqRange> = settled.rejected.iter().map(|r| r.range).collect();
            assert_eq!(refused, [one]);
            let committed: RangeSet = settled.committed.iter().copied().collect();
            let expected: RangeSet = others.into_iter().filter_map(SeqRange::one).collect();
            assert_eq!(committed, expected);
        }
    }
}
