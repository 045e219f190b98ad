//! The operator's one command: `up` runs all of Tideline on one machine, `decode` reads what
//! `mosquitto_sub` prints, `ledger` accounts for every reading.
//!
//! Reading order: [`cli`] → [`up`] → [`decode`], [`ledger`]. The data path itself lives in the
//! `edge-agent`, `broker` and `bridge` crates, which [`up`] starts in one process.

pub mod cli;
pub mod decode;
pub mod ledger;
pub mod up;
