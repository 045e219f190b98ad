//! When a source that polls is due: at its interval, which may change while it runs, or because somebody requests it.
//! Between two calls of [`Polls::next`] the source is reading, and is watched for how long that takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Report;
use crate::ingest::IngestError;

/// Requests for a scan that may wait.
pub(crate) const SCANS_QUEUE: usize = 8;

/// With longer intervals than this, a poll that hangs is still noticed after it.
const STALL_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// A request for a scan now; answered with how many of its readings were accepted, or why none was.
pub type ScanRequest = oneshot::Sender<Result<u64, IngestError>>;

/// What of a source that polls changes while it runs, and the requests for scans.
#[derive(Debug, Clone)]
pub(crate) struct Controls {
    pub(crate) interval: watch::Receiver<Duration>,
    /// Of sensors whose rule has none; `None` when it cannot be set while it runs.
    pub(crate) dead_band: Option<watch::Receiver<Option<f64>>>,
    /// Of one run at a time.
    pub(crate) scans: Option<Arc<Mutex<mpsc::Receiver<ScanRequest>>>>,
}

/// Why a poll is due.
#[derive(Debug)]
pub enum Due {
    /// Its interval passed.
    Tick,
    /// It was requested; each of its readings is taken.
    Requested(ScanRequest),
}

/// The polls of one run of a source.
#[derive(Debug)]
pub struct Polls {
    interval: watch::Receiver<Duration>,
    scans: Option<OwnedMutexGuard<mpsc::Receiver<ScanRequest>>>,
    ticks: Interval,
    timeout: Duration,
    report: Arc<Report>,
}

impl Controls {
    /// A fixed interval, and no requests.
    pub(crate) fn fixed(interval: Duration) -> Self {
        Self {
            interval: watch::channel(interval).1,
            dead_band: None,
            scans: None,
        }
    }
}

impl Polls {
    pub(super) fn new(controls: &Controls, timeout: Duration, report: Arc<Report>) -> Self {
        let mut interval = controls.interval.clone();
        let ticks = ticks_every(*interval.borrow_and_update());
        // One that was left behind may hold them; then there are none for this run.
        let scans = controls.scans.clone();
        let scans = scans.and_then(|scans| scans.try_lock_owned().ok());
        Self {
            interval,
            scans,
            ticks,
            timeout,
            report,
        }
    }

    /// Waits until a poll is due; `None` when the source is to stop. The first is due at once, and one that was
    /// missed is not made up for.
    pub async fn next(&mut self, stop: &CancellationToken) -> Option<Due> {
        self.report.busy(None);
        let due = loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = self.ticks.tick() => break Due::Tick,
                Some(request) = requested(self.scans.as_deref_mut()) => break Due::Requested(request),
                // The first tick comes at once: the effect of a change shows.
                pause = changed(&mut self.interval) => self.ticks = ticks_every(pause),
            }
        };
        let usual = self.ticks.period().min(STALL_INTERVAL_MAX);
        // Half more: a busy machine is no hanging source.
        let allowance = usual.max(2 * self.timeout) * 3 / 2;
        self.report.busy(Some(allowance));
        Some(due)
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        self.report.busy(None);
    }
}

async fn requested(scans: Option<&mut mpsc::Receiver<ScanRequest>>) -> Option<ScanRequest> {
    match scans {
        Some(scans) => scans.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for a change; for ever when the sender is gone.
async fn changed(interval: &mut watch::Receiver<Duration>) -> Duration {
    if interval.changed().await.is_ok() {
        return *interval.borrow_and_update();
    }
    std::future::pending().await
}

fn ticks_every(pause: Duration) -> Interval {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
