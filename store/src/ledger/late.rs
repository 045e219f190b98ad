//! Which rows may come under a key that is taken: pure, a guess that costs little and is never relied on. Whoever
//! writes without a look at a key that is taken after all hears so from the database, and looks then.
//!
//! Nearly every reading is later than all before it, and so the first of its key. One that is not is *late*: a scan
//! that is repeated, a replay, a source whose clock steps. Late rows are looked for in the table before they are written,
//! but for a file of which so many were looked for in vain that it is known to be only out of order.

use std::collections::{HashMap, HashSet};

use schema::ObservedAt;

use super::contest::{Contest, Key};
use super::plan::{Intake, NewRow};
use super::{EpochState, contest};

/// So many late rows of a file in a row that met nothing: no more are looked for until one does.
const VAIN_MAX: u32 = 512;

/// Marks which of `rows`, each file's together and by sequence, are late, and which are to be compared because two of
/// them have one key. Returns the places of those for which to look in the table.
pub(crate) fn suspects(
    intake: &Intake<'_>,
    rows: &mut [NewRow],
    states: &[Option<EpochState>],
) -> Vec<usize> {
    let mut suspects = Vec::new();
    let mut at = 0;
    for file in rows.chunk_by_mut(|a, b| a.group == b.group) {
        let state = states.get(file[0].group as usize).and_then(Option::as_ref);
        let (newest, contested, vain) = state.map_or((None, false, 0), |state| {
            (state.newest(), state.contested, state.vain)
        });
        if mark_late(intake, file, newest) {
            mark_twins(intake, file);
        }
        let looks = |row: &NewRow| contested || (row.is_late && vain < VAIN_MAX);
        let places = file.iter().enumerate().filter(|(_, row)| looks(row));
        suspects.extend(places.map(|(place, _)| at + place));
        at += file.len();
    }
    suspects
}

/// Marks all of `rows` that share a key, of whatever files.
pub(crate) fn mark_twins(intake: &Intake<'_>, rows: &mut [NewRow]) {
    let mut first: HashMap<Key<'_>, usize> = HashMap::with_capacity(rows.len());
    for at in 0..rows.len() {
        if let Some(twin) = first.insert(contest::key(intake, &rows[at]), at) {
            rows[twin].is_compared = true;
            rows[at].is_compared = true;
        }
    }
}

/// Marks those of a file that are not later than all before them: what was observed at the newest time of an earlier
/// write, too, though mostly of another sensor. Returns whether any key may be in the file's rows twice.
fn mark_late(intake: &Intake<'_>, file: &mut [NewRow], mut newest: Option<ObservedAt>) -> bool {
    let mut any = false;
    let mut is_newest_here = false;
    let mut sensors: HashSet<&str> = HashSet::new();
    for row in file {
        let (_, sensor, reading) = intake.row(row);
        if newest.is_none_or(|newest| reading.observed_at > newest) {
            newest = Some(reading.observed_at);
            is_newest_here = true;
            sensors.clear();
        }
        let is_newest = newest == Some(reading.observed_at);
        // One that repeats a row of this write is compared with that one, which nothing says is in the table.
        row.is_late = !(is_newest && is_newest_here);
        any |= row.is_late || !sensors.insert(sensor);
    }
    any
}

/// What is known of how often rows of a file meet others, in some of its rows that were looked for.
pub(crate) fn looked(state: &mut EpochState, rows: usize, found: usize) {
    state.vain = match found {
        0 => {
            let rows = u32::try_from(rows).unwrap_or(u32::MAX);
            state.vain.saturating_add(rows)
        }
        _ => 0,
    };
}

/// Groups of a part in which rows met the table where nothing foretold it, or nearly everywhere: all their next rows are
/// to be looked for.
pub(crate) fn unforeseen(contest: &Contest, part: &[NewRow]) -> Vec<u32> {
    let mut meetings: HashMap<u32, (usize, bool)> = HashMap::new();
    for loser in contest.met() {
        let (met, unforeseen) = meetings.entry(loser.row.group).or_default();
        *met += 1;
        *unforeseen |= !loser.row.is_late;
    }
    if meetings.is_empty() {
        return Vec::new();
    }
    let files = part.chunk_by(|a, b| a.group == b.group);
    files
        .filter(|rows| {
            let of = meetings.get(&rows[0].group);
            of.is_some_and(|(met, unforeseen)| *unforeseen || 2 * met > rows.len())
        })
        .map(|rows| rows[0].group)
        .collect()
}

#[cfg(test)]
mod tests {
    use schema::digest::Digester;
    use schema::time::ReceivedAt;
    use schema::{Batch, Epoch, Hlc, Quality, Row, Value};

    use super::*;
    use crate::{Delivery, Origin, StoredReading};

    /// Readings of (sensor, time), in the order of their sequences.
    fn delivery(readings: &[(u16, i64)]) -> Delivery {
        let rows = readings.iter().zip(1..).map(|((sensor, millis), seq)| Row {
            sensor: *sensor,
            observed_at: ObservedAt::from_millis(*millis),
            hlc: Hlc::new(seq, 0),
            seq,
            quality: Quality::Good,
            value: Value::Bool(true),
        });
        Delivery {
            device: "d".parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: vec!["a".parse().unwrap(), "b".parse().unwrap()],
                rows: rows.collect(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::default(),
            origin: Origin::Device,
        }
    }

    /// Which are looked for, and which are compared because of one another.
    fn check(readings: &[(u16, i64)], vain: u32, looked: &[usize], compared: &[usize]) {
        let deliveries = [delivery(readings)];
        let mut intake = Intake::new(&deliveries);
        let mut state = EpochState::empty(0, 1);
        state.vain = vain;
        let states = [Some(state)];
        let mut rows = Vec::new();
        intake.select_all(&states, &mut Digester::default(), &mut rows);
        assert_eq!(suspects(&intake, &mut rows, &states), looked);
        let marked: Vec<usize> = (0..rows.len()).filter(|at| rows[*at].is_compared).collect();
        assert_eq!(marked, compared);
    }

    #[test]
    fn rows_of_one_write_that_share_a_key_are_no_reason_to_look_for_all() {
        let deliveries = [delivery(&[(0, 1), (0, 3), (0, 3), (0, 2)])];
        let mut intake = Intake::new(&deliveries);
        let states = [Some(EpochState::empty(0, 1))];
        let mut rows = Vec::new();
        intake.select_all(&states, &mut Digester::default(), &mut rows);
        suspects(&intake, &mut rows, &states);
        let stored = |at: usize| StoredReading {
            sensor: "a".parse().unwrap(),
            observed_at: ObservedAt::from_millis([1, 3, 3, 2][at]),
            value: Value::Bool(false),
            quality: Quality::Good,
            version: schema::Version {
                hlc: Hlc::new(0, 0),
                epoch: Epoch::from_random(9),
                seq: 1,
            },
            received_at: ReceivedAt::default(),
        };
        let met = |at: &[usize]| {
            let held = at
                .iter()
                .map(|at| (contest::key(&intake, &rows[*at]), stored(*at)));
            let contest = contest::decide(&intake, &rows, held.collect());
            unforeseen(&contest, &rows)
        };
        assert!(met(&[]).is_empty(), "each met only another of this write");
        assert!(met(&[3]).is_empty(), "the late one met the table");
        assert_eq!(met(&[2]), [0], "nothing foretold that it would");
        assert_eq!(met(&[0, 2, 3]), [0]);
    }

    #[test]
    fn what_is_in_order_is_not_looked_for() {
        check(
            &[(0, 1), (1, 1), (0, 2), (1, 2), (1, 3), (0, 3)],
            0,
            &[],
            &[],
        );
    }

    #[test]
    fn what_is_late_is_looked_for_and_what_is_twice_is_compared() {
        check(&[(0, 1), (1, 3), (0, 2), (0, 4)], 0, &[2], &[]);
        check(&[(0, 1), (0, 1), (1, 1)], 0, &[], &[0, 1]);
        check(&[(0, 1), (0, 2), (0, 1)], 0, &[2], &[0, 2]);
    }

    #[test]
    fn what_is_at_the_newest_time_of_an_earlier_write_is_late_until_something_is_later() {
        let deliveries = [delivery(&[(0, 3), (1, 3), (0, 4), (1, 4), (0, 3), (1, 5)])];
        let mut intake = Intake::new(&deliveries);
        let mut rows = Vec::new();
        let states = [Some(EpochState::empty(0, 1))];
        intake.select_all(&states, &mut Digester::default(), &mut rows);
        let mut late = |newest: Option<i64>| {
            mark_late(&intake, &mut rows, newest.map(ObservedAt::from_millis));
            rows.iter().map(|row| row.is_late).collect::<Vec<_>>()
        };
        assert_eq!(late(None), [false, false, false, false, true, false]);
        assert_eq!(late(Some(2)), [false, false, false, false, true, false]);
        assert_eq!(late(Some(3)), [true, true, false, false, true, false]);
        assert_eq!(late(Some(4)), [true, true, true, true, true, false]);
    }

    #[test]
    fn a_file_that_is_only_out_of_order_is_looked_for_no_more() {
        check(&[(0, 1), (0, 3), (0, 2)], VAIN_MAX, &[], &[]);
        check(&[(0, 1), (0, 2), (0, 1)], VAIN_MAX, &[], &[0, 2]);
    }
}
