//! How a full buffer averages readings instead of dropping them. Pure.
//!
//! A *group* of neighbouring rows, all of one epoch and never sent, gives way to fewer: of each sensor so many consecutive
//! readings become one, their mean. The means take the last rows of the group, in the order of the last reading in each, so
//! that what is evicted is one range and what stays is another, whatever the rhythm of the sensors:
//!
//! ```text
//! group       1 a=10   2 b=1    3 a=20   4 b=3    5 a=30   6 b=3
//! by two      ╰──────────────╮  a=15     b=2      a=30     b=3
//! after it    evicted 1–2    ╰  3 a=15   4 b=2    5 a=30   6 b=3        rows keep sequence and clock
//! ```
//!
//! A row is a place in the order of what is sent, and says what it says from the first time that it is sent. Nothing that was
//! sent ever changes: who calls this leaves such rows out.
//!
//! The *level* says of how many readings a mean is made, `2^level`. It rises when a round frees little, as it does for a sensor that
//! thins out: so an outage of any length is left at one resolution, not in ever coarser parts towards its beginning.

use std::collections::HashMap;

use schema::{Quality, RangeSet, SeqRange, Value};

use super::row::{Key, SensorId, text_bytes};

/// Rows of a group, at most. The groups of a million rows leave a thousand ranges.
const GROUP_ROWS_MAX: u64 = 1024;

/// Rows of a small buffer's group, at least.
const GROUP_ROWS_MIN: u64 = 4;

/// How many times larger a group is where one gave nothing: there are more sensors than rows in it.
const GROUP_GROWTH: u64 = 8;

/// The highest level: a mean of a million readings.
const LEVEL_MAX: u32 = 20;

/// Rounds that free nothing after which the oldest go.
const ROUNDS_IN_VAIN: u32 = 2;

/// A row that may be consolidated.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) key: Key,
    pub(super) quality: Quality,
    pub(super) value: Value,
    /// The level that it is at.
    pub(super) level: u32,
}

/// What becomes of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Merged {
    /// Rows that go.
    pub(super) victims: RangeSet,
    /// Rows that say something else now.
    pub(super) changed: Vec<(Key, Quality, Value)>,
    /// Bytes of text that the changed ones had.
    pub(super) text_bytes_before: u64,
}

/// How far the rows are consolidated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Levels {
    /// The level of this round.
    level: u32,
    /// The last row that this round has brought to it.
    at: u64,
    /// The last row of the rounds before, and its level.
    before: (u64, u32),
    /// Rows that this round has looked at, and those that went.
    seen: u64,
    gone: u64,
    in_vain: u32,
}

/// The mean of some readings of one sensor in the making.
struct Mean {
    sum: Sum,
    quality: Quality,
    count: u64,
    /// Readings in it, also those that do not count.
    parts: u64,
    level: u32,
    /// Where the last one stands in the group.
    last: usize,
}

enum Sum {
    Whole(i128),
    Real(f64),
    /// A truth or a text: the last.
    Last(Value),
}

impl Levels {
    /// Rounds in a row that free nothing after which nothing is left that may give way: the first may begin behind the
    /// last row, two average nothing, and the next one drops.
    pub(super) const ROUNDS_IN_VAIN_MAX: usize = 4;

    /// As a file has it.
    pub(super) fn restore([at, before, _, levels]: [u64; 4]) -> Self {
        let level = |number: u64| u32::try_from(number).unwrap_or(LEVEL_MAX).min(LEVEL_MAX);
        Self {
            level: level(levels >> 8 & 0xff),
            at,
            before: (before, level(levels & 0xff)),
            ..Self::default()
        }
    }

    /// As a file keeps it, if there is anything to keep.
    pub(super) fn numbers(&self) -> Option<[u64; 4]> {
        let (before, level_before) = self.before;
        let levels = u64::from(self.level) << 8 | u64::from(level_before);
        (self.level > 0).then_some([self.at, before, 0, levels])
    }

    /// Rows of the next group in a buffer of so many.
    pub(super) fn group_rows(&self, rows_max: u64) -> usize {
        let rows = (rows_max / 2).clamp(GROUP_ROWS_MIN, GROUP_ROWS_MAX);
        let rows = if self.in_vain > 0 {
            rows * GROUP_GROWTH
        } else {
            rows
        };
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// The level that a row is at.
    pub(super) const fn of(&self, row: u64) -> u32 {
        let (last, level) = self.before;
        if row <= self.at {
            self.level
        } else if row <= last {
            level
        } else {
            0
        }
    }

    /// Whether a row at this level is to be averaged with others.
    pub(super) fn wants(&self, level: u32) -> bool {
        level < self.goal()
    }

    fn goal(&self) -> u32 {
        self.level.max(1)
    }

    /// Whether averaging frees nothing any more, so that the oldest have to go.
    pub(super) const fn is_in_vain(&self) -> bool {
        self.in_vain >= ROUNDS_IN_VAIN
    }

    /// So many rows up to this one were looked at, and so many went.
    pub(super) fn note(&mut self, row: u64, seen: u64, gone: u64) {
        self.level = self.goal();
        self.at = self.at.max(row);
        self.seen += seen;
        self.gone += gone;
    }

    /// A new round begins at the oldest row.
    pub(super) fn begin_again(&mut self) {
        if self.at == 0 {
            return;
        }
        self.before = (self.at.max(self.before.0), self.level);
        self.at = 0;
        self.in_vain = match self.gone {
            0 => self.in_vain + 1,
            _ => 0,
        };
        if self.gone * 8 < self.seen && self.level < LEVEL_MAX {
            self.level += 1;
        }
        (self.seen, self.gone) = (0, 0);
    }

    /// There is room again: the next outage begins at the first level.
    /// Returns whether that is news.
    pub(super) fn rest(&mut self) -> bool {
        let is_news = self.level > 0;
        *self = Self::default();
        is_news
    }

    /// Averages a group: rows ascending, of one epoch.
    pub(super) fn merge(&self, group: &[Part]) -> Merged {
        let mut open: HashMap<SensorId, Mean> = HashMap::new();
        let mut means: Vec<Mean> = Vec::new();
        for (place, part) in group.iter().enumerate() {
            let many = 1 << self.goal().saturating_sub(part.level);
            if let Some(mean) = open.get_mut(&part.key.sensor) {
                let goes_on = mean.parts < many && mean.level == part.level;
                if goes_on && mean.add(part, place) {
                    continue;
                }
                means.extend(open.remove(&part.key.sensor));
            }
            open.insert(part.key.sensor, Mean::begin(part, place));
        }
        means.extend(open.into_values());
        means.sort_unstable_by_key(|mean| mean.last);
        let gone = group.len() - means.len();
        let mut merged = Merged::default();
        if gone == 0 {
            return merged;
        }
        let victims = group[..gone].iter().map(|part| part.key.seq);
        merged.victims.extend(victims.filter_map(SeqRange::one));
        for (slot, mean) in group[gone..].iter().zip(means) {
            let last = &group[mean.last];
            if mean.parts == 1 && last.key.seq == slot.key.seq {
                continue;
            }
            let key = Key {
                seq: slot.key.seq,
                hlc: slot.key.hlc,
                has_position: slot.key.has_position,
                ..last.key
            };
            merged.text_bytes_before += text_bytes(&slot.value);
            merged.changed.push((key, mean.quality, mean.value()));
        }
        merged
    }
}

impl Mean {
    fn begin(part: &Part, place: usize) -> Self {
        Self {
            sum: Sum::of(&part.value),
            quality: part.quality,
            count: 1,
            parts: 1,
            level: part.level,
            last: place,
        }
    }

    /// Takes another one in, unless it is of another kind. Readings of the best quality alone count.
    fn add(&mut self, part: &Part, place: usize) -> bool {
        let (ours, new) = (u8::from(self.quality), u8::from(part.quality));
        if !self.sum.is_alike(&part.value) {
            return false;
        }
        if new < ours {
            (self.sum, self.quality, self.count) = (Sum::of(&part.value), part.quality, 1);
        } else if new == ours {
            self.count += 1;
            self.sum.add(&part.value, self.count);
        }
        self.parts += 1;
        self.last = place;
        true
    }

    fn value(self) -> Value {
        let count = i128::from(self.count.max(1));
        match self.sum {
            // To the nearest, so that a sensor that counts goes on to do so.
            Sum::Whole(sum) => {
                let half = if sum < 0 { -count / 2 } else { count / 2 };
                let mean = (sum + half) / count;
                Value::I64(i64::try_from(mean).unwrap_or(i64::MAX))
            }
            Sum::Real(mean) => Value::F64(mean),
            Sum::Last(value) => value,
        }
    }
}

impl Sum {
    fn of(value: &Value) -> Self {
        match value {
            Value::I64(number) => Self::Whole(i128::from(*number)),
            Value::F64(number) => Self::Real(*number),
            Value::Bool(_) | Value::Text(_) => Self::Last(value.clone()),
        }
    }

    /// Whether both are averaged in the same way: a sensor that changes its kind is two series.
    fn is_alike(&self, value: &Value) -> bool {
        matches!(
            (self, value),
            (Self::Whole(_), Value::I64(_))
                | (Self::Real(_), Value::F64(_))
                | (Self::Last(Value::Bool(_)), Value::Bool(_))
                | (Self::Last(Value::Text(_)), Value::Text(_))
        )
    }

    /// `count` readings with this one.
    fn add(&mut self, value: &Value, count: u64) {
        match (self, value) {
            (Self::Whole(sum), Value::I64(number)) => *sum += i128::from(*number),
            (Self::Real(mean), Value::F64(number)) => {
                let count = count as f64;
                // In this form it cannot overflow.
                *mean = *mean * ((count - 1.0) / count) + number / count;
            }
            (Self::Last(last), value) => *last = value.clone(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::{Hlc, ObservedAt};

    trait Plain {
        fn plain(self) -> Value;
    }

    impl Plain for f64 {
        fn plain(self) -> Value {
            Value::F64(self)
        }
    }

    impl Plain for i64 {
        fn plain(self) -> Value {
            Value::I64(self)
        }
    }

    impl Plain for bool {
        fn plain(self) -> Value {
            Value::Bool(self)
        }
    }

    impl Plain for Value {
        fn plain(self) -> Value {
            self
        }
    }

    fn part(seq: u64, sensor: SensorId, value: impl Plain) -> Part {
        Part {
            key: Key {
                seq,
                hlc: Hlc::new(1_000 + seq, 0),
                observed_at: ObservedAt::from_millis(seq as i64),
                sensor,
                is_given: true,
                has_position: false,
            },
            quality: Quality::Good,
            value: value.plain(),
            level: 0,
        }
    }

    fn at_level(level: u32) -> Levels {
        Levels {
            level,
            ..Levels::default()
        }
    }

    /// What stands in the rows after it: sequence, sensor, time and value.
    fn after(group: &[Part], level: u32) -> Vec<(u64, SensorId, i64, Value)> {
        let merged = at_level(level).merge(group);
        let mut rows: Vec<Part> = group.to_vec();
        rows.retain(|part| !merged.victims.contains(part.key.seq));
        for (key, quality, value) in merged.changed {
            let row = rows.iter_mut().find(|row| row.key.seq == key.seq).unwrap();
            assert_eq!(row.key.hlc, key.hlc, "a row keeps its clock");
            (row.key, row.quality, row.value) = (key, quality, value);
        }
        let plain = |row: Part| {
            (
                row.key.seq,
                row.key.sensor,
                row.key.observed_at.micros() / 1000,
                row.value,
            )
        };
        rows.into_iter().map(plain).collect()
    }

    #[test]
    fn pairs_of_each_sensor_become_their_mean_at_the_end_of_the_group() {
        let group = [
            part(1, 1, 10.0),
            part(2, 2, 1i64),
            part(3, 1, 20.0),
            part(4, 2, 4i64),
            part(5, 1, 30.0),
            part(6, 2, -3i64),
        ];
        let expected = [
            (3, 1, 3, Value::F64(15.0)),
            // To the nearest whole number.
            (4, 2, 4, Value::I64(3)),
            (5, 1, 5, Value::F64(30.0)),
            (6, 2, 6, Value::I64(-3)),
        ];
        assert_eq!(after(&group, 1), expected);
        // One that nothing is averaged of stays as it is.
        let merged = at_level(1).merge(&group);
        let changed: Vec<u64> = merged.changed.iter().map(|(key, ..)| key.seq).collect();
        assert_eq!(changed, [3, 4]);
    }

    #[test]
    fn a_sensor_of_another_rhythm_leaves_no_hole() {
        let mut group: Vec<Part> = (1..=9).map(|seq| part(seq, 1, seq as f64)).collect();
        group[4].key.sensor = 2;
        let merged = at_level(1).merge(&group);
        assert_eq!(merged.victims.as_slice(), [SeqRange::new(1, 4).unwrap()]);
        let rows = after(&group, 1);
        let order: Vec<(SensorId, i64)> = rows.iter().map(|row| (row.1, row.2)).collect();
        assert_eq!(order, [(1, 2), (1, 4), (2, 5), (1, 7), (1, 9)]);
    }

    #[test]
    fn readings_of_the_best_quality_count_and_texts_and_truths_are_the_last() {
        let mut group = vec![
            part(1, 1, 5.0),
            part(2, 1, 100.0),
            part(3, 1, 7.0),
            part(4, 1, 9.0),
        ];
        group[1].quality = Quality::Bad;
        group[2].quality = Quality::Uncertain;
        let merged = at_level(2).merge(&group);
        assert_eq!(merged.changed[0].1, Quality::Good);
        assert_eq!(merged.changed[0].2, Value::F64(7.0));
        assert_eq!(merged.changed[0].0.observed_at, ObservedAt::from_millis(4));
        let group = [
            part(1, 1, Value::Text("on".into())),
            part(2, 1, Value::Text("off".into())),
            part(3, 2, true),
            part(4, 2, false),
        ];
        let expected = [
            (3, 1, 2, Value::Text("off".into())),
            (4, 2, 4, Value::Bool(false)),
        ];
        assert_eq!(after(&group, 1), expected);
        assert_eq!(at_level(1).merge(&group).text_bytes_before, 0);
    }

    #[test]
    fn kinds_are_not_mixed_and_large_numbers_do_not_overflow() {
        let group = [
            part(1, 1, 1i64),
            part(2, 1, 1.5),
            part(3, 1, Value::Text("x".into())),
        ];
        assert_eq!(at_level(1).merge(&group), Merged::default());
        let group = [
            part(1, 1, i64::MAX),
            part(2, 1, i64::MAX),
            part(3, 2, f64::MAX),
            part(4, 2, f64::MAX),
        ];
        let values: Vec<Value> = after(&group, 1).into_iter().map(|row| row.3).collect();
        assert_eq!(values, [Value::I64(i64::MAX), Value::F64(f64::MAX)]);
    }

    #[test]
    fn rows_that_earlier_rounds_have_averaged_wait_for_the_others() {
        let mut levels = Levels::default();
        levels.note(100, 100, 50);
        assert!(!levels.wants(levels.of(100)) && levels.wants(levels.of(101)));
        // Half of it went: the next round is for what is new.
        levels.begin_again();
        assert!(!levels.wants(levels.of(100)) && levels.wants(levels.of(101)));
        levels.note(200, 100, 10);
        levels.begin_again();
        // Little went: all are averaged again, and what comes later with more at a time.
        assert_eq!((levels.of(150), levels.of(201)), (1, 0));
        assert!(levels.wants(1));
        let new: Vec<Part> = (301..=308).map(|seq| part(seq, 1, seq as f64)).collect();
        assert_eq!(levels.merge(&new).victims.count(), 6);
        let found = Levels::restore(levels.numbers().unwrap());
        assert_eq!((found.of(150), found.of(201), found.level), (1, 0, 2));
        levels.rest();
        assert_eq!(levels.numbers(), None);
    }

    #[test]
    fn a_group_grows_where_one_gives_nothing_and_then_the_oldest_go() {
        let mut levels = Levels::default();
        assert_eq!(levels.group_rows(1_000_000), 1024);
        assert_eq!(levels.group_rows(100), 50);
        assert_eq!(levels.group_rows(1), 4);
        levels.note(10, 10, 0);
        levels.begin_again();
        assert_eq!(levels.group_rows(100), 400);
        assert!(!levels.is_in_vain());
        levels.note(10, 10, 0);
        levels.begin_again();
        assert!(levels.is_in_vain());
    }
}
