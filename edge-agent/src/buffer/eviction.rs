//! What gives way when the buffer is full: the sweep that applies the sensors' policies. Pure.
//!
//! The sweep walks the pending rows from the oldest to the newest, and begins again at the oldest
//! when it reaches the end. On its way it drops rows of sensors that drop their oldest, drops
//! half of the rows of sensors that thin out (so an outage loses resolution evenly, and only then
//! again), and passes over sensors that drop their newest or none. Those give way at the door: an incoming
//! reading of such a sensor is refused to a source that can keep it, and of a source that cannot it is
//! accepted and evicted.
//!
//! In a small buffer a sensor that thins out loses every second row that is left. In a large one that
//! would leave one range of sequences for each row that stays, in memory, in the file and on the wire.
//! There whole *blocks* of rows go, and which of them do at a *level* follows from their number alone:
//!
//! ```text
//! level 0  ████ ████ ████ ████ ████ ████ ████ ████    blocks so large that a few thousand fit the buffer
//! level 1  ████           ████ ████           ████    of each two one stays, drawn by their number, so
//! level 2                 ████ ████                   that no sensor's rhythm meets it; of each four …
//! ```
//!
//! The level rises when a round finds little that it may drop. So an outage of any length is left as
//! an even sample of itself, and a restart goes on with the same one.

use std::collections::HashMap;

use schema::{RangeSet, SeqRange};
use xxhash_rust::xxh3::xxh3_64;

use super::policy::Policy;
use super::row::SensorId;

/// A pending row, as the sweep sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) seq: u64,
    pub(super) sensor: SensorId,
    /// Bytes of the row, as the limit counts them.
    pub(super) bytes: u64,
}

/// How much has to give way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Rows over the limit.
    pub(super) rows: u64,
    /// Bytes over the limit.
    pub(super) bytes: u64,
    /// Rows more, so that a full buffer does not evict in every commit. Of older rows only.
    pub(super) slack_rows: u64,
    /// Bytes more, likewise.
    pub(super) slack_bytes: u64,
    /// The first sequence that the slack may not reach.
    pub(super) fresh_from: u64,
}

/// Blocks that a buffer which thins out is divided into: as many ranges of what stays, and of what
/// went, are at most left, at 16 bytes each in memory and some sixty in the file.
const BLOCKS_MAX: u64 = 4096;

/// The highest level: more blocks than any buffer will ever see.
const LEVEL_MAX: u32 = 40;

/// Where the sweep stands. It is not kept over a restart: it begins again at the oldest.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweep {
    /// The next sequence to look at.
    next: u64,
    /// Rows of a block; 0 or 1 for a buffer that needs none.
    block_rows: u64,
    /// For each sensor that thins out, whether the row before was kept.
    kept: HashMap<SensorId, bool>,
    /// Of each `2^level` blocks one is kept.
    level: u32,
    /// Rows that thin out, of those that this round has looked at, and how many of them went.
    seen: u64,
    gone: u64,
    /// Rounds that have found nothing that may go.
    in_vain: usize,
    /// Whether readings that are to be consolidated go, the oldest first: averaging them frees nothing any more.
    pub(super) drops_consolidated: bool,
}

impl Need {
    /// Whether the buffer is within its limits.
    pub(super) const fn is_met(&self) -> bool {
        self.rows == 0 && self.bytes == 0
    }

    /// Whether the row at `seq` may stay without being looked at.
    pub(super) const fn is_met_at(&self, seq: u64) -> bool {
        self.is_met() && (self.has_slack() || seq >= self.fresh_from)
    }

    /// Whether there is room for a while.
    pub(super) const fn has_slack(&self) -> bool {
        self.is_met() && self.slack_rows == 0 && self.slack_bytes == 0
    }

    pub(super) const fn give(&mut self, bytes: u64) {
        if self.rows > 0 {
            self.rows -= 1;
        } else {
            self.slack_rows = self.slack_rows.saturating_sub(1);
        }
        let more = bytes.saturating_sub(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.slack_bytes = self.slack_bytes.saturating_sub(more);
    }
}

impl Sweep {
    /// Rounds that free nothing after which nothing is left that may give way: the last reading of
    /// a sensor that thins out goes in the second.
    pub(super) const ROUNDS_IN_VAIN_MAX: usize = 3;

    /// The sweep of a buffer that holds so many rows.
    pub(super) fn new(rows_max: u64) -> Self {
        Self {
            block_rows: rows_max.div_ceil(BLOCKS_MAX),
            level: 1,
            ..Self::default()
        }
    }

    /// The next sequence to look at.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Takes note that there is nothing to look at up to `seq`.
    pub(super) const fn pass(&mut self, seq: u64) {
        self.next = seq + 1;
    }

    /// Begins a new round at the oldest row.
    pub(super) const fn begin_again(&mut self) {
        self.next = 0;
        // What is found at this level is worth no further round.
        if self.gone * 8 < self.seen && self.level < LEVEL_MAX {
            self.level += 1;
        }
        self.in_vain = match self.gone {
            0 => self.in_vain + 1,
            _ => 0,
        };
        (self.seen, self.gone) = (0, 0);
    }

    /// There is room again: the next outage begins at the first level. What an earlier one has left stays as
    /// it is at that level.
    pub(super) const fn rest(&mut self) {
        self.level = 1;
        (self.seen, self.gone, self.in_vain) = (0, 0, 0);
    }

    /// Looks at rows in ascending order until enough gives way, and adds those that do to
    /// `victims`. Returns whether it is enough.
    pub(super) fn judge(
        &mut self,
        candidates: &[Candidate],
        mut policy: impl FnMut(SensorId) -> Policy,
        need: &mut Need,
        victims: &mut RangeSet,
    ) -> bool {
        for candidate in candidates {
            if need.is_met_at(candidate.seq) {
                return true;
            }
            debug_assert!(candidate.seq >= self.next);
            self.next = candidate.seq + 1;
            let gives_way = match policy(candidate.sensor) {
                Policy::DropOldest => true,
                Policy::DropNewest | Policy::Never => false,
                // In one that consolidates they are averaged first, and the oldest go when that frees nothing.
                Policy::Consolidate => self.drops_consolidated,
                Policy::ThinOut if self.block_rows > 1 => {
                    // After rounds in vain nothing else is left: then the oldest go.
                    let goes = self.in_vain > 1 || !self.keeps_block_of(candidate.seq);
                    self.seen += 1;
                    self.gone += u64::from(goes);
                    goes
                }
                Policy::ThinOut => {
                    let kept = self.kept.entry(candidate.sensor).or_default();
                    *kept = !*kept;
                    !*kept
                }
            };
            if gives_way {
                victims.extend(SeqRange::one(candidate.seq));
                need.give(candidate.bytes);
            }
        }
        need.has_slack()
    }

    /// Whether the block of a row stays at the level that is reached.
    fn keeps_block_of(&self, seq: u64) -> bool {
        let block = seq / self.block_rows;
        (1..=self.level).all(|level| {
            let group = block >> level;
            let is_upper = block >> (level - 1) & 1;
            let drawn = xxh3_64(&(group ^ u64::from(level) << 56).to_le_bytes()) & 1;
            is_upper == drawn
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sensors 1, 2 and 3 drop their oldest, drop their newest, and thin out.
    fn policy(sensor: SensorId) -> Policy {
        [Policy::DropOldest, Policy::DropNewest, Policy::ThinOut][sensor as usize - 1]
    }

    fn rows(sensors: &[SensorId], from: u64) -> Vec<Candidate> {
        sensors
            .iter()
            .zip(from..)
            .map(|(&sensor, seq)| Candidate {
                seq,
                sensor,
                bytes: 40,
            })
            .collect()
    }

    fn sweep_once(sweep: &mut Sweep, rows: &[Candidate], mut need: Need) -> (Vec<u64>, Need) {
        let mut victims = RangeSet::new();
        sweep.judge(rows, policy, &mut need, &mut victims);
        let seqs = victims.iter().flat_map(|r| r.first()..=r.last()).collect();
        (seqs, need)
    }

    fn rows_over(rows: u64) -> Need {
        Need {
            rows,
            fresh_from: u64::MAX,
            ..Need::default()
        }
    }

    #[test]
    fn each_policy_gives_up_its_own() {
        let rows = rows(&[1, 2, 3, 1, 3, 2, 3, 3], 1);
        let (victims, need) = sweep_once(&mut Sweep::default(), &rows, rows_over(99));
        assert_eq!(victims, [1, 4, 5, 8]);
        assert_eq!(need.rows, 95);
    }

    #[test]
    fn a_sweep_goes_on_where_it_stopped_and_halves_evenly() {
        let all = rows(&[3; 12], 1);
        let mut sweep = Sweep::default();
        let (first, need) = sweep_once(&mut sweep, &all, rows_over(2));
        assert!(need.is_met());
        assert_eq!(first, [2, 4]);
        let rest = &all[sweep.next() as usize - 1..];
        let (second, _) = sweep_once(&mut sweep, rest, rows_over(99));
        assert_eq!(second, [6, 8, 10, 12]);
        sweep.begin_again();
        let left: Vec<_> = all.iter().copied().filter(|c| c.seq % 2 == 1).collect();
        assert_eq!(sweep_once(&mut sweep, &left, rows_over(99)).0, [3, 7, 11]);
    }

    #[test]
    fn the_last_row_of_a_thinned_sensor_gives_way_in_the_second_round() {
        let row = rows(&[3], 7);
        let mut sweep = Sweep::default();
        assert!(sweep_once(&mut sweep, &row, rows_over(1)).0.is_empty());
        sweep.begin_again();
        assert_eq!(sweep_once(&mut sweep, &row, rows_over(1)).0, [7]);
    }

    /// An outage of many times what fits, of sensors with rhythms of their own.
    #[test]
    fn a_large_buffer_thins_out_evenly_and_in_few_ranges() {
        const ROWS_MAX: u64 = 100_000;
        let rhythms = [1u64, 2, 7, 24, 25, 48, 50, 100];
        let sensor_of = |seq: u64| {
            let slot = rhythms.iter().rposition(|every| seq.is_multiple_of(*every));
            slot.unwrap_or(0) as SensorId
        };
        let mut sweep = Sweep::new(ROWS_MAX);
        let mut held = RangeSet::new();
        let (mut ranges_max, outage) = (0, 20 * ROWS_MAX);
        for last in (1_000..=outage).step_by(1_000) {
            held.insert(SeqRange::new(last - 999, last).unwrap());
            let over = held.count().saturating_sub(ROWS_MAX);
            let mut need = Need {
                rows: over,
                slack_rows: if over > 0 { ROWS_MAX / 128 } else { 0 },
                fresh_from: last - 999,
                ..Need::default()
            };
            let mut rounds = 0;
            while !need.is_met() {
                let ahead = SeqRange::new(sweep.next().max(1), last);
                let rows: Vec<Candidate> = ahead
                    .into_iter()
                    .flat_map(|ahead| {
                        let part = held.intersection(&RangeSet::from_iter([ahead]));
                        let part: Vec<SeqRange> = part.iter().collect();
                        part.into_iter().flat_map(|r| r.first()..=r.last())
                    })
                    .take(4096)
                    .map(|seq| Candidate {
                        seq,
                        sensor: sensor_of(seq),
                        bytes: 40,
                    })
                    .collect();
                if rows.is_empty() {
                    sweep.begin_again();
                    rounds += 1;
                    assert!(rounds < 4, "nothing gives way");
                    continue;
                }
                let mut victims = RangeSet::new();
                sweep.judge(&rows, |_| Policy::ThinOut, &mut need, &mut victims);
                held.subtract(&victims);
            }
            ranges_max = ranges_max.max(held.as_slice().len());
        }
        assert!(ranges_max as u64 <= BLOCKS_MAX + 64, "{ranges_max} ranges");
        // No more is given up than must be, but for what a level takes.
        assert!(held.count() > ROWS_MAX / 3, "{} rows", held.count());
        // Every hundredth part of the outage is there, and every sensor, as much as others.
        let part = outage / 100;
        let share = held.count() / 100;
        for n in 0..100 {
            let part = SeqRange::new(n * part + 1, (n + 1) * part).unwrap();
            let there = held.intersection(&RangeSet::from_iter([part])).count();
            assert!(
                there > share / 4,
                "{there} rows of part {n}, {share} on average"
            );
        }
        let all = held.iter().flat_map(|r| r.first()..=r.last());
        let mut of_sensor = [0u64; 8];
        for seq in all {
            of_sensor[sensor_of(seq) as usize] += 1;
        }
        for (slot, found) in of_sensor.iter().enumerate() {
            let taken = (1..=outage)
                .filter(|seq| sensor_of(*seq) as usize == slot)
                .count() as u64;
            let fair = taken * held.count() / outage;
            assert!(
                *found > fair / 3,
                "sensor {slot}: {found} of {taken}, {fair} would be fair"
            );
        }
    }

    #[test]
    fn the_last_block_of_a_thinned_buffer_gives_way_in_the_end() {
        let mut sweep = Sweep::new(100 * BLOCKS_MAX);
        let rows = rows(&[3; 50], 100);
        let mut gone = 0;
        let mut left = rows;
        for _ in 0..Sweep::ROUNDS_IN_VAIN_MAX {
            let went = sweep_once(&mut sweep, &left, rows_over(99)).0;
            left.retain(|row| !went.contains(&row.seq));
            gone += went.len();
            sweep.begin_again();
        }
        assert_eq!(gone, 50);
    }

    #[test]
    fn bytes_count_as_well_as_rows() {
        let mut rows = rows(&[1; 5], 1);
        rows[0].bytes = 1000;
        let need = Need {
            bytes: 1040,
            fresh_from: u64::MAX,
            ..Need::default()
        };
        assert_eq!(sweep_once(&mut Sweep::default(), &rows, need).0, [1, 2]);
    }

    #[test]
    fn slack_is_made_of_older_rows_only() {
        let rows = rows(&[1; 10], 1);
        let need = Need {
            rows: 2,
            slack_rows: 5,
            fresh_from: 5,
            ..Need::default()
        };
        let (victims, need) = sweep_once(&mut Sweep::default(), &rows, need);
        assert_eq!(victims, [1, 2, 3, 4]);
        assert!(need.is_met() && !need.has_slack());
    }
}
