//! One epoch: its account, where its rows lie, the clock of its start, and what of all that the file has.

use schema::message::RejectReason;
use schema::{Epoch, RangeSet};

use super::Run;
use crate::buffer::account::Account;
use crate::buffer::log::{Book, Head, Ids, Write};
use crate::clock::core::{Release, StartClock};

/// An epoch's account, and how the file has it.
#[derive(Debug, Clone)]
pub(in crate::buffer) struct Ledger {
    pub(in crate::buffer) account: Account,
    pub(in crate::buffer) book: Book,
    /// The row number before its first.
    pub(super) base: u64,
    /// Whether any row of it may be in the file: there was one when this start began.
    pub(super) has_rows: bool,
    pub(super) is_ended: bool,
    /// Whether the file does not have all of it.
    pub(super) is_dirty: bool,
    /// What is known of the clock of its start; `None` of agents that did not keep it.
    pub(in crate::buffer) clock: Option<StartClock>,
    /// The latest stamp of its rows that a start found, microseconds on the axis of its start.
    pub(in crate::buffer) last_stamp: i64,
}

impl Ledger {
    /// An epoch as a file has it.
    pub(in crate::buffer) const fn restore(
        account: Account,
        book: Book,
        (base, has_rows): (u64, bool),
        is_ended: bool,
    ) -> Self {
        Self {
            account,
            book,
            base,
            has_rows,
            is_ended,
            is_dirty: false,
            clock: None,
            last_stamp: 0,
        }
    }

    /// A new one, which no file has.
    pub(in crate::buffer) fn begin(epoch: Epoch, base: u64, ids: &mut Ids) -> Self {
        Self {
            account: Account::new(epoch),
            book: Book::new(ids),
            base,
            has_rows: true,
            is_ended: false,
            is_dirty: true,
            clock: None,
            last_stamp: 0,
        }
    }

    /// Why its rows are set aside, if its clock is shown wrong.
    pub(super) fn is_shown_wrong(&self) -> Option<RejectReason> {
        match self.clock?.release {
            Release::Quarantined(reason) => Some(reason),
            Release::Held | Release::Shifted(_) | Release::Uncertain(_) => None,
        }
    }

    /// It takes no more rows.
    pub(in crate::buffer) fn end(&mut self) {
        self.is_dirty |= !self.is_ended;
        self.is_ended = true;
    }

    /// Its rows, if any may be in the file.
    pub(in crate::buffer) fn run(&self) -> Option<Run> {
        let last_row = match self.is_ended {
            true => self.base + self.account.last_seq(),
            false => u64::MAX,
        };
        self.has_rows.then_some(Run {
            epoch: self.account.epoch(),
            base: self.base,
            last_row,
        })
    }

    /// Puts what is pending in quarantine, if its clock is shown wrong. Returns the sequences.
    pub(in crate::buffer) fn set_aside_shown_wrong(&mut self) -> RangeSet {
        let Some(reason) = self.is_shown_wrong() else {
            return RangeSet::new();
        };
        let set_aside = self.account.set_aside(reason);
        self.is_dirty |= !set_aside.is_empty();
        set_aside
    }

    /// What the file does not have yet of it.
    pub(in crate::buffer) fn changes(
        &self,
        account: &Account,
        at_ms: u64,
        ids: &mut Ids,
    ) -> Vec<Write> {
        let head = Head {
            base: self.base,
            ended_at: match self.is_ended {
                true => account.last_seq(),
                false => 0,
            },
            counts: account.counts(),
            note: self.clock.map_or_else(String::new, |clock| clock.note()),
        };
        self.book.changes(account, &head, at_ms, ids)
    }
}
