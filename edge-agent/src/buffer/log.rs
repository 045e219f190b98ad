//! The rows of `sync_log`: how an account is kept in the file, changed with as few rows as it
//! takes, and read back.

use std::collections::BTreeMap;

use schema::{Epoch, RangeSet, SeqRange};

use super::account::{Account, Counts};
use super::row::{Cell, small_mark};

/// Columns of a row, the id included.
pub(super) const COLUMNS: usize = 12;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Epoch = 1,
    Settled = 2,
    GivenUp = 3,
    Recovery = 4,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) kind: Kind,
    pub(super) epoch: Epoch,
    pub(super) at_ms: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) counts: Counts,
    pub(super) hlc: u64,
    pub(super) note: String,
}

/// A change to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    Put(Entry),
    Delete(i64),
}

/// Hands out ids of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids(i64);

/// An account as the file has it.
#[derive(Debug, Clone)]
pub(super) struct Book {
    id: i64,
    /// The sequences of an epoch that has ended; 0 for the current one.
    ended_at: u64,
    hlc: u64,
    counts: Option<Counts>,
    ranges: BTreeMap<(Kind, u64), (u64, i64)>,
}

impl Entry {
    /// The columns but the id, in the order of the table.
    pub(super) fn columns(&self) -> Vec<libsql::Value> {
        let numbers = self.numbers();
        let mark = small_mark(&numbers, self.note.as_bytes());
        let mut columns: Vec<libsql::Value> = Vec::with_capacity(COLUMNS);
        columns.push(libsql::Value::Integer(self.id));
        columns.extend(numbers[1..].iter().map(|n| libsql::Value::Integer(*n)));
        columns.push(match self.note.as_str() {
            "" => libsql::Value::Null,
            note => libsql::Value::Blob(note.as_bytes().to_vec()),
        });
        columns.push(libsql::Value::Integer(mark));
        columns
    }

    /// The row, or `None` when it does not say what was written. The id is the rowid.
    pub(super) fn check(id: i64, columns: &[Cell<'_>]) -> Option<Self> {
        let [_, numbers @ .., note, Cell::Integer(mark)] = columns else {
            return None;
        };
        let mut found = [id; 10];
        if numbers.len() != found.len() - 1 {
            return None;
        }
        for (number, cell) in found[1..].iter_mut().zip(numbers) {
            let Cell::Integer(value) = cell else {
                return None;
            };
            *number = *value;
        }
        let note = match note {
            Cell::Null => &[],
            Cell::Bytes(bytes) => *bytes,
            Cell::Integer(_) | Cell::Real(_) => return None,
        };
        if *mark != small_mark(&found, note) {
            return None;
        }
        let count = |at: usize| u64::try_from(found[at]).ok();
        Some(Self {
            id,
            kind: Kind::from_number(found[1])?,
            epoch: Epoch::try_from(count(2)?).ok()?,
            at_ms: count(3)?,
            first_seq: count(4)?,
            last_seq: count(5)?,
            counts: Counts {
                committed: count(6)?,
                evicted: count(7)?,
                discarded: count(8)?,
            },
            hlc: count(9)?,
            note: String::from_utf8(note.to_vec()).ok()?,
        })
    }

    /// The range of a row about one.
    pub(super) fn range(&self) -> Option<SeqRange> {
        SeqRange::new(self.first_seq, self.last_seq)
    }

    fn numbers(&self) -> [i64; 10] {
        [
            self.id,
            self.kind as i64,
            self.epoch.get().cast_signed(),
            self.at_ms.cast_signed(),
            self.first_seq.cast_signed(),
            self.last_seq.cast_signed(),
            self.counts.committed.cast_signed(),
            self.counts.evicted.cast_signed(),
            self.counts.discarded.cast_signed(),
            self.hlc.cast_signed(),
        ]
    }
}

impl Kind {
    fn from_number(number: i64) -> Option<Self> {
        [Self::Epoch, Self::Settled, Self::GivenUp, Self::Recovery]
            .into_iter()
            .find(|kind| *kind as i64 == number)
    }
}

impl Ids {
    /// Ids above all of those in use.
    pub(super) fn above(entries: &[Entry]) -> Self {
        Self(entries.iter().map(|entry| entry.id).max().unwrap_or(0))
    }

    pub(super) const fn next(&mut self) -> i64 {
        self.0 += 1;
        self.0
    }
}

impl Book {
    /// The book of an account that the file does not have yet. No clock stamp may be lower than
    /// `hlc`.
    pub(super) fn new(ids: &mut Ids, ended_at: u64, hlc: u64) -> Self {
        Self {
            id: ids.next(),
            ended_at,
            hlc,
            counts: None,
            ranges: BTreeMap::new(),
        }
    }

    /// What has to be written so that the file holds `account`.
    pub(super) fn changes(&self, account: &Account, at_ms: u64, ids: &mut Ids) -> Vec<Write> {
        let entry = |id, kind, first_seq, last_seq, counts, hlc| Entry {
            id,
            kind,
            epoch: account.epoch(),
            at_ms,
            first_seq,
            last_seq,
            counts,
            hlc,
            note: String::new(),
        };
        let mut writes = Vec::new();
        if self.counts != Some(account.counts()) {
            writes.push(Write::Put(entry(
                self.id,
                Kind::Epoch,
                0,
                self.ended_at,
                account.counts(),
                self.hlc,
            )));
        }
        for (kind, set) in [
            (Kind::Settled, account.settled()),
            (Kind::GivenUp, account.given_up()),
        ] {
            let mut kept = self.ranges.range((kind, 0)..=(kind, u64::MAX)).peekable();
            for range in set.iter() {
                while let Some((_, (_, id))) = kept.next_if(|((_, at), _)| *at < range.first()) {
                    writes.push(Write::Delete(*id));
                }
                let id = match kept.next_if(|((_, at), _)| *at == range.first()) {
                    Some((_, (last, _))) if *last == range.last() => continue,
                    Some((_, (_, id))) => *id,
                    None => ids.next(),
                };
                let none = Counts::default();
                writes.push(Write::Put(entry(
                    id,
                    kind,
                    range.first(),
                    range.last(),
                    none,
                    0,
                )));
            }
            writes.extend(kept.map(|(_, (_, id))| Write::Delete(*id)));
        }
        writes
    }

    /// Everything that the file has of this account goes.
    pub(super) fn removal(&self) -> Vec<Write> {
        let ranges = self.ranges.values().map(|(_, id)| *id);
        ranges.chain([self.id]).map(Write::Delete).collect()
    }

    /// Takes note of changes that were committed.
    pub(super) fn committed(&mut self, writes: &[Write]) {
        let deleted: Vec<i64> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Delete(id) => Some(*id),
                Write::Put(_) => None,
            })
            .collect();
        if !deleted.is_empty() {
            self.ranges.retain(|_, (_, id)| !deleted.contains(id));
        }
        for write in writes {
            if let Write::Put(entry) = write {
                if entry.kind == Kind::Epoch {
                    self.counts = Some(entry.counts);
                } else {
                    self.ranges
                        .insert((entry.kind, entry.first_seq), (entry.last_seq, entry.id));
                }
            }
        }
    }

    /// The book of `epoch`, the one row of which is `head`, and its sets.
    pub(super) fn restore(head: &Entry, entries: &[Entry]) -> (Self, RangeSet, RangeSet) {
        let mut book = Self {
            id: head.id,
            ended_at: head.last_seq,
            hlc: head.hlc,
            counts: Some(head.counts),
            ranges: BTreeMap::new(),
        };
        let (mut settled, mut given_up) = (RangeSet::new(), RangeSet::new());
        for entry in entries.iter().filter(|entry| entry.epoch == head.epoch) {
            let (Some(range), Kind::Settled | Kind::GivenUp) = (entry.range(), entry.kind) else {
                continue;
            };
            book.ranges
                .insert((entry.kind, range.first()), (range.last(), entry.id));
            match entry.kind {
                Kind::Settled => settled.insert(range),
                _ => given_up.insert(range),
            }
        }
        (book, settled, given_up)
    }

    /// Whether the epoch has ended.
    pub(super) const fn ended_at(&self) -> u64 {
        self.ended_at
    }
}
