//! The one thread that owns the libSQL connection.

use std::sync::Arc;

use daemon::Clock;
use schema::{Epoch, RangeSet};
use tokio::sync::{mpsc, oneshot, watch};

use super::error::BufferError;
use super::handle::{Evictions, Progress, Request};
use super::recovery::Recovery;
use super::settings::BufferSettings;

/// What the thread found when it opened the file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) epoch: Epoch,
    pub(super) last_seq: u64,
    pub(super) pending: RangeSet,
    pub(super) recovery: Option<Recovery>,
}

pub(super) fn run(
    _settings: BufferSettings,
    _clock: Arc<dyn Clock>,
    _queue: mpsc::Receiver<Request>,
    _progress: watch::Sender<Progress>,
    _evictions: Evictions,
    opened: oneshot::Sender<Result<Found, BufferError>>,
) {
    let _ = opened.send(Err(BufferError::Closed));
}
