//! A source of some settings, from the settings file to what a bridge hears of it.

use edge_agent::Settings;
use edge_agent::source::SourceState;
use schema::{Quality, Value};

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;

/// An agent with one source, `trial`, and what a bridge hears of it.
pub(crate) struct Trial {
    pub(crate) edge: Edge,
    pub(crate) bridge: Bridge,
    _broker: Broker,
}

impl Trial {
    /// Starts it with a source of a kind, and these lines of its section.
    pub(crate) async fn start(kind: &str, settings: &str) -> Self {
        let broker = Broker::start();
        let bridge = Bridge::start(&broker).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let text = format!("[source.trial]\nkind = {kind:?}\n{settings}\n");
        std::fs::write(&path, text).unwrap();
        let mut config = config(&broker, folder.path());
        config.sources = Settings::load_sources(&path).unwrap();
        let edge = Edge::start_with(config, folder).await;
        Self {
            edge,
            bridge,
            _broker: broker,
        }
    }

    /// What a sensor said, in the order in which it was read.
    pub(crate) fn readings(&self, sensor: &str) -> Vec<(Value, Quality)> {
        let heard = self.bridge.heard();
        let rows = heard.rows.values().filter(|(name, _)| name == sensor);
        rows.map(|(_, row)| (row.value.clone(), row.quality))
            .collect()
    }

    /// What it said last.
    pub(crate) fn last(&self, sensor: &str) -> Option<(Value, Quality)> {
        self.readings(sensor).pop()
    }

    /// Waits until a sensor's last reading is this value, and good.
    pub(crate) async fn until_good(&self, sensor: &str, value: Value) {
        let wanted = Some((value, Quality::Good));
        eventually(&format!("{sensor} is read"), || self.last(sensor) == wanted).await;
    }

    /// How the source fares, and its last error.
    pub(crate) fn state(&self) -> (SourceState, String) {
        let status = self.edge.agent.status();
        let source = &status.sources["trial"];
        (source.state, source.last_error.clone().unwrap_or_default())
    }
}
