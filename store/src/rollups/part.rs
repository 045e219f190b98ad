//! What some numbers are together, made from them one after the other or from other parts, in any order. All but the
//! rounding of the mean is the same whichever way.

use std::collections::BTreeMap;

use schema::ObservedAt;

use super::super::history::{Bucket, Sums};
use super::{HOUR, MINUTE, hour_of};

/// From so many numbers on an hour has minutes: with fewer a row a minute would cost more than it saves.
pub(crate) const MINUTES_FROM: u64 = 600;

/// What some numbers are together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    pub(crate) sums: Sums,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The earliest, and when it was observed, in microseconds.
    pub(crate) first: (i64, f64),
    /// The latest.
    pub(crate) last: (i64, f64),
}

/// A row of a table of rollups: when it begins in microseconds, and of which quality it is.
pub(crate) type Key = (i64, i16);

/// The rollups of one hour.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hour {
    pub(crate) hours: Vec<(Key, Part)>,
    /// Empty where the hour has few numbers.
    pub(crate) minutes: Vec<(Key, Part)>,
}

impl Part {
    /// One number.
    pub(crate) fn one(at: i64, number: f64) -> Self {
        let is_big = number.abs() >= BIG;
        Self {
            sums: Sums {
                count: 1,
                small: if is_big { 0.0 } else { number },
                big: if is_big { number * SCALE } else { 0.0 },
            },
            low: number,
            high: number,
            first: (at, number),
            last: (at, number),
        }
    }

    /// Takes the numbers of another part in.
    pub(crate) fn join(&mut self, other: &Self) {
        self.sums.count += other.sums.count;
        self.sums.small += other.sums.small;
        self.sums.big += other.sums.big;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        if other.first.0 < self.first.0 {
            self.first = other.first;
        }
        if other.last.0 > self.last.0 {
            self.last = other.last;
        }
    }

    /// As the bucket that begins at a time.
    pub(crate) fn bucket(&self, start: i64) -> Bucket {
        Bucket {
            start: ObservedAt::from_micros(start),
            count: self.sums.count,
            min: self.low,
            max: self.high,
            mean: self.sums.mean(self.low, self.high),
            first: self.first.1,
            last: self.last.1,
        }
    }
}

/// Parts by a key.
#[derive(Debug)]
pub(crate) struct Parts<K>(pub(crate) BTreeMap<K, Part>);

impl<K: Ord> Default for Parts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Parts<K> {
    pub(crate) fn add(&mut self, key: K, part: &Part) {
        self.0
            .entry(key)
            .and_modify(|held| held.join(part))
            .or_insert(*part);
    }
}

impl Parts<Key> {
    /// Takes in one number of a quality, of the hour that these are the minutes of.
    pub(crate) fn number(&mut self, at: i64, quality: i16, number: f64) {
        let minute = at.div_euclid(MINUTE) * MINUTE;
        self.add((minute, quality), &Part::one(at, number));
    }

    /// The rollups of the hour that these are the minutes of.
    pub(crate) fn hour(self) -> Hour {
        let mut hours = Self::default();
        for ((minute, quality), part) in &self.0 {
            hours.add((hour_of(*minute), *quality), part);
        }
        let numbers: u64 = hours.0.values().map(|part| part.sums.count).sum();
        let has_minutes = numbers >= MINUTES_FROM;
        debug_assert!(hours.0.keys().all(|(at, _)| at.rem_euclid(HOUR) == 0));
        Hour {
            hours: hours.0.into_iter().collect(),
            minutes: match has_minutes {
                true => self.0.into_iter().collect(),
                false => Vec::new(),
            },
        }
    }
}

/// From here on numbers are big, and what those are summed with: as `big!` and `scale!` say in SQL.
const BIG: f64 = 1e290;
const SCALE: f64 = 1.0 / (1_u64 << 40) as f64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::super::history::{big, scale};
    use super::*;

    #[test]
    fn what_is_big_is_so_in_sql_too() {
        let parsed = |text: &str| text.parse::<f64>().unwrap();
        assert_eq!((BIG, SCALE), (parsed(big!()), parsed(scale!())));
    }

    #[test]
    fn an_hour_has_minutes_from_so_many_numbers_on() {
        for (numbers, minutes) in [(599, 0), (600, 60), (601, 60)] {
            let mut parts = Parts::default();
            for number in 0..numbers {
                // Two qualities, which count together.
                let quality = i16::from(number % 60 == 59);
                parts.number(HOUR + number * (HOUR / 601), quality, number as f64);
            }
            let hour = parts.hour();
            let kept: BTreeSet<i64> = hour.minutes.iter().map(|((at, _), _)| *at).collect();
            assert_eq!(kept.len(), minutes, "{numbers}");
            let count: u64 = hour.hours.iter().map(|(_, part)| part.sums.count).sum();
            assert_eq!(count, numbers as u64);
            assert!(hour.hours.iter().all(|((at, _), _)| *at == HOUR));
        }
        assert_eq!(Parts::default().hour(), Hour::default());
    }

    proptest! {
        /// Cut anywhere and joined in any order, it is the same.
        #[test]
        fn parts_of_parts_are_the_same(
            numbers in prop::collection::vec((0..1000i64, prop_oneof![-1e3..1e3f64, Just(f64::MAX), Just(-2e290)]), 1..60),
            cut in 0..60usize,
        ) {
            let mut seen = BTreeMap::new();
            for (at, number) in numbers {
                seen.insert(at, number);
            }
            let ones: Vec<Part> = seen.iter().map(|(at, number)| Part::one(*at, *number)).collect();
            let joined = |parts: &[Part]| parts.iter().copied().reduce(|mut a, b| {
                a.join(&b);
                a
            });
            let whole = joined(&ones).unwrap();
            let (left, right) = ones.split_at(cut.min(ones.len()));
            let mut halves: Vec<Part> = [joined(right), joined(left)].into_iter().flatten().collect();
            halves.reverse();
            let again = joined(&halves).unwrap();
            let exact = |part: &Part| (part.sums.count, part.low, part.high, part.first, part.last);
            prop_assert_eq!(exact(&whole), exact(&again));
            let (a, b) = (whole.bucket(0), again.bucket(0));
            let size = a.min.abs().max(a.max.abs()).max(1e-300);
            prop_assert!((a.mean - b.mean).abs() / size < 1e-12);
        }
    }
}
