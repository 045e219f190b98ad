//! The agent against a real broker (Mosquitto), real files and real processes. The bridge is a
//! part of the test, so that it can be slow, forgetful or unable to read.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what stands in for the world around the agent fails as a test does"
)]

mod appends;
mod bridge;
mod broker;
mod buffer;
mod buffer_clock;
mod buffer_damage;
mod buffer_epochs;
mod buffer_kill;
mod buffer_model;
mod buffer_policies;
mod buffer_positions;
mod buffer_quarantine;
mod config;
mod delivery;
mod disk_trouble;
mod edge;
mod feeds;
mod fixtures;
mod init;
mod link;
mod link_proxy;
mod link_routes;
mod link_rules;
#[cfg(feature = "modbus")]
mod modbus;
mod odd_rows;
mod operate;
mod overrides;
mod probes;
mod process;
mod reload;
mod replay;
mod sensors;
mod settings_places;
mod simulate;
mod source_docs;
mod source_lines;
mod source_settings;
mod sources;
mod timekeeping;
mod tools;
mod trial;

use testkit::wait::{PATIENCE, eventually};
