//! The edge agent: takes readings from sources, keeps them in a libSQL file, and carries them to
//! the bridge until its database has them.
//!
//! ```text
//!  source/* ──► ingest ──► buffer (libSQL) ◄──settle── driver ◄──ack── link (MQTT, TLS)
//!                             └──────rows──────────────► │  ▲ │ ──batch──►
//!                                                        ▼  │ effects
//!                                                       session (pure)
//! ```
//!
//! Beside that, [`commands`] and settings ([`twin`]) come down the link and are kept in the same file.
//!
//! Promises kept here: **P1** a reading is freed only by the bridge's acknowledgement ([`session`]), **P5**
//! every queue has a bound and pressure ends on the disk, **P7** a command runs at most once ([`commands`]), **P8** accepted = committed + pending +
//! quarantined + evicted + discarded, shown by [`RunningAgent::balance`] and the metrics.
//!
//! Reading order: [`session`] → `driver`, `gather` and `probes` → [`buffer`] → [`link`] → [`ingest`] and
//! [`source`] → [`sensors`] → [`commands`] and [`twin`] → `app` → [`config`] → [`cli`].

mod app;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
mod driver;
mod gather;
pub mod ingest;
pub mod link;
mod log_level;
mod metrics;
mod place;
mod probes;
mod program;
mod reload;
mod repeat;
pub mod sensors;
pub mod session;
pub mod source;
pub mod status;
mod timekeeping;
pub mod twin;
mod upkeep;
mod watchdog;

pub use app::{Agent, RunningAgent};
pub use config::{Config, OwnProcess, Settings};
pub use ingest::Ingest;
pub use probes::ProbePauses;
pub use reload::{Reloaded, SettingsStatus};
pub use status::Status;
