//! What the tests of several crates need: databases of their own, values to put into them, a network
//! that fails, processes that end with them, free ports, and patience.
//!
//! Reading order: [`database`] → [`readings`] → [`proxy`] → [`process`] → [`mosquitto`] → [`port`] → [`wait`].

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "only tests use it, and an error there is a failed test"
)]

pub mod database;
pub mod mosquitto;
pub mod port;
pub mod process;
pub mod proxy;
pub mod readings;
pub mod wait;
