//! The ledger: what is known of each epoch of a device, what of some deliveries and reports is new to it, and what it
//! says of the rows. Both databases ask here before they write.
//!
//! Reading order: [`span`] (one row of it) → [`epoch`] (what is known of one epoch) → [`kind`] (as its table has it) →
//! [`plan`] (what of some deliveries is new) → [`group`] (of one epoch, with what is claimed beside commits) → [`claims`]
//! (what reports claim) → [`late`] (which rows may meet others) → [`contest`] (which version wins) → [`books`] (what the ledger says,
//! held against the rows) → [`fleet`] (of the whole fleet, read again where it changed), all without SQL → [`query`] (what its
//! tables say).

pub mod books;
pub(crate) mod claims;
pub(crate) mod contest;
mod epoch;
pub(crate) mod fleet;
mod group;
mod kind;
pub(crate) mod late;
pub(crate) mod plan;
pub(crate) mod query;
mod span;

pub(crate) use epoch::EpochState;
pub(crate) use group::{Group, grow};
pub use kind::discarder;
pub(crate) use kind::{Track, kind_of};
pub(crate) use span::{Extent, Run, Span};
