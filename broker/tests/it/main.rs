//! The broker over real sockets, with our own clients, Mosquitto's, openssl, and hostile bytes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod client;
mod delivery;
mod flow;
mod hostile;
mod metrics;
mod mosquitto;
mod outsiders;
mod process;
mod raw;
mod refusals;
mod rig;
mod sessions;
mod share;
mod trust;
