//! Which versions of a key win when some rows meet what is stored: pure, the slow path of both
//! databases. Most rows are the first of their key and never come here.
//!
//! Invariant: each row counts once; every version that is not the key's highest ends as a loser,
//! with the version that it lost to, in whatever order they arrive.
//!
//! Two versions that are equal in key, clock and content are the same reading, in two epochs or
//! under two sequences: a buffer file was copied, or what could be saved of it was moved. One of them
//! is superseded all the same, so that the counts are right, and nobody is told of a conflict.

use std::collections::{BTreeMap, HashMap, HashSet};

use schema::lww::{Outcome, resolve};
use schema::time::ReceivedAt;
use schema::{Hlc, ObservedAt, Quality, Value, Version};

use super::plan::{Intake, NewRow};
use crate::{RowCounts, StoredReading};

/// What identifies a row: device, sensor, time.
pub(crate) type Key<'a> = (&'a str, &'a str, ObservedAt);

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Contest {
    /// Rows to write, at most one for a key.
    pub(crate) writes: Vec<NewRow>,
    /// Versions that lost.
    pub(crate) losers: Vec<Loser>,
    /// What became of the rows.
    pub(crate) counts: RowCounts,
}

/// A version that lost.
#[derive(Debug)]
pub(crate) struct Loser {
    /// The row whose arrival decided it, and whose device it is.
    pub(crate) row: NewRow,
    /// The reading that was stored until now, or `None`: the arriving row itself lost.
    pub(crate) stored: Option<StoredReading>,
    /// What it lost to.
    pub(crate) winner: Version,
    /// Both are the same reading.
    pub(crate) is_same: bool,
    /// It lost to a row that arrived with it: the table was not asked.
    pub(crate) is_twin: bool,
}

/// A loser's content, whether it arrived or was stored.
#[derive(Debug)]
pub(crate) struct Lost<'a> {
    pub(crate) device: &'a str,
    pub(crate) sensor: &'a str,
    pub(crate) observed_at: ObservedAt,
    pub(crate) value: &'a Value,
    pub(crate) quality: Quality,
    pub(crate) version: Version,
    pub(crate) received_at: ReceivedAt,
    pub(crate) winner: Version,
    pub(crate) recorded_at: ReceivedAt,
    pub(crate) is_same: bool,
}

impl Loser {
    /// The reading that lost.
    pub(crate) fn reading<'l>(&'l self, intake: &Intake<'l>) -> Lost<'l> {
        let (delivery, sensor, reading) = intake.row(&self.row);
        let (value, quality, version, received_at) = match &self.stored {
            Some(stored) => (
                &stored.value,
                stored.quality,
                stored.version,
                stored.received_at,
            ),
            None => (
                &reading.value,
                reading.quality,
                intake.version(&self.row),
                delivery.received_at,
            ),
        };
        Lost {
            device: delivery.device.as_str(),
            sensor,
            observed_at: reading.observed_at,
            value,
            quality,
            version,
            received_at,
            winner: self.winner,
            recorded_at: delivery.received_at,
            is_same: self.is_same,
        }
    }
}

/// Decides over `rows`, against what is `stored` under their keys.
pub(crate) fn decide<'a>(
    intake: &Intake<'a>,
    rows: &[NewRow],
    mut stored: HashMap<Key<'a>, StoredReading>,
) -> Contest {
    let mut best: HashMap<Key<'a>, NewRow> = HashMap::with_capacity(rows.len());
    let mut contest = Contest::default();
    let mut beaten = Vec::new();
    for row in rows {
        match best.entry(key(intake, row)) {
            std::collections::hash_map::Entry::Vacant(first) => {
                first.insert(*row);
            }
            std::collections::hash_map::Entry::Occupied(mut other) => {
                let held = Some(intake.version(other.get()));
                match resolve(held, intake.version(row)) {
                    Outcome::First | Outcome::Newer => beaten.push(other.insert(*row)),
                    Outcome::Older | Outcome::Same => beaten.push(*row),
                }
            }
        }
    }
    for row in beaten {
        let winner = &best[&key(intake, &row)];
        let is_same = is_same(intake, &row, Content::arrived(intake, winner));
        contest.losers.push(Loser {
            row,
            stored: None,
            winner: intake.version(winner),
            is_same,
            is_twin: true,
        });
        contest.counts.count(is_same, |counts| &mut counts.older);
    }
    for (key, row) in best {
        let arriving = intake.version(&row);
        let held = stored.remove(&key);
        let is_same = held
            .as_ref()
            .is_some_and(|held| is_same(intake, &row, Content::stored(held)));
        match resolve(held.as_ref().map(|held| held.version), arriving) {
            Outcome::First => {
                contest.counts.inserted += 1;
                contest.writes.push(row);
            }
            Outcome::Newer => {
                contest.counts.count(is_same, |counts| &mut counts.replaced);
                contest.writes.push(row);
                contest.lose(row, held, arriving, is_same);
            }
            Outcome::Older => {
                contest.counts.count(is_same, |counts| &mut counts.older);
                let winner = held.map_or(arriving, |held| held.version);
                contest.lose(row, None, winner, is_same);
            }
            // The row is there although the ledger does not know it: enter it, write nothing.
            Outcome::Same => contest.counts.known += 1,
        }
    }
    // In order of the key, so that transactions lock rows in one order.
    contest.writes.sort_unstable_by(|a, b| {
        let (a, b) = (key(intake, a), key(intake, b));
        a.cmp(&b)
    });
    contest
}

impl Contest {
    fn lose(&mut self, row: NewRow, stored: Option<StoredReading>, winner: Version, is_same: bool) {
        self.losers.push(Loser {
            row,
            stored,
            winner,
            is_same,
            is_twin: false,
        });
    }

    /// How many versions lost, by device, in the order of the devices.
    pub(crate) fn superseded<'a>(&self, intake: &Intake<'a>) -> Vec<(&'a str, u64)> {
        let mut by_device: BTreeMap<&'a str, u64> = BTreeMap::new();
        for loser in &self.losers {
            let (delivery, _, _) = intake.row(&loser.row);
            *by_device.entry(delivery.device.as_str()).or_default() += 1;
        }
        by_device.into_iter().collect()
    }

    /// The rows that are the first of their key.
    pub(crate) fn first(&self) -> Vec<NewRow> {
        let replacing = self.losers.iter().filter(|loser| loser.stored.is_some());
        let replacing: HashSet<(u32, u64)> = replacing.map(|loser| loser.row.name()).collect();
        let writes = self.writes.iter();
        writes
            .filter(|row| !replacing.contains(&row.name()))
            .copied()
            .collect()
    }

    /// The rows that take the place of stored ones, each with the version that it replaces, in the order of their keys:
    /// all who write lock rows in one order.
    pub(crate) fn replacing(&self, intake: &Intake<'_>) -> Vec<(NewRow, Version)> {
        let losers = self.losers.iter();
        let of = |loser: &Loser| Some((loser.row, loser.stored.as_ref()?.version));
        let mut replacing: Vec<(NewRow, Version)> = losers.filter_map(of).collect();
        replacing.sort_unstable_by(|(a, _), (b, _)| key(intake, a).cmp(&key(intake, b)));
        replacing
    }

    /// The groups of which rows are to be written.
    pub(crate) fn stored(&self) -> impl Iterator<Item = u32> + '_ {
        self.writes.iter().map(|row| row.group)
    }

    /// The losers of which one of the two versions was in the table.
    pub(crate) fn met(&self) -> impl Iterator<Item = &Loser> {
        self.losers.iter().filter(|loser| !loser.is_twin)
    }
}

impl RowCounts {
    fn count(&mut self, is_same: bool, of: impl FnOnce(&mut Self) -> &mut u64) {
        match is_same {
            true => self.same += 1,
            false => *of(self) += 1,
        }
    }
}

/// What of a version is to be equal.
#[derive(Debug, Clone, Copy)]
struct Content<'a> {
    hlc: Hlc,
    value: &'a Value,
    quality: Quality,
}

impl<'a> Content<'a> {
    fn arrived(intake: &Intake<'a>, row: &NewRow) -> Self {
        let (_, _, reading) = intake.row(row);
        Self {
            hlc: reading.hlc,
            value: &reading.value,
            quality: reading.quality,
        }
    }

    const fn stored(reading: &'a StoredReading) -> Self {
        Self {
            hlc: reading.version.hlc,
            value: &reading.value,
            quality: reading.quality,
        }
    }
}

/// Whether a row says what is stored under its key.
pub(crate) fn is_stored(intake: &Intake<'_>, row: &NewRow, held: &StoredReading) -> bool {
    is_same(intake, row, Content::stored(held))
}

/// Whether a row is the same reading as another version of its key.
fn is_same(intake: &Intake<'_>, row: &NewRow, other: Content<'_>) -> bool {
    let row = Content::arrived(intake, row);
    row.hlc == other.hlc && row.quality == other.quality && is_equal(row.value, other.value)
}

/// Bit by bit: 0.0 and -0.0 are two values.
fn is_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

/// The key of a row.
pub(crate) fn key<'a>(intake: &Intake<'a>, row: &NewRow) -> Key<'a> {
    let (delivery, sensor, reading) = intake.row(row);
    (delivery.device.as_str(), sensor, reading.observed_at)
}
