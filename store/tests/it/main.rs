//! One contract for every store: each test here runs against the embedded file, PostgreSQL, and a
//! CockroachDB when `TIDELINE_TEST_COCKROACH_URL` names one. How a bridge bears a store's faults is tried in
//! `bridge/tests/it/faults.rs`.

// What no `contract!` names would never run: it does not build.
#![deny(dead_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

mod access;
mod aggregates;
mod alerts;
mod beside;
mod clock;
mod cluster;
mod collation;
mod commands;
mod concurrent;
mod config;
mod failover;
mod fan_out;
mod fates;
mod fixtures;
mod fleet;
mod groups;
mod history;
mod ingest;
mod leaving;
mod ledger;
mod lww;
mod odd_rows;
mod own_server;
mod partitions;
mod pooled;
mod presence;
mod query;
mod quotas;
mod report;
mod retention;
mod rollups;
mod sensors;
