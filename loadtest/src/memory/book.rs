//! The account of one epoch in a file: which of the file's rows are its own.

use edge_agent::buffer::account::Account;
use edge_agent::buffer::epochs::Run;
use schema::Epoch;

/// The account of one epoch.
#[derive(Debug, Clone)]
pub(super) struct Book {
    pub(super) account: Account,
    /// The row before its first one.
    pub(super) base: u64,
    pub(super) is_ended: bool,
}

impl Book {
    pub(super) fn new(epoch: Epoch, base: u64) -> Self {
        Self {
            account: Account::new(epoch),
            base,
            is_ended: false,
        }
    }

    pub(super) fn run(&self) -> Run {
        Run {
            epoch: self.account.epoch(),
            base: self.base,
            last_row: self.base + self.account.last_seq(),
        }
    }

    pub(super) fn holds(&self, row: u64) -> bool {
        row > self.base && row <= self.base + self.account.last_seq()
    }
}
