//! The rows of `sync_log`: how an account is kept in the file, changed with as few rows as it
//! takes, and read back.

use std::collections::BTreeMap;

use schema::message::RejectReason;
use schema::{DiscardedBy, Epoch, RangeSet, SeqRange};

use super::account::{Account, Cause, Counts, GivenUp, Sets};
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
    Gone = 5,
    Past = 6,
    Quarantined = 7,
    Discarded = 8,
    Offered = 9,
    Again = 10,
    Evicted = 11,
    Sent = 12,
    Aged = 13,
    Levels = 14,
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

/// Ranges of sequences or rows as the file has them: by what they say and their first number, the last
/// number and the row's id.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges(BTreeMap<(RangeOf, u64), (u64, i64)>);

/// What the numbers of a range have in common: the kind of a row, and its note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RangeOf {
    Settled,
    GivenUp,
    Gone,
    /// Gone, and their epochs are forgotten: a recovery must not bring those back, their counts are among
    /// those of the past.
    Forgotten,
    Quarantined(Cause),
    Discarded(GivenUp),
    Again,
}

/// An account as the file has it.
#[derive(Debug, Clone)]
pub(super) struct Book {
    id: i64,
    /// The epoch's one row, once the file has it.
    head: Option<Head>,
    ranges: Ranges,
}

/// The content of the one row of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The row number before the epoch's first.
    pub(super) base: u64,
    /// The last sequence of an epoch that has ended; 0 for one that has not.
    pub(super) ended_at: u64,
    pub(super) counts: Counts,
    /// What else is kept of the epoch.
    pub(super) note: String,
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

    /// The row, or `None` when it is damaged. The id is the rowid.
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

    /// Adds the range of a row about one to the sets of its epoch; `None` when it makes no sense.
    pub(super) fn join(&self, sets: &mut Sets) -> Option<()> {
        if !self.kind.is_of_an_account() {
            return Some(());
        }
        let range = self.range()?;
        let set = match self.range_of()? {
            RangeOf::Settled => &mut sets.settled,
            RangeOf::Quarantined(cause) => sets.quarantined.entry(cause).or_default(),
            RangeOf::Discarded(given_up) => sets.discarded.entry(given_up).or_default(),
            RangeOf::GivenUp => sets.discarded.entry(GivenUp::BY_AN_OLD_AGENT).or_default(),
            RangeOf::Gone | RangeOf::Forgotten | RangeOf::Again => return Some(()),
        };
        set.insert(range);
        Some(())
    }

    /// What a row about a range says of it; `None` of others, and when the note makes no sense.
    pub(super) fn range_of(&self) -> Option<RangeOf> {
        Some(match self.kind {
            Kind::Settled => RangeOf::Settled,
            Kind::GivenUp => RangeOf::GivenUp,
            Kind::Gone if self.note == FORGOTTEN => RangeOf::Forgotten,
            Kind::Gone => RangeOf::Gone,
            Kind::Quarantined => RangeOf::Quarantined(Cause::parse(&self.note)?),
            Kind::Discarded => RangeOf::Discarded(GivenUp::parse(&self.note)?),
            Kind::Again => RangeOf::Again,
            Kind::Epoch
            | Kind::Recovery
            | Kind::Past
            | Kind::Offered
            | Kind::Evicted
            | Kind::Sent
            | Kind::Aged
            | Kind::Levels => return None,
        })
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
        [
            Self::Epoch,
            Self::Settled,
            Self::GivenUp,
            Self::Recovery,
            Self::Gone,
            Self::Past,
            Self::Quarantined,
            Self::Discarded,
            Self::Offered,
            Self::Again,
            Self::Evicted,
            Self::Sent,
            Self::Aged,
            Self::Levels,
        ]
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

impl Ranges {
    /// The ranges of `epoch`, and of the file as a whole where there is none, in `entries`.
    pub(super) fn restore<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let of_range = |entry: &Entry| {
            let range = entry.range()?;
            let key = (entry.range_of()?, range.first());
            Some((key, (range.last(), entry.id)))
        };
        Self(entries.filter_map(of_range).collect())
    }

    /// The changes after which the file has this about `set`, and about no other numbers.
    pub(super) fn changes(
        &self,
        of: RangeOf,
        set: &RangeSet,
        (epoch, at_ms): (Epoch, u64),
        ids: &mut Ids,
        writes: &mut Vec<Write>,
    ) {
        let mut kept = self.0.range((of, 0)..=(of, u64::MAX)).peekable();
        for range in set.iter() {
            while let Some((_, (_, id))) = kept.next_if(|((_, at), _)| *at < range.first()) {
                writes.push(Write::Delete(*id));
            }
            let id = match kept.next_if(|((_, at), _)| *at == range.first()) {
                Some((_, (last, _))) if *last == range.last() => continue,
                Some((_, (_, id))) => *id,
                None => ids.next(),
            };
            writes.push(Write::Put(Entry {
                id,
                kind: of.kind(),
                epoch,
                at_ms,
                first_seq: range.first(),
                last_seq: range.last(),
                counts: Counts::default(),
                hlc: 0,
                note: of.note(),
            }));
        }
        writes.extend(kept.map(|(_, (_, id))| Write::Delete(*id)));
    }

    /// Takes note of changes that were committed.
    pub(super) fn committed(&mut self, writes: &[Write]) {
        let mut deleted: Vec<i64> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Delete(id) => Some(*id),
                Write::Put(_) => None,
            })
            .collect();
        if !deleted.is_empty() {
            deleted.sort_unstable();
            let is_deleted = |id: &i64| deleted.binary_search(id).is_ok();
            self.0.retain(|_, (_, id)| !is_deleted(id));
        }
        for write in writes {
            if let Write::Put(entry) = write
                && let (Some(of), Some(range)) = (entry.range_of(), entry.range())
            {
                self.0.insert((of, range.first()), (range.last(), entry.id));
            }
        }
    }

    /// Every possible [`RangeOf`].
    fn said(&self) -> Vec<RangeOf> {
        let mut said: Vec<RangeOf> = self.0.keys().map(|(of, _)| *of).collect();
        said.dedup();
        said
    }

    fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.values().map(|(_, id)| *id)
    }
}

impl Book {
    /// The book of an account that the file does not have yet.
    pub(super) fn new(ids: &mut Ids) -> Self {
        Self {
            id: ids.next(),
            head: None,
            ranges: Ranges::default(),
        }
    }

    /// Whether the file has the epoch.
    pub(super) const fn is_kept(&self) -> bool {
        self.head.is_some()
    }

    /// What has to be written so that the file holds `account`.
    pub(super) fn changes(
        &self,
        account: &Account,
        head: &Head,
        at_ms: u64,
        ids: &mut Ids,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        let epoch = account.epoch();
        if self.head.as_ref() != Some(head) {
            writes.push(Write::Put(Entry {
                id: self.id,
                kind: Kind::Epoch,
                epoch,
                at_ms,
                first_seq: head.base,
                last_seq: head.ended_at,
                counts: head.counts,
                hlc: 0,
                note: head.note.clone(),
            }));
        }
        let sets = account.sets();
        let none = RangeSet::new();
        let mut wanted = BTreeMap::from([(RangeOf::Settled, &sets.settled)]);
        for (cause, set) in &sets.quarantined {
            wanted.insert(RangeOf::Quarantined(*cause), set);
        }
        for (given_up, set) in &sets.discarded {
            wanted.insert(RangeOf::Discarded(*given_up), set);
        }
        // Also what an agent 0.1 gave up: that stands among the discarded from now on.
        for of in self.ranges.said() {
            wanted.entry(of).or_insert(&none);
        }
        for (of, set) in wanted {
            self.ranges
                .changes(of, set, (epoch, at_ms), ids, &mut writes);
        }
        writes
    }

    /// Everything that the file has of this account goes.
    pub(super) fn removal(&self) -> Vec<Write> {
        let head = self.head.iter().map(|_| self.id);
        self.ranges.ids().chain(head).map(Write::Delete).collect()
    }

    /// Takes note of changes that were committed.
    pub(super) fn committed(&mut self, writes: &[Write]) {
        self.ranges.committed(writes);
        for write in writes {
            if let Write::Put(entry) = write
                && entry.kind == Kind::Epoch
            {
                self.head = Some(Head::of(entry));
            }
        }
    }

    /// The book of the epoch whose one row is `head`, and its sets; `None` when a row makes no
    /// sense.
    pub(super) fn restore(head: &Entry, entries: &[Entry]) -> Option<(Self, Sets)> {
        let own = || entries.iter().filter(|entry| entry.epoch == head.epoch);
        let mut sets = Sets::default();
        for entry in own() {
            entry.join(&mut sets)?;
        }
        let book = Self {
            id: head.id,
            head: Some(Head::of(head)),
            ranges: Ranges::restore(own().filter(|entry| entry.kind.is_of_an_account())),
        };
        Some((book, sets))
    }
}

impl Head {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            base: entry.first_seq,
            ended_at: entry.last_seq,
            counts: entry.counts,
            note: entry.note.clone(),
        }
    }
}

impl Kind {
    /// Whether its rows hold ranges of one epoch.
    const fn is_of_an_account(self) -> bool {
        matches!(
            self,
            Self::Settled | Self::GivenUp | Self::Quarantined | Self::Discarded
        )
    }
}

/// The note of row numbers whose epochs are forgotten.
const FORGOTTEN: &str = "forgotten";

/// Stands before the reason where the device itself put something in quarantine.
const OWN: &str = "own ";

impl RangeOf {
    const fn kind(self) -> Kind {
        match self {
            Self::Settled => Kind::Settled,
            Self::GivenUp => Kind::GivenUp,
            Self::Gone | Self::Forgotten => Kind::Gone,
            Self::Quarantined(_) => Kind::Quarantined,
            Self::Discarded(_) => Kind::Discarded,
            Self::Again => Kind::Again,
        }
    }

    fn note(self) -> String {
        match self {
            Self::Settled | Self::GivenUp | Self::Gone | Self::Again => String::new(),
            Self::Forgotten => FORGOTTEN.to_owned(),
            Self::Quarantined(cause) => cause.note(),
            Self::Discarded(given_up) => given_up.note(),
        }
    }
}

impl Cause {
    fn note(self) -> String {
        let own = if self.is_own { OWN } else { "" };
        format!("{own}{}", self.reason.as_str())
    }

    fn parse(note: &str) -> Option<Self> {
        let own = note.strip_prefix(OWN);
        Some(Self {
            is_own: own.is_some(),
            reason: RejectReason::named(own.unwrap_or(note))?,
        })
    }
}

impl GivenUp {
    /// An agent 0.1 gave up what no reader could read, without a person's decision.
    const BY_AN_OLD_AGENT: Self = Self {
        by: DiscardedBy::QuarantineBudget,
        reason: RejectReason::Undecodable,
    };

    fn note(self) -> String {
        format!("{} {}", self.by.as_str(), self.reason.as_str())
    }

    fn parse(note: &str) -> Option<Self> {
        let (by, reason) = note.split_once(' ')?;
        Some(Self {
            by: DiscardedBy::ALL
                .into_iter()
                .find(|known| known.as_str() == by)?,
            reason: RejectReason::named(reason)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written() {
        for reason in RejectReason::ALL {
            for is_own in [true, false] {
                let cause = Cause { is_own, reason };
                assert_eq!(Cause::parse(&cause.note()), Some(cause));
            }
            for by in DiscardedBy::ALL {
                let given_up = GivenUp { by, reason };
                assert_eq!(GivenUp::parse(&given_up.note()), Some(given_up));
            }
        }
        assert_eq!(Cause::parse("no_reason"), None);
        assert_eq!(GivenUp::parse("somebody too_new"), None);
    }
}
