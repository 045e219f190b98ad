//! An agent in this process.

use std::path::Path;
use std::time::Duration;

use daemon::{Health, Lifecycle};
use edge_agent::session::SessionConfig;
use edge_agent::{Agent, Config, RunningAgent};
use prometheus_client::registry::Registry;
use schema::{ObservedAt, Quality, Reading, Value};
use tempfile::TempDir;

use crate::broker::{Broker, certificates};

/// An agent with quick timers. Its folder outlives it when it is taken out.
pub(crate) struct Edge {
    pub(crate) agent: RunningAgent,
    pub(crate) health: Health,
    pub(crate) lifecycle: Lifecycle,
    registry: Registry,
    pub(crate) folder: TempDir,
}

pub(crate) fn config(broker: &Broker, folder: &Path) -> Config {
    config_at(broker.port, folder)
}

/// For a broker at this port of this machine.
pub(crate) fn config_at(port: u16, folder: &Path) -> Config {
    let tls = certificates().device.clone();
    let mut config = Config::new("127.0.0.1", port, tls, folder.join("buffer.db")).unwrap();
    config.link.backoff = (Duration::from_millis(20), Duration::from_millis(100));
    config.buffer.linger = Duration::from_millis(1);
    config.session = SessionConfig {
        linger: Duration::from_millis(10),
        timeout_initial: Duration::from_millis(500),
        timeout_min: Duration::from_millis(300),
        timeout_max: Duration::from_secs(2),
        history_rows_per_second: 100_000,
        refusal_stale: Duration::from_secs(1),
        ..SessionConfig::default()
    };
    config
}

impl Edge {
    pub(crate) async fn start(broker: &Broker) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(broker, folder.path());
        Self::start_with(config, folder).await
    }

    pub(crate) async fn start_with(config: Config, folder: TempDir) -> Self {
        let (lifecycle, health) = (Lifecycle::new(), Health::default());
        let mut registry = Registry::default();
        let agent = Agent::start(config, &lifecycle, &health, &mut registry)
            .await
            .unwrap();
        Self {
            agent,
            health,
            lifecycle,
            registry,
            folder,
        }
    }

    /// Hands readings over and waits until they are on disk.
    pub(crate) async fn append(&self, count: usize) {
        let appended = self.agent.ingest().append(readings(count)).await.unwrap();
        assert!(appended.refused.is_empty());
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.lifecycle.finish(Duration::from_secs(5)).await.unwrap();
        self.folder
    }

    /// A value from the metrics' text, as a scrape sees it.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }
}

/// Readings of a few sensors, each with a time of its own.
pub(crate) fn readings(count: usize) -> Vec<Reading> {
    use std::sync::atomic::{AtomicI64, Ordering};
    static MILLIS: AtomicI64 = AtomicI64::new(1_700_000_000_000);
    (0..count)
        .map(|n| Reading {
            sensor: format!("sensor-{}", n % 7).parse().unwrap(),
            observed_at: ObservedAt::from_millis(MILLIS.fetch_add(1, Ordering::Relaxed)),
            value: Value::F64(n as f64 / 4.0),
            quality: Quality::Good,
        })
        .collect()
}
