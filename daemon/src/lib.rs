//! What every long-running process of Tideline shares: settings from a file, logs, metrics and
//! health over HTTP, start and stop, wall clock, backoff, standard output, and how an error ends a process.
//!
//! Knows nothing of MQTT, SQL or readings.
//!
//! Reading order: [`failure`] → [`settings`] → [`lifecycle`] → [`health`], [`admin`] and [`http`] →
//! [`clock`], [`backoff`], [`lock`], [`logs`], [`metrics`], [`notify`], [`stdout`].

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod failure;
pub mod health;
pub mod http;
pub mod lifecycle;
pub mod logs;
pub mod metrics;
mod mutex;
pub mod notify;
pub mod settings;
pub mod stdout;

pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use failure::{Class, Failure, Fault};
pub use health::{Component, Health};
pub use lifecycle::Lifecycle;
pub use metrics::registered;
pub use mutex::lock;
