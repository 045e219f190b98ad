//! This machine's own sensors, through sysinfo: one scan is one append.
//!
//! Names follow Prometheus: base units at the end, ratios from 0 to 1.
//!
//! ```text
//! host/cpu/busy_ratio             host/memory/{total,available,used}_bytes
//! host/cpu/N/busy_ratio           host/swap/{total,used}_bytes
//! host/load/{1m,5m,15m}           host/disk/MOUNT/{total,available}_bytes
//! host/uptime_seconds             host/network/INTERFACE/{receive,transmit}_bytes_per_second
//! host/temperature/LABEL/celsius     (LABEL/2 for a second one of that name)
//! ```
//!
//! No two sensors share a name: mounts are named by where they are, cores by number, and temperatures of one label are
//! numbered by where their chips sit (`names`). A file system that does not answer is skipped and named (`mounts`).

mod meaning;
mod mounts;
mod names;
mod scan;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::Failure;
use schema::{ObservedAt, Reading};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::mounts::{Mounts, Probe};
use self::scan::Scanner;
use self::thread::ScanThreads;
use super::config::Section;
use super::described::Described;
use super::{Due, Outlet, Source, SourceConfig, SourceName};
use crate::buffer::Append;

/// Its name as a kind.
pub const KIND: &str = "host";

/// Between two scans, unless set. Ten seconds show a busy machine's minutes and cost a thousandth of one core.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// The shortest interval: below it processor shares mean nothing.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);

/// For each mounted file system to say how full it is, unless set: a healthy one takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The `host` source.
#[derive(Debug, Clone, Default)]
pub struct HostSource {
    /// Whether each processor core has a sensor of its own.
    pub per_core: bool,
    probe: Probe,
    threads: ScanThreads,
}

#[derive(Debug, Deserialize)]
struct RawHost {
    #[serde(default)]
    per_core: bool,
}

/// Reads the section of a host source.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    section.interval(
        INTERVAL,
        INTERVAL_MIN..=INTERVAL_MAX,
        "must be from 200ms (below it processor shares mean nothing) to 1day",
    );
    section.timeout(
        TIMEOUT,
        TIMEOUT_MIN..=TIMEOUT_MAX,
        "must be from 10ms to 1m",
    );
    let RawHost { per_core } = section.read()?;
    Some(Arc::new(HostSource::new(per_core)))
}

impl HostSource {
    /// This machine, with a sensor for each core or for all together.
    #[must_use]
    pub fn new(per_core: bool) -> Self {
        Self {
            per_core,
            ..Self::default()
        }
    }

    /// A source named `host` that scans so often.
    #[must_use]
    pub fn every(self, interval: Duration) -> SourceConfig {
        SourceConfig {
            interval: Some(interval),
            timeout: Some(TIMEOUT),
            ..SourceConfig::named(SourceName::of_kind(KIND), self)
        }
    }
}

#[async_trait]
impl Source for HostSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let cores = if self.per_core { ", each core" } else { "" };
        format!("this machine{cores}")
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let mounts = Mounts::new(self.probe.clone(), outlet.timeout());
        let scanner = Scanner::new(self.per_core, mounts);
        let mut scans = self.threads.begin(scanner)?;
        let mut polls = outlet.polls();
        let mut hanging = Vec::new();
        let mut described = Described::default();
        while let Some(due) = polls.next(&stop).await {
            let observed_at = ObservedAt::from_millis(outlet.now_micros() / 1000);
            let (readings, now_hanging) = tokio::select! {
                scanned = scans.scan(observed_at) => scanned?,
                () = stop.cancelled() => break,
            };
            note_hanging(&outlet, &hanging, &now_hanging);
            hanging = now_hanging;
            for Reading { sensor, .. } in &readings {
                if described.is_new(sensor) {
                    outlet.declare(sensor, meaning::of(sensor.as_str()));
                }
            }
            let append = Append::read(readings);
            let appended = async {
                match due {
                    Due::Tick => (outlet.append(append).await, None),
                    Due::Requested(request) => (outlet.append_whole(append).await, Some(request)),
                }
            };
            let (outcome, request) = tokio::select! {
                appended = appended => appended,
                () = stop.cancelled() => break,
            };
            let outcome = outcome.map(|outcome| outcome.accepted());
            // A scan that is refused is over: the next one shows how things stand then.
            outlet.note(outcome.clone());
            if let Some(request) = request {
                // The caller may be gone.
                let _ = request.send(outcome);
            }
        }
        Ok(())
    }
}

/// Names file systems that no longer answer, and those that do again.
fn note_hanging(outlet: &Outlet, before: &[PathBuf], now: &[PathBuf]) {
    for mount in now.iter().filter(|mount| !before.contains(mount)) {
        let mount = mount.display().to_string();
        warn!(
            mount,
            "file system does not answer; it is skipped until it does"
        );
        outlet.left_behind(&mount, true);
    }
    for mount in before.iter().filter(|mount| !now.contains(mount)) {
        outlet.left_behind(&mount.display().to_string(), false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use daemon::SystemClock;
    use tokio::sync::mpsc;

    use super::mounts::Space;
    use super::*;
    use crate::source::Report;

    #[tokio::test]
    async fn a_mount_that_hangs_is_named_and_the_rest_is_read() {
        let hangs = Arc::new(AtomicBool::new(true));
        let waits = Arc::clone(&hangs);
        let source = HostSource {
            probe: Probe::of(move |_| {
                while waits.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(Space {
                    total: 10,
                    available: 4,
                })
            }),
            ..HostSource::new(false)
        };
        let mut config = source.every(Duration::from_millis(200));
        config.timeout = Some(Duration::from_millis(20));
        let report = Arc::new(Report::new(config.name.clone(), KIND));
        let (shown, mut samples) = mpsc::channel(1);
        let outlet = Outlet::shown(
            &config,
            Arc::clone(&report),
            shown,
            Arc::new(SystemClock::default()),
            crate::sensors::Sensors::default(),
        );
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&config.source).run(outlet, stop.clone()));
        let names = |samples: Vec<crate::buffer::Sample>| -> Vec<String> {
            samples
                .iter()
                .map(|one| one.reading.sensor.to_string())
                .collect()
        };
        let first = names(samples.recv().await.unwrap());
        assert!(first.contains(&"host/load/1m".to_owned()), "{first:?}");
        assert!(
            !first.iter().any(|name| name.contains("/disk/")),
            "{first:?}"
        );
        let left = report.status().left_behind;
        assert!(!left.is_empty(), "every mount of this machine is named");
        hangs.store(false, Ordering::Relaxed);
        loop {
            let again = names(samples.recv().await.unwrap());
            if left
                .iter()
                .all(|mount| again.contains(&format!("host/disk/{mount}/total_bytes")))
            {
                break;
            }
        }
        assert!(report.status().left_behind.is_empty());
        stop.cancel();
        samples.close();
        running.await.unwrap().unwrap();
    }
}
