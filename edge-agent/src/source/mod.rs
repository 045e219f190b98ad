//! Where readings come from. A source runs as a task of its own, checks what it takes in, and
//! hands it to the buffer through [`Ingest`]; what was handed over and not refused is on disk.

mod dead_band;
pub mod host;
mod line;
pub mod socket;

use std::fmt;

use async_trait::async_trait;
use daemon::Failure;
use tokio_util::sync::CancellationToken;

use crate::ingest::Ingest;

/// A kind of source.
#[async_trait]
pub trait Source: fmt::Debug + Send + 'static {
    /// The name of its task, as it stands in logs: `host source`.
    fn name(&self) -> &'static str;

    /// Reads and hands over until `stop`; leaves its loop promptly then. What the buffer refuses
    /// because its disk is full is tried again or reported to the producer, never dropped silently.
    ///
    /// # Errors
    /// Only what no retry can mend: it ends the agent.
    async fn run(self: Box<Self>, ingest: Ingest, stop: CancellationToken) -> Result<(), Failure>;
}
