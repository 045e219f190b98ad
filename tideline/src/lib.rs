//! The operator's one command: `up` runs all of Tideline on one machine, `decode` reads what
//! `mosquitto_sub` prints, everything else asks a bridge over its REST API, as a person or a script
//! would. What devices and bridges say is shown, never obeyed: no control character of theirs
//! reaches a terminal.
//!
//! Reading order: [`cli`] → [`up`] → `session` (ask and print), `api` (one bridge: connection,
//! refusals, pages) and `output` (tables, progress) → [`device`], [`command`], [`config`], [`data`],
//! [`ledger`], [`dead_letter`], [`alert`], [`token`], [`audit`], [`status`] → [`decode`],
//! [`completions`]. The data path itself lives in the `edge-agent`, `broker` and `bridge` crates,
//! which [`up`] starts in one process.

mod accounted;
pub mod alert;
pub mod audit;
pub mod cli;
mod client;
pub mod command;
pub mod completions;
pub mod config;
pub mod data;
pub mod dead_letter;
pub mod decode;
pub mod device;
mod labels;
pub mod ledger;
mod moment;
mod output;
mod session;
pub mod status;
pub mod token;
pub mod up;
