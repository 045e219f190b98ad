//! The edge buffer: what was accepted stays here until the bridge acknowledges that the database has
//! committed it. Promise P1's first half, and promise P8 at the edge.
//!
//! One libSQL file, one thread that owns it (`writer`), a cheap handle for everyone else
//! ([`Buffer`]). Invariants:
//!
//! - An append returns after the commit that holds its readings; before that they are not accepted.
//! - Rows have ascending numbers over the file's whole life. Every start begins an epoch; within it
//!   sequences count from 1 without holes, and clocks increase strictly.
//! - A reading that comes without a time falls on no other of its sensor: the commit moves its stamp if it
//!   would.
//! - A row leaves the file for one of four reasons: the bridge acknowledged that it is committed, a policy
//!   of a full buffer, damage, or because it was given up out of the quarantine. Each is counted; the
//!   counts of an epoch always add up to the last sequence given.
//! - What is damaged is never taken for a reading, and never thrown away.
//!
//! What a bridge refuses: `writer/settling` puts it into quarantine, `quarantine` offers it again on request, `sample`
//! a few rows of it unasked.
//!
//! ```text
//! PATH          the buffer            PATH.lock           one process at a time
//! PATH-wal      its log               PATH.damaged-TIME   a damaged file, moved aside
//! PATH.new      a file in the making  PATH.reserve        room held for a full disk
//! PATH.copy     a file that is being put back
//! ….aside      what stood at one of these names and was not the buffer's
//! ```
//!
//! It does not decide what travels when (the session does), does not talk to anyone, and does not
//! read a clock of its own.
//!
//! Reading order: [`Append`] → `row` → [`account`] → [`epochs`] → [`eviction`] (all pure) → `commit` → `writer` →
//! `shows` → `handle`; `quarantine`, `sample` and `starts` for what waits; `connect`, `file` and `small_tables` for the SQL, `log`
//! for the accounts' rows; `positions` for how far files were read; `declarations` for what sensors are; `open`, `load`, `wal`, `survey` and `recovery` for what a start may find; `place` and
//! `reserve` for the disk; `snapshot`, `inspect` and `compact` for people who look after it.

#[doc(hidden)]
pub mod account;
mod age;
mod append;
mod batch;
mod commands;
mod commit;
mod compact;
mod connect;
mod consolidate;
mod declarations;
mod deferred;
#[doc(hidden)]
pub mod epochs;
mod error;
mod eviction;
mod file;
mod handle;
mod inspect;
mod keep;
mod limits;
mod load;
mod log;
mod oldest;
mod open;
mod pages;
mod paths;
mod place;
mod policy;
mod positions;
mod quarantine;
mod read;
mod recovery;
mod reserve;
mod row;
mod sample;
mod sensors;
mod set_aside;
mod settings;
mod shows;
mod small_tables;
mod snapshot;
mod starts;
mod stored;
mod survey;
mod trouble;
mod wal;
mod writer;

pub use append::{Append, Hold, Position, Sample, Timing};
#[cfg(test)]
pub(crate) use commands::REMEMBERED_MAX;
pub use commands::{Kept, StoredCommand, StoredCommands};
pub use compact::{CompactError, Compacted, compact};
pub use declarations::{DeclarationState, KeptDeclaration};
pub use error::BufferError;
pub use handle::{Appended, Buffer, Opened, Submitted, Taken};
pub use inspect::{
    Damage, EpochHeld, Exported, HeldReading, Inspection, SensorHeld, export, inspect,
};
pub use keep::Reason;
pub(crate) use open::begins_damaged;
pub use policy::{PatternError, Policies, Policy, Priority, Rule, SensorPattern};
pub use recovery::Recovery;
pub use row::{ROW_BYTES, ReadingError, SENSORS_MAX, row_bytes};
pub use settings::{BufferSettings, SettingsError};
pub use shows::Progress;
pub use small_tables::{Origin, StoredSetting};
pub use snapshot::{LookError, is_in_use};
pub use starts::Starts;
pub use trouble::{Storage, Trouble};
