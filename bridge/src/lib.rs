//! The bridge: telemetry from MQTT into SQL, exactly once in effect.
//!
//! ```text
//! broker ─► intake ─► admit ─► pipeline ─► store (rows + ledger, one commit)
//!    ▲                  └─► dead letters        │
//!    └── PUBACK ◄── ack to the device ◄─────────┘        store ─► api ─► people
//! ```
//!
//! Promises kept here: nothing is acknowledged before its commit (P1), what arrives twice is
//! written once (P2), what is held is bounded (P5), bad input is kept aside (P6), and the ledger
//! says what became of every reading (P8). Any bridge may be killed at any moment; several share
//! the devices without knowing of each other.
//!
//! Reading order: [`admit`] and [`pipeline`] (pure) → [`ingest`] (the loop around them) →
//! [`intake`] and `direct` (the two ways in) → [`store`] → `upkeep`, `rollups`, `dispatch` (commands, configuration), `alert` and `loss` → [`auth`], [`http`] → [`app`], [`config`],
//! [`cli`].

pub mod admit;
mod alert;
pub mod app;
mod audit;
pub mod auth;
pub mod cli;
pub mod config;
mod direct;
mod dispatch;
pub mod http;
pub mod ingest;
pub mod intake;
mod loss;
pub mod pipeline;
mod rollups;
mod store_collector;
mod timekeeper;
mod upkeep;
mod watch;

pub use app::{Bridge, RunningBridge};
pub use config::Config;
