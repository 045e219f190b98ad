//! Servers that tests and benchmarks need, started in temporary folders on free ports.
//!
//! A server stops and its folder goes when its value is dropped, so also after a failure or a
//! panic. A signal is turned into a failure by [`crate::supervisor`].

pub(crate) mod postgres;
mod trust;

pub(crate) use postgres::Postgres;
