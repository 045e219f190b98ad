//! What the connection to the broker counts.

use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use schema::Channel;

/// The metrics of the connection to the broker.
#[derive(Debug)]
pub struct IntakeMeters {
    pub(super) connected: Gauge,
    pub(super) connections: Counter,
    messages: Family<Label, Counter>,
    bytes: Counter,
    pub(super) dropped: Counter,
}

impl IntakeMeters {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            connected: registered(
                registry,
                "tideline_bridge_connected",
                "Whether the broker is connected",
            ),
            connections: registered(
                registry,
                "tideline_bridge_connections",
                "Connections made to the broker",
            ),
            messages: registered(
                registry,
                "tideline_bridge_messages",
                "Messages received, by channel",
            ),
            bytes: registered(
                registry,
                "tideline_bridge_received_payload_bytes",
                "Bytes of payload received",
            ),
            dropped: registered(
                registry,
                "tideline_bridge_messages_dropped",
                "Messages dropped because the queue was full; devices send them again",
            ),
        }
    }

    /// Counts a message with a payload of so many bytes; of no channel where its topic is none of ours.
    pub(super) fn received(&self, channel: Option<Channel>, bytes: usize) {
        let channel = match channel {
            Some(Channel::Telemetry) => "Telemetry",
            Some(Channel::Event) => "Event",
            Some(Channel::Status) => "Status",
            Some(Channel::Ack | Channel::Command | Channel::Config) | None => "Unknown",
        };
        self.messages.get_or_create(&[("channel", channel)]).inc();
        self.bytes.inc_by(bytes as u64);
    }
}
