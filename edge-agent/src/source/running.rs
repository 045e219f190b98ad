//! The sources of an agent that runs. Each can be added, taken away and changed alone: the others go on meanwhile.

use std::sync::{Arc, Mutex};

use daemon::{Lifecycle, lock};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::host::KIND as HOST;
use super::{
    Controls, Outlet, Patience, Report, SCANS_QUEUE, ScanRequest, SourceConfig, SourceName,
    supervise,
};
use crate::ingest::Ingest;

/// How the sources fare, for `/status` and metrics; which there are may change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<Vec<Arc<Report>>>>);

/// The way to the host source that takes requests, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scans(Arc<Mutex<Option<mpsc::Sender<ScanRequest>>>>);

/// What all sources have in common.
pub(crate) struct Running {
    ingest: Ingest,
    lifecycle: Lifecycle,
    /// Ends them all.
    intake: CancellationToken,
    /// Those that have not said their last.
    last_words: TaskTracker,
    /// What of the host source can be set and requested from outside: of the first one, when there are several.
    host: Controls,
    to_host: mpsc::Sender<ScanRequest>,
    scans: Scans,
    reports: Reports,
    /// Changed by one at a time.
    all: AsyncMutex<Vec<One>>,
}

struct One {
    config: SourceConfig,
    has_controls: bool,
    report: Arc<Report>,
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

/// What a change has done, by the sources' names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: Vec<SourceName>,
    pub(crate) removed: Vec<SourceName>,
    pub(crate) changed: Vec<SourceName>,
}

impl Reports {
    /// As they are now.
    pub(crate) fn all(&self) -> Vec<Arc<Report>> {
        lock(&self.0).clone()
    }
}

impl Scans {
    /// The way, if there is one.
    pub(crate) fn get(&self) -> Option<mpsc::Sender<ScanRequest>> {
        lock(&self.0).clone()
    }
}

impl Running {
    /// No sources yet.
    pub(crate) fn new(
        ingest: Ingest,
        lifecycle: Lifecycle,
        intake: CancellationToken,
        mut host: Controls,
        scans: Scans,
    ) -> Self {
        let (to_host, requests) = mpsc::channel(SCANS_QUEUE);
        host.scans = Some(Arc::new(AsyncMutex::new(requests)));
        Self {
            ingest,
            lifecycle,
            intake,
            last_words: TaskTracker::new(),
            host,
            to_host,
            scans,
            reports: Reports::default(),
            all: AsyncMutex::default(),
        }
    }

    pub(crate) fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Counts the sources that may still hand something over.
    pub(crate) fn last_words(&self) -> TaskTracker {
        self.last_words.clone()
    }

    /// Waits until those that listen do so, or have failed to.
    pub(crate) async fn listening(&self) {
        let all = self.all.lock().await;
        let listening: Vec<Arc<Report>> = all
            .iter()
            .filter(|one| one.config.source.listens())
            .map(|one| Arc::clone(&one.report))
            .collect();
        drop(all);
        for report in listening {
            report.begun().await;
        }
    }

    /// Runs these sources, and no others. What is as it was goes on; what is not ends first, with all that it was
    /// told is accepted on disk.
    pub(crate) async fn become_these(&self, wanted: Vec<SourceConfig>) -> Changes {
        let mut all = self.all.lock().await;
        let mut changes = Changes::default();
        let holder = holder(&all, &wanted);
        let stays = |one: &One| {
            let has_controls = holder.as_ref() == Some(&one.config.name);
            has_controls == one.has_controls && wanted.iter().any(|new| new.is_same(&one.config))
        };
        let (mut kept, gone): (Vec<One>, Vec<One>) = all.drain(..).partition(stays);
        for one in &gone {
            one.stop.cancel();
        }
        for one in gone {
            let name = one.config.name;
            // An error is an end, too.
            let _ = one.ended.await;
            match wanted.iter().any(|new| new.name == name) {
                true => changes.changed.push(name),
                false => changes.removed.push(name),
            }
        }
        *lock(&self.scans.0) = holder.as_ref().map(|_| self.to_host.clone());
        for config in wanted {
            let at = kept.iter().position(|one| one.config.name == config.name);
            let one = match at {
                Some(at) => kept.swap_remove(at),
                None => {
                    if !changes.changed.contains(&config.name) {
                        changes.added.push(config.name.clone());
                    }
                    let has_controls = holder.as_ref() == Some(&config.name);
                    self.begin(config, has_controls)
                }
            };
            all.push(one);
        }
        *lock(&self.reports.0) = all.iter().map(|one| Arc::clone(&one.report)).collect();
        changes
    }

    fn begin(&self, config: SourceConfig, has_controls: bool) -> One {
        let source = Arc::clone(&config.source);
        let report = Arc::new(Report::new(config.name.clone(), source.kind()));
        let controls = match has_controls {
            true => Some(self.host.clone()),
            false => config.interval.map(Controls::fixed),
        };
        let outlet = Outlet::new(&config, controls, Arc::clone(&report), self.ingest.clone());
        let stop = self.intake.child_token();
        let (ends, ended) = oneshot::channel();
        let (stopping, whole) = (stop.clone(), self.lifecycle.clone());
        let running = self.last_words.token();
        self.lifecycle.spawn_passing("source", async move {
            let supervised = supervise(source, outlet, Patience::default(), stopping.clone());
            tokio::pin!(supervised);
            tokio::select! {
                () = &mut supervised => {}
                () = whole.stopping() => {
                    stopping.cancel();
                    supervised.await;
                }
            }
            drop(running);
            // Nobody waits where the agent stops.
            let _ = ends.send(());
            Ok(())
        });
        One {
            config,
            has_controls,
            report,
            stop,
            ended,
        }
    }
}

/// Which source has the controls of the host: the one that has them, while there is one of its name; else the first.
fn holder(all: &[One], wanted: &[SourceConfig]) -> Option<SourceName> {
    let is_host = |config: &&SourceConfig| config.source.kind() == HOST;
    let before = all.iter().find(|one| one.has_controls);
    let hosts = || wanted.iter().filter(is_host);
    before
        .and_then(|before| hosts().find(|config| config.name == before.config.name))
        .or_else(|| hosts().next())
        .map(|config| config.name.clone())
}
