//! Which versions of a key win when some rows meet what is stored: pure, the slow path of both
//! databases. Most rows are the first of their key and never come here.
//!
//! Invariant: each row counts once; every version that is not the key's highest ends as a loser,
//! with the version that it lost to, in whatever order they arrive.

use std::collections::HashMap;

use schema::lww::{Outcome, resolve};
use schema::time::ReceivedAt;
use schema::{ObservedAt, Quality, Value, Version};

use super::plan::{Intake, NewRow};
use super::{RowCounts, StoredReading};

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
}

impl Loser {
    /// What lost.
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
    let lose = |contest: &mut Contest, row, stored, winner| {
        contest.losers.push(Loser {
            row,
            stored,
            winner,
        });
    };
    for row in beaten {
        let winner = intake.version(&best[&key(intake, &row)]);
        contest.counts.older += 1;
        lose(&mut contest, row, None, winner);
    }
    for (key, row) in best {
        let arriving = intake.version(&row);
        let held = stored.remove(&key);
        match resolve(held.as_ref().map(|held| held.version), arriving) {
            Outcome::First => {
                contest.counts.inserted += 1;
                contest.writes.push(row);
            }
            Outcome::Newer => {
                contest.counts.replaced += 1;
                contest.writes.push(row);
                lose(&mut contest, row, held, arriving);
            }
            Outcome::Older => {
                contest.counts.older += 1;
                let winner = held.map_or(arriving, |held| held.version);
                lose(&mut contest, row, None, winner);
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

/// The key of a row.
pub(crate) fn key<'a>(intake: &Intake<'a>, row: &NewRow) -> Key<'a> {
    let (delivery, sensor, reading) = intake.row(row);
    (delivery.device.as_str(), sensor, reading.observed_at)
}
