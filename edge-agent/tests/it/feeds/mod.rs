//! Sources that take what a machine has: programs, brokers, exporters, files.

#[cfg(feature = "exec")]
mod exec;
#[cfg(feature = "file")]
mod file;
#[cfg(feature = "mqtt")]
mod mqtt;
#[cfg(feature = "prometheus")]
mod prometheus;

use std::path::Path;

use edge_agent::config::Settings;
use edge_agent::source::{SourceConfig, SourceState, SourceStatus};

use crate::broker::{Broker, certificates};
use crate::edge::{Edge, config};

/// The sources of a settings file with these sections, in this folder.
fn sources(folder: &Path, sections: &str) -> Vec<SourceConfig> {
    match settings(folder, sections) {
        Ok(settings) => settings.agent.sources,
        Err(failure) => panic!("{failure}"),
    }
}

fn settings(folder: &Path, sections: &str) -> Result<Settings, daemon::Failure> {
    let tls = &certificates().device;
    let file = folder.join("agent.toml");
    let text = format!(
        "[mqtt]\naddress = \"127.0.0.1:1\"\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
         [buffer]\npath = \"buffer.db\"\n{sections}",
        tls.ca, tls.cert, tls.key
    );
    std::fs::write(&file, text).unwrap();
    Settings::load(&file)
}

/// What is wrong with these sections.
fn problems(sections: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let failure = settings(folder.path(), sections).unwrap_err();
    format!(
        "{failure}: {:?}",
        std::error::Error::source(&failure).map(ToString::to_string)
    )
}

/// An agent with these sections.
async fn edge(broker: &Broker, sections: &str) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    edge_in(broker, folder, sections).await
}

async fn edge_in(broker: &Broker, folder: tempfile::TempDir, sections: &str) -> Edge {
    let mut config = config(broker, folder.path());
    config.sources = sources(folder.path(), sections);
    Edge::start_with(config, folder).await
}

fn status(edge: &Edge, source: &str) -> SourceStatus {
    edge.agent.status().sources[source].clone()
}

/// The source's last error, once it is one of such a text.
async fn fails_with(edge: &Edge, source: &str, text: &str) -> String {
    let mut last = None;
    for _ in 0..900 {
        last = status(edge, source).last_error;
        if let Some(error) = last.as_ref().filter(|error| error.contains(text)) {
            return error.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{source} does not say {text:?}: {last:?}");
}

fn is_running(edge: &Edge, source: &str) -> bool {
    status(edge, source).state == SourceState::Running
}

/// Values of a sensor that arrived, in the order of their times.
fn arrived(bridge: &crate::bridge::Bridge, sensor: &str) -> Vec<schema::Value> {
    let heard = bridge.heard();
    let rows = heard.rows.values().filter(|(name, _)| name == sensor);
    let mut rows: Vec<_> = rows
        .map(|(_, row)| (row.observed_at, row.value.clone()))
        .collect();
    rows.sort_by_key(|(at, _)| *at);
    rows.into_iter().map(|(_, value)| value).collect()
}
