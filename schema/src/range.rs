//! Ranges of sequences, and sets of them: the arithmetic under acknowledgements and the ledger.
//!
//! Invariant of [`RangeSet`]: ranges ascend, do not overlap and do not touch, so that a set has
//! one representation and its size is the number of gaps plus one.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// Sequences `first..=last` of one epoch; never empty, and from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SeqRange {
    first: u64,
    last: u64,
}

/// A set of sequences, kept as ascending ranges with gaps between them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RangeSet {
    ranges: Vec<SeqRange>,
}

/// Up to this many ranges are added or taken out one at a time.
const FEW_RANGES: usize = 4;

impl SeqRange {
    /// The range `first..=last`, or `None` when it would be empty or hold 0.
    #[must_use]
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first == 0 || last < first {
            return None;
        }
        Some(Self { first, last })
    }

    /// The range of one sequence, or `None` for 0.
    #[must_use]
    pub const fn one(seq: u64) -> Option<Self> {
        Self::new(seq, seq)
    }

    /// The lowest sequence.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The highest sequence.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.last
    }

    /// How many sequences the range holds, at least 1.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.last - self.first + 1
    }

    /// Whether the range holds `seq`.
    #[must_use]
    pub const fn contains(self, seq: u64) -> bool {
        self.first <= seq && seq <= self.last
    }

    /// What both ranges hold.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[SeqRange] {
        &self.ranges
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = SeqRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many sequences the set holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.iter().map(SeqRange::count).sum()
    }

    /// The lowest sequence.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.ranges.first().map(|range| range.first)
    }

    /// The highest sequence.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|range| range.last)
    }

    /// Whether the set holds `seq`.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.last < seq);
        self.ranges.get(at).is_some_and(|range| range.first <= seq)
    }

    /// Whether the set holds all of `range`.
    #[must_use]
    pub fn contains_range(&self, range: SeqRange) -> bool {
        let at = self.ranges.partition_point(|r| r.last < range.first);
        self.ranges
            .get(at)
            .is_some_and(|r| r.first <= range.first && range.last <= r.last)
    }

    /// Adds a range, joining it with those it overlaps or touches.
    pub fn insert(&mut self, range: SeqRange) {
        let from = self
            .ranges
            .partition_point(|r| r.last.saturating_add(1) < range.first);
        let to = self
            .ranges
            .partition_point(|r| r.first <= range.last.saturating_add(1));
        let joined = self.ranges[from..to].iter().fold(range, |all, r| SeqRange {
            first: all.first.min(r.first),
            last: all.last.max(r.last),
        });
        self.ranges.splice(from..to, [joined]);
    }

    /// Takes a range out, splitting the range it lies within.
    pub fn remove(&mut self, range: SeqRange) {
        let from = self.ranges.partition_point(|r| r.last < range.first);
        let to = self.ranges.partition_point(|r| r.first <= range.last);
        if from >= to {
            return;
        }
        let left = SeqRange::new(self.ranges[from].first, range.first.saturating_sub(1));
        let right = range
            .last
            .checked_add(1)
            .and_then(|first| SeqRange::new(first, self.ranges[to - 1].last));
        self.ranges.splice(from..to, left.into_iter().chain(right));
    }

    /// What of `within` the set does not hold, ascending.
    #[must_use]
    pub fn gaps(&self, within: SeqRange) -> Self {
        let mut gaps = Self {
            ranges: vec![within],
        };
        let from = self.ranges.partition_point(|r| r.last < within.first);
        for range in &self.ranges[from..] {
            if range.first > within.last {
                break;
            }
            gaps.remove(*range);
        }
        gaps
    }

    /// Adds all that `other` holds. Linear in both sets, unlike inserting one range at a time,
    /// which moves the rest of the set for each.
    pub fn merge(&mut self, other: &Self) {
        if other.ranges.len() <= FEW_RANGES {
            self.extend(other.iter());
            return;
        }
        let mut ranges: Vec<SeqRange> = Vec::with_capacity(self.ranges.len() + other.ranges.len());
        let mut left = self.ranges.iter().copied().peekable();
        let mut right = other.ranges.iter().copied().peekable();
        loop {
            let next = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) if a.first <= b.first => left.next(),
                (_, Some(_)) => right.next(),
                (_, None) => left.next(),
            };
            let Some(next) = next else { break };
            match ranges.last_mut() {
                Some(last) if next.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(next.last);
                }
                _ => ranges.push(next),
            }
        }
        self.ranges = ranges;
    }

    /// Takes out all that `other` holds. Linear in both sets, unlike removing one range at a time.
    pub fn subtract(&mut self, other: &Self) {
        if other.ranges.len() <= FEW_RANGES {
            for range in other.iter() {
                self.remove(range);
            }
            return;
        }
        let mut ranges = Vec::with_capacity(self.ranges.len());
        let mut cuts = other.ranges.as_slice();
        for range in self.iter() {
            let mut first = range.first;
            loop {
                match cuts {
                    [cut, rest @ ..] if cut.last < first => cuts = rest,
                    // Not taken off the list: it may reach into the next range as well.
                    [cut, ..] if cut.first <= range.last => {
                        ranges.extend(
                            SeqRange::new(first, cut.first - 1).filter(|_| first < cut.first),
                        );
                        match cut.last.checked_add(1).filter(|next| *next <= range.last) {
                            Some(next) => first = next,
                            None => break,
                        }
                    }
                    _ => {
                        ranges.extend(SeqRange::new(first, range.last));
                        break;
                    }
                }
            }
        }
        self.ranges = ranges;
    }

    /// What both sets hold.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (0, 0);
        let mut ranges = Vec::new();
        while let (Some(&left), Some(&right)) = (self.ranges.get(a), other.ranges.get(b)) {
            ranges.extend(left.intersection(right));
            if left.last < right.last {
                a += 1;
            } else {
                b += 1;
            }
        }
        Self { ranges }
    }
}

impl Extend<SeqRange> for RangeSet {
    fn extend<I: IntoIterator<Item = SeqRange>>(&mut self, ranges: I) {
        for range in ranges {
            self.insert(range);
        }
    }
}

impl FromIterator<SeqRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = SeqRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl<'de> Deserialize<'de> for SeqRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "SeqRange")]
        struct Raw {
            first: u64,
            last: u64,
        }
        let Raw { first, last } = Raw::deserialize(deserializer)?;
        Self::new(first, last)
            .ok_or_else(|| D::Error::custom(format_args!("{first}..={last} is no sequence range")))
    }
}

impl fmt::Display for SeqRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = SeqRange> {
        (1..40u64, 0..8u64).prop_map(|(first, more)| SeqRange {
            first,
            last: first + more,
        })
    }

    fn check_invariant(set: &RangeSet) {
        for pair in set.ranges.windows(2) {
            assert!(pair[0].last + 1 < pair[1].first, "{set:?} touches");
        }
        for range in &set.ranges {
            assert!(range.first >= 1 && range.first <= range.last);
        }
    }

    fn model(set: &RangeSet) -> BTreeSet<u64> {
        set.iter().flat_map(|r| r.first..=r.last).collect()
    }

    proptest! {
        #[test]
        fn a_set_behaves_as_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), range()), 0..60), probe in range()) {
            let mut set = RangeSet::new();
            let mut numbers = BTreeSet::new();
            for (add, range) in steps {
                if add {
                    set.insert(range);
                    numbers.extend(range.first..=range.last);
                } else {
                    set.remove(range);
                    numbers.retain(|n| !range.contains(*n));
                }
                check_invariant(&set);
                prop_assert_eq!(model(&set), numbers.clone());
                prop_assert_eq!(set.count(), numbers.len() as u64);
            }
            for n in 0..60 {
                prop_assert_eq!(set.contains(n), numbers.contains(&n));
            }
            prop_assert_eq!(set.contains_range(probe), (probe.first..=probe.last).all(|n| numbers.contains(&n)));
            let gaps = set.gaps(probe);
            check_invariant(&gaps);
            prop_assert_eq!(model(&gaps), (probe.first..=probe.last).filter(|n| !numbers.contains(n)).collect());
        }

        #[test]
        fn whole_sets_are_added_and_taken_out(a in prop::collection::vec(range(), 0..20), b in prop::collection::vec(range(), 0..20)) {
            let (a, b): (RangeSet, RangeSet) = (a.into_iter().collect(), b.into_iter().collect());
            let mut both = a.clone();
            both.merge(&b);
            check_invariant(&both);
            prop_assert_eq!(model(&both), &model(&a) | &model(&b));
            let mut rest = a.clone();
            rest.subtract(&b);
            check_invariant(&rest);
            prop_assert_eq!(model(&rest), &model(&a) - &model(&b));
        }

        #[test]
        fn an_intersection_holds_what_both_hold(a in prop::collection::vec(range(), 0..20), b in prop::collection::vec(range(), 0..20)) {
            let (a, b): (RangeSet, RangeSet) = (a.into_iter().collect(), b.into_iter().collect());
            let both = a.intersection(&b);
            check_invariant(&both);
            prop_assert_eq!(model(&both), &model(&a) & &model(&b));
        }
    }

    #[test]
    fn the_ends_of_the_number_line_do_not_overflow() {
        let mut set = RangeSet::new();
        set.insert(SeqRange::new(u64::MAX, u64::MAX).unwrap());
        set.insert(SeqRange::new(1, u64::MAX - 1).unwrap());
        assert_eq!(set.as_slice(), [SeqRange::new(1, u64::MAX).unwrap()]);
        set.remove(SeqRange::new(1, u64::MAX).unwrap());
        assert!(set.is_empty());
        assert!(SeqRange::new(0, 5).is_none());
        assert!(SeqRange::new(5, 4).is_none());
    }
}
