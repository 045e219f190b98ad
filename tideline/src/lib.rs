//! The operator's one command: `up` runs all of Tideline on one machine, `decode` reads what
//! `mosquitto_sub` prints, `ledger` accounts for every reading, `command` has devices do something,
//! `config` changes their settings.
//!
//! Reading order: [`cli`] → [`up`] → [`decode`], [`ledger`], [`command`], [`config`]. The data path itself lives in the
//! `edge-agent`, `broker` and `bridge` crates, which [`up`] starts in one process.

mod api;
pub mod cli;
pub mod command;
pub mod config;
pub mod decode;
pub mod ledger;
pub mod up;
