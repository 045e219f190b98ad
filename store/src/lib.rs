//! The databases behind a bridge: their contract, and the values that cross it.
//!
//! Invariants that every implementation keeps, and that one contract suite checks:
//! - rows and the ledger ranges that speak of them are in **one commit**; what [`IngestStore::ingest`]
//!   returns as settled is in the database;
//! - the ledger's ranges of one (device, epoch, kind) are disjoint, whoever writes, so that counts
//!   and digests add up;
//! - one row per (device, sensor, observed_at), the highest version's; the losers are in
//!   `conflicts`; a retransmission changes nothing;
//! - every reading of a delivery ends committed or rejected, or the call fails: what the database refuses for a reason
//!   of its own ([`StoreError::is_refusal`]) settles nothing, and is tried apart by whoever asked;
//! - `committed = rows + superseded + expired`, for each device and at any moment: what loses its key
//!   or its row is counted by the commit that takes it ([`books::RowBook`]);
//! - each call may be repeated after any error: all are idempotent.
//!
//! Reading order: `contract` → `intake`, `readings`, `records` (the values) → `ledger` (what is known, what is new,
//! which version wins, what the ledger says) → [`cockroach`] and [`embedded`] → [`location`], [`error`], [`sqlstate`]. Beside readings,
//! each capability in a file of its own, once for both databases: `sql` (what they stand on) → [`fleet`], [`commands`],
//! [`fan_out`], [`config`], [`groups`], [`alerts`], [`access`], [`dead_letters`], [`quota`], [`rounds`], [`sensors`].

mod absent;
mod cache;
pub mod clock;
// A macro is known only below its definition.
#[macro_use]
mod presence_sql;

pub mod access;
pub mod alerts;
pub mod cockroach;
pub mod command_rules;
pub mod commands;
pub mod config;
mod contract;
pub mod dead_letters;
pub mod embedded;
pub mod error;
pub mod fan_out;
pub mod fleet;
pub mod groups;
pub mod history;
mod intake;
pub mod labels;
mod ledger;
pub mod location;
#[doc(hidden)]
pub mod memory;
pub mod overrides;
mod page;
mod presence;
pub mod quota;
mod readings;
mod records;
pub mod requests;
mod retention;
pub mod rollups;
pub mod rounds;
pub mod sensors;
mod skew;
mod sql;
pub mod sqlstate;
pub mod verify;

pub use clock::StoreClock;
pub use contract::{
    Activity, Counts, EXPIRE_DEVICES, EXPIRE_ROWS, Expired, IngestStore, Migration, Readers,
    ReadingStore, ReportStore, SchemaStore, Store, UpkeepStore,
};
pub use dead_letters::{DEAD_LETTER_BYTES_MAX, DeadLetter, KeptLetter};
pub use error::StoreError;
pub use fleet::Device;
pub use intake::{
    Delivery, DeviceReport, Ingested, Origin, Presence, ReportsSettled, RowCounts, Settled,
};
pub use ledger::books;
pub use ledger::discarder;
pub use ledger::fleet::FleetBooks;
pub use ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
pub use ledger::query::LedgerStore;
pub use location::Location;
pub use readings::{
    Conflict, ConflictCursor, Order, QUERY_ROWS_MAX, StoredReading, TelemetryQuery,
};
pub use records::{
    DeviceLedger, EpochRecord, FleetLedger, Gap, Kind, LedgerRange, RangeContent, Reported,
    RowCount, UNACCOUNTED_MAX,
};
