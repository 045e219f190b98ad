//! The link's metric families.

use daemon::Class;
use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the link counts.
#[derive(Debug, Clone, Default)]
pub struct LinkMeters {
    /// 1 while connected.
    pub connected: Gauge,
    /// Connections that came up.
    pub connections: Counter,
    /// Messages that could not be read.
    pub unreadable: Counter,
    /// Acknowledgements that found no room.
    pub overflowed: Counter,
    failures: Family<Label, Counter>,
}

impl LinkMeters {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            connected: registered(
                registry,
                "tideline_agent_connected",
                "Whether the broker is connected and subscribed to",
            ),
            connections: registered(
                registry,
                "tideline_agent_connections",
                "Connections to the broker that came up",
            ),
            failures: registered(
                registry,
                "tideline_agent_connection_failures",
                "Attempts and connections that failed, by class",
            ),
            unreadable: registered(
                registry,
                "tideline_agent_downlinks_unreadable",
                "Messages for this device that could not be read",
            ),
            overflowed: registered(
                registry,
                "tideline_agent_downlinks_overflowed",
                "Acknowledgements dropped because too many waited; each costs a retransmission",
            ),
        }
    }

    pub(crate) fn failed(&self, class: Class) {
        let class = [("class", class.as_str())];
        self.failures.get_or_create(&class).inc();
    }
}
