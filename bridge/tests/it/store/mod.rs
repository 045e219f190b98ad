//! One contract for every store: each test here runs against the embedded file, PostgreSQL, and a
//! CockroachDB when `TIDELINE_TEST_COCKROACH_URL` names one.

mod access;
mod aggregates;
mod alerts;
mod clock;
mod cluster;
mod collation;
mod commands;
mod concurrent;
mod config;
mod fan_out;
mod fates;
mod faults;
mod fixture;
mod fixtures;
mod fleet;
mod groups;
mod history;
mod ingest;
mod ledger;
mod lww;
mod odd_rows;
mod proxy;
mod query;
mod report;
mod retention;

/// Makes a test of each named function for each database.
macro_rules! contract {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] $(#[$meta])* fn $name() { crate::store::fixture::embedded(super::$name); })+
        }
        mod postgres {
            $(#[test] $(#[$meta])* fn $name() { crate::store::fixture::postgres(super::$name); })+
        }
        mod cockroach {
            $(#[test] $(#[$meta])* fn $name() { crate::store::fixture::cockroach(super::$name); })+
        }
    };
}
use contract;
