//! What the tests of several crates need: databases of their own, values to put into them, a network
//! that fails, free ports, and patience.
//!
//! Reading order: [`database`] → [`readings`] → [`proxy`] → [`port`] → [`wait`].

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "only tests use it, and an error there is a failed test"
)]

pub mod database;
pub mod port;
pub mod proxy;
pub mod readings;
pub mod wait;
