//! The broker: MQTT over TLS 1.3 with client certificates, in front of sharded rumqttd routers.
//!
//! ```text
//!            ┌ front (one a connection) ┐        ┌ shard 0..K ┐
//!  TLS ──►   │ wire → rules → session   │ ─────► │ pump ──► router thread (log with cursors)
//!  listener  │                          │        │            │        │
//!            │ window ◄── mailbox       │ ◄───── │ hub ◄──────┘        │   devices
//!            └──────────────▲───────────┘        └─────────            │
//!                           └───────────────── lane (one a shard) ◄────┘   services
//! ```
//!
//! Promises kept here: a device speaks only for itself and hears only what is meant for it (P4);
//! every queue has a bound, and a slow consumer delays nobody but itself (P5); nothing reaches a
//! router that `rules` did not allow. Nothing here is kept over a restart, and
//! nothing relies on it: what was in flight is retransmitted end to end.
//!
//! Reading order: [`config`] → `filter` and `rules` → `wire` → `window`, `shares` → `router` →
//! `shard` and `lane` → `shared` (what connections share) → `front` → `listener` → [`app`] → [`cli`]. Why it is built so:
//! `docs/decisions/0004-broker-front.md`.

pub mod app;
pub mod cli;
pub mod config;
mod error;
mod filter;
mod front;
mod lane;
mod listener;
mod meters;
mod pulse;
mod reload;
mod retained;
mod router;
mod rules;
mod seats;
mod shard;
mod shared;
mod shares;
mod subscriptions;
mod wills;
mod window;
mod wire;

pub use app::{Broker, RunningBroker};
pub use config::{Config, Settings};
