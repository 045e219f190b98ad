//! Where readings come from.
//!
//! ```text
//!  settings ─► config ─► Arc<dyn Source> ─► supervisor (a task each) ─► run(outlet, stop)
//!                                                                          │
//!              ingest ◄── outlet: rate limit ─► shaping ─► meters ◄────────┘
//! ```
//!
//! A source is its settings, checked: it never changes, and [`Source::run`] makes whatever it needs anew. So the
//! supervisor can run it again after an error, a panic or a hang, and none of these reaches another source or the
//! agent. What [`Outlet::append`] returned `Ok` for, and was not dropped or refused, is on disk.
//!
//! A new kind: a module with its settings and `impl Source`, and a line in [`kinds`].

mod config;
mod described;
#[cfg(feature = "exec")]
pub mod exec;
#[cfg(feature = "file")]
pub mod file;
pub mod format;
pub mod host;
mod kinds;
#[cfg(feature = "modbus")]
pub mod modbus;
#[cfg(feature = "mqtt")]
pub mod mqtt;
mod outlet;
mod polls;
#[cfg(feature = "prometheus")]
pub mod prometheus;
pub mod replay;
mod report;
mod running;
mod said;
pub mod shape;
pub mod simulate;
pub mod socket;
mod supervisor;
#[cfg(test)]
mod trial;
mod verdict;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use daemon::Failure;
use tokio_util::sync::CancellationToken;

pub(crate) use config::{RawSources, read};
pub use config::{SOURCES_MAX, Section, SourceConfig, SourceName, SourceNameError};
pub use outlet::{Outlet, Submission};
pub(crate) use polls::{Controls, SCANS_QUEUE};
pub use polls::{Due, Polls, ScanRequest};
pub(crate) use report::{Report, SourceCollector};
pub use report::{SourceCounts, SourceState, SourceStatus};
pub(crate) use running::{Changes, Reports, Running, Scans};
pub(crate) use supervisor::{Patience, supervise};
pub use verdict::{Dropped, Outcome, Refusal, Verdict};

/// A source: the checked settings of one, and how it is run.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Its kind, as `kind = "…"` names it.
    fn kind(&self) -> &'static str;

    /// What it reads, from where, in one line for people.
    fn describe(&self) -> String;

    /// What a start would find, in one line. Changes nothing.
    ///
    /// # Errors
    /// When a start could not succeed until somebody mends it.
    async fn check(&self) -> Result<String, Failure> {
        Ok(self.describe())
    }

    /// Files that are its own: the key that names each, and its path. The buffer and tls may not have the same.
    fn files(&self) -> Vec<(&'static str, &Path)> {
        Vec::new()
    }

    /// Whether others come to it: a start then waits a moment until they can.
    fn listens(&self) -> bool {
        false
    }

    /// Reads and hands over until `stop`; leaves its loop promptly then. Is called again after an error, with
    /// backoff. `Ok` before `stop` means that there is no more to read: it is then not called again.
    ///
    /// Never blocks its thread: what may hang (a file system, a device) belongs in a thread of its own.
    ///
    /// # Errors
    /// Whatever keeps it from reading now: it is shown as the source's last error.
    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure>;
}
