//! What the file keeps of the buffer's policies, beside the accounts: how many readings went for which reason, which rows
//! may have been sent, how old rows are, and how far a full buffer is consolidated. Pure; a commit writes what differs.
//!
//! The counts of evicted readings by reason only grow. An account's own count also falls: a reading that went and turns
//! out to be committed counts as committed there. So the sum of these may be more.
//!
//! *Sent* is an upper bound, and is on disk before the rows are read for a batch: what is in it never changes its value. It
//! is kept only where something is consolidated; a file that has none of it may have sent all of its rows.

use std::collections::BTreeMap;

use schema::{Epoch, RangeSet, SeqRange};
use serde::{Deserialize, Serialize};

use super::account::Counts;
use super::age::Ages;
use super::consolidate::Levels;
use super::log::{Entry, Ids, Kind, Write};

/// Most ranges of rows that may have been sent; beyond it gaps between them count as sent.
const SENT_RANGES_MAX: usize = 256;

/// Why a reading was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The buffer was full.
    Full,
    /// It was older than its sensor's `age_max`.
    Age,
    /// It is a part of the mean of another one.
    Consolidated,
    /// Its row was damaged.
    Damaged,
}

/// Readings that were evicted for one reason, over the file's whole life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Evicted {
    pub(super) count: u64,
    /// The lowest and the highest row; others between them may not have gone.
    pub(super) rows: Option<SeqRange>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Keep {
    evicted: [Evicted; Reason::ALL.len()],
    /// Rows that may have been sent; `None` while that is not kept.
    pub(super) sent: Option<RangeSet>,
    pub(super) ages: Ages,
    pub(super) levels: Levels,
}

/// How the file has it: the rows of `sync_log` by what they say.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(BTreeMap<Key, (Numbers, i64)>);

/// The kind of a row, and which one it is.
type Key = (Kind, u64);

/// What a row says: its first and last number, its count and its time.
type Numbers = [u64; 4];

impl Reason {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 4] = [Self::Full, Self::Age, Self::Consolidated, Self::Damaged];

    /// Its name in the file, the status and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Age => "age",
            Self::Consolidated => "consolidated",
            Self::Damaged => "damaged",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl Keep {
    /// Counts rows that go.
    pub(super) fn count(&mut self, reason: Reason, rows: &RangeSet) {
        let Some(evicted) = self.evicted.get_mut(reason.index()) else {
            return;
        };
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return;
        };
        evicted.count = evicted.count.saturating_add(rows.count());
        let before = evicted.rows;
        let first = before.map_or(first, |before| before.first().min(first));
        let last = before.map_or(last, |before| before.last().max(last));
        evicted.rows = SeqRange::new(first, last);
    }

    /// How many went, in the order of [`Reason::ALL`].
    pub(super) fn counts(&self) -> [u64; Reason::ALL.len()] {
        self.evicted.map(|evicted| evicted.count)
    }

    /// Begins to keep which rows may have been sent, or ends it.
    /// Returns whether that is news.
    pub(super) fn track(&mut self, is_tracking: bool, last_row: u64) -> bool {
        match (&self.sent, is_tracking) {
            (None, true) => self.sent = Some(SeqRange::new(1, last_row).into_iter().collect()),
            (Some(_), false) => self.sent = None,
            _ => return false,
        }
        true
    }

    /// Whether these rows are known as such that may have been sent.
    pub(super) fn knows_sent(&self, rows: &RangeSet) -> bool {
        self.sent.as_ref().is_none_or(|sent| {
            let mut all = rows.iter();
            all.all(|range| sent.contains_range(range))
        })
    }

    /// These rows are about to be sent, and so many behind them may follow. Below the lowest that is pending
    /// nothing is told apart.
    pub(super) fn send(&mut self, rows: &RangeSet, ahead: u64, pending_first: Option<u64>) {
        let Some(sent) = &mut self.sent else {
            return;
        };
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return;
        };
        // Rows one after the other are followed by the next ones; single ones are not.
        let is_dense = (last - first) / 2 < rows.count();
        if is_dense {
            let end = last.max(first.saturating_add(ahead).saturating_sub(1));
            sent.extend(SeqRange::new(first, end));
        } else {
            sent.extend(rows.iter());
        }
        if let Some(settled) = pending_first.and_then(|first| SeqRange::new(1, first - 1)) {
            sent.insert(settled);
        }
        if sent.as_slice().len() > SENT_RANGES_MAX {
            *sent = sent
                .as_slice()
                .chunks(4)
                .filter_map(|run| SeqRange::new(run.first()?.first(), run.last()?.last()))
                .collect();
        }
    }

    /// As a file has it, and how.
    pub(super) fn restore(entries: &[Entry]) -> (Self, Kept) {
        let (mut keep, mut kept) = (Self::default(), BTreeMap::new());
        let mut marks = Vec::new();
        for entry in entries {
            let numbers = [
                entry.first_seq,
                entry.last_seq,
                entry.counts.evicted,
                entry.hlc,
            ];
            let which = match entry.kind {
                Kind::Evicted => {
                    let named = Reason::ALL
                        .iter()
                        .find(|known| known.as_str() == entry.note);
                    let Some(reason) = named.copied() else {
                        continue;
                    };
                    if let Some(evicted) = keep.evicted.get_mut(reason.index()) {
                        evicted.count = entry.counts.evicted;
                        evicted.rows = entry.range();
                    }
                    reason.index() as u64
                }
                Kind::Sent => {
                    keep.sent
                        .get_or_insert_with(RangeSet::new)
                        .extend(entry.range());
                    entry.first_seq
                }
                Kind::Aged => {
                    marks.push((entry.first_seq, entry.hlc));
                    entry.first_seq
                }
                Kind::Levels => {
                    keep.levels = Levels::restore(numbers);
                    0
                }
                _ => continue,
            };
            kept.insert((entry.kind, which), (numbers, entry.id));
        }
        keep.ages = Ages::restore(marks);
        (keep, Kept(kept))
    }

    fn wanted(&self) -> BTreeMap<Key, Numbers> {
        let mut wanted = BTreeMap::new();
        for (reason, evicted) in Reason::ALL.into_iter().zip(self.evicted) {
            if let Some(rows) = evicted.rows {
                let numbers = [rows.first(), rows.last(), evicted.count, 0];
                wanted.insert((Kind::Evicted, reason.index() as u64), numbers);
            }
        }
        if self.sent.as_ref().is_some_and(RangeSet::is_empty) {
            // So that the file shows that it is kept, and none was.
            wanted.insert((Kind::Sent, 0), [0; 4]);
        }
        for range in self.sent.iter().flat_map(RangeSet::iter) {
            let numbers = [range.first(), range.last(), 0, 0];
            wanted.insert((Kind::Sent, range.first()), numbers);
        }
        for (row, at_ms) in self.ages.marks() {
            wanted.insert((Kind::Aged, row), [row, row, 0, at_ms]);
        }
        if let Some(numbers) = self.levels.numbers() {
            wanted.insert((Kind::Levels, 0), numbers);
        }
        wanted
    }
}

impl Kept {
    /// Whether the file knows these rows as such that may have been sent; one that names none may have sent all.
    pub(super) fn knows_sent(&self, rows: &RangeSet) -> bool {
        let of_sent = self.0.iter().filter(|((kind, _), _)| *kind == Kind::Sent);
        let mut named = of_sent.map(|(_, (numbers, _))| numbers).peekable();
        if named.peek().is_none() {
            return true;
        }
        let sent: RangeSet = named
            .filter_map(|numbers| SeqRange::new(numbers[0], numbers[1]))
            .collect();
        rows.iter().all(|range| sent.contains_range(range))
    }

    /// What has to be written so that the file holds `keep`.
    pub(super) fn changes(&self, keep: &Keep, of: (Epoch, u64), ids: &mut Ids) -> Vec<Write> {
        let (epoch, at_ms) = of;
        let mut writes = Vec::new();
        let wanted = keep.wanted();
        let gone = self.0.iter().filter(|(key, _)| !wanted.contains_key(key));
        writes.extend(gone.map(|(_, (_, id))| Write::Delete(*id)));
        for ((kind, which), numbers) in wanted {
            let id = match self.0.get(&(kind, which)) {
                Some((known, _)) if *known == numbers => continue,
                Some((_, id)) => *id,
                None => ids.next(),
            };
            let [first_seq, last_seq, evicted, hlc] = numbers;
            let reason = Reason::ALL
                .get(which as usize)
                .map(|reason| reason.as_str());
            writes.push(Write::Put(Entry {
                id,
                kind,
                epoch,
                at_ms,
                first_seq,
                last_seq,
                counts: Counts {
                    evicted,
                    ..Counts::default()
                },
                hlc,
                note: match kind {
                    Kind::Evicted => reason.unwrap_or_default().to_owned(),
                    _ => String::new(),
                },
            }));
        }
        writes
    }

    /// Takes note of changes that were committed.
    pub(super) fn committed(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Delete(id) => self.0.retain(|_, (_, known)| known != id),
                Write::Put(entry) => {
                    let which = match entry.kind {
                        Kind::Evicted => {
                            let mut all = Reason::ALL.iter();
                            let place = all.position(|reason| reason.as_str() == entry.note);
                            place.unwrap_or_default() as u64
                        }
                        Kind::Levels => 0,
                        _ => entry.first_seq,
                    };
                    let numbers = [
                        entry.first_seq,
                        entry.last_seq,
                        entry.counts.evicted,
                        entry.hlc,
                    ];
                    self.0.insert((entry.kind, which), (numbers, entry.id));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges
            .iter()
            .map(|(first, last)| range(*first, *last))
            .collect()
    }

    #[test]
    fn what_was_written_is_what_a_start_finds_and_only_differences_are_written() {
        let mut keep = Keep::default();
        let mut kept = Kept::default();
        let mut ids = Ids::above(&[]);
        let of = (Epoch::from_random(1), 7);
        let mut file: BTreeMap<i64, Entry> = BTreeMap::new();
        let mut step = |keep: &Keep, kept: &mut Kept, writes_max: usize| {
            let writes = kept.changes(keep, of, &mut ids);
            assert!(writes.len() <= writes_max, "{writes:?}");
            for write in &writes {
                match write {
                    Write::Put(entry) => drop(file.insert(entry.id, entry.clone())),
                    Write::Delete(id) => assert!(file.remove(id).is_some()),
                }
            }
            kept.committed(&writes);
            assert_eq!(kept.changes(keep, of, &mut ids), []);
            let entries: Vec<Entry> = file.values().cloned().collect();
            let (found, _) = Keep::restore(&entries);
            assert_eq!(found.counts(), keep.counts());
            assert_eq!(found.sent, keep.sent);
            assert_eq!(found.levels, keep.levels);
            assert!(found.ages.marks().eq(keep.ages.marks()));
        };
        step(&keep, &mut kept, 0);
        keep.track(true, 0);
        keep.count(Reason::Age, &set(&[(3, 5), (9, 9)]));
        step(&keep, &mut kept, 2);
        keep.count(Reason::Age, &set(&[(10, 11)]));
        keep.ages
            .note(11, Duration::from_secs(5), Duration::from_secs(1));
        step(&keep, &mut kept, 2);
        assert_eq!(keep.counts(), [0, 6, 0, 0]);
        keep.send(&set(&[(20, 29)]), 100, Some(15));
        step(&keep, &mut kept, 3);
        assert_eq!(keep.sent, Some(set(&[(1, 14), (20, 119)])));
        keep.track(false, 0);
        step(&keep, &mut kept, 2);
    }

    #[test]
    fn a_file_that_did_not_keep_it_may_have_sent_all() {
        let mut keep = Keep::default();
        keep.track(true, 40);
        assert!(keep.knows_sent(&set(&[(1, 40)])));
        assert!(!keep.knows_sent(&set(&[(40, 41)])));
        // Where it is not kept, nothing is to be written.
        keep.track(false, 40);
        assert!(keep.knows_sent(&set(&[(1, 99)])));
    }

    #[test]
    fn single_rows_do_not_count_those_between_them_until_they_are_too_many() {
        let mut keep = Keep::default();
        keep.track(true, 0);
        let singles: Vec<(u64, u64)> = (1..=100).map(|n| (10 * n, 10 * n)).collect();
        keep.send(&set(&singles), 1000, None);
        assert!(!keep.knows_sent(&set(&[(11, 11)])));
        let more: Vec<(u64, u64)> = (101..=400).map(|n| (10 * n, 10 * n)).collect();
        keep.send(&set(&more), 1000, None);
        assert!(keep.sent.as_ref().unwrap().as_slice().len() <= SENT_RANGES_MAX);
        assert!(keep.knows_sent(&set(&singles)) && keep.knows_sent(&set(&more)));
    }
}
