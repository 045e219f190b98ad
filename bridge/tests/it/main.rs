//! The bridge's integration tests, in one binary.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

mod api;
mod clock;
mod faults;
mod metrics;
mod process;
