//! What is done about a damaged file.

use std::path::PathBuf;

use schema::Epoch;

/// What was done about a damaged file, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What was wrong with it.
    pub damage: String,
    /// Where the damaged file is now.
    pub kept_as: PathBuf,
    /// Its identity, when it could be read.
    pub old_epoch: Option<Epoch>,
    /// Readings that were saved into the new file.
    pub salvaged: u64,
    /// Pending readings that could not be read, when the damaged file still told how many it held.
    pub missing: Option<u64>,
}
