//! What is counted of connections, by role and reason: small enums, never a device, topic or client id. Shards and TLS files
//! count for themselves.

use certs::Role;
use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::error::{Close, HandshakeFailure, Refusal};

/// The metrics of all connections.
#[derive(Debug)]
pub(crate) struct ConnectionMeters {
    roles: [RoleMeters; Role::ALL.len()],
    refused: Family<Label, Counter>,
    closed: Family<Label, Counter>,
    handshakes_failed: Family<Label, Counter>,
    /// Times that a client was slowed down for sending too much.
    pub(crate) throttled: Counter,
    pub(crate) wills: Counter,
    /// Messages over the size that an MQTT 5 client takes.
    pub(crate) too_large: Counter,
}

/// What is counted for each role, looked up once a connection.
#[derive(Debug, Clone)]
pub(crate) struct RoleMeters {
    pub(crate) connections: Gauge,
    pub(crate) opened: Counter,
    pub(crate) publishes_in: Counter,
    pub(crate) publishes_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

/// A role, and `in` or `out`.
type FlowLabel = [(&'static str, &'static str); 2];

impl ConnectionMeters {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            roles: RoleMeters::register(registry),
            refused: registered(
                registry,
                "tideline_broker_refused",
                "Connections, messages and subscriptions that were refused, by reason",
            ),
            closed: registered(
                registry,
                "tideline_broker_connections_closed",
                "Connections that ended, by reason",
            ),
            handshakes_failed: registered(
                registry,
                "tideline_broker_handshake_failures",
                "Connections that ended before anybody knew who they were, by reason",
            ),
            throttled: registered(
                registry,
                "tideline_broker_throttled",
                "Times that a client was slowed down for sending too much",
            ),
            wills: registered(
                registry,
                "tideline_broker_wills",
                "Last wills that were published",
            ),
            too_large: registered(
                registry,
                "tideline_broker_too_large",
                "Messages that were not sent because the client takes none so large",
            ),
        }
    }

    /// The counters of one role.
    pub(crate) fn of(&self, role: Role) -> RoleMeters {
        self.roles[role as usize].clone()
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        count(&self.refused, refusal.as_str());
    }

    pub(crate) fn closed(&self, close: Close) {
        count(&self.closed, close.as_str());
    }

    pub(crate) fn handshake_failed(&self, failure: HandshakeFailure) {
        count(&self.handshakes_failed, failure.as_str());
    }
}

impl RoleMeters {
    fn register(registry: &mut Registry) -> [Self; Role::ALL.len()] {
        let connections: Family<Label, Gauge> = registered(
            registry,
            "tideline_broker_connections",
            "Clients that are connected, by role",
        );
        let opened: Family<Label, Counter> = registered(
            registry,
            "tideline_broker_connections_opened",
            "Clients that were let in, by role",
        );
        let publishes: Family<FlowLabel, Counter> = registered(
            registry,
            "tideline_broker_publishes",
            "Messages taken from clients and sent to them, by role",
        );
        let bytes = Family::<FlowLabel, Counter>::default();
        registry.register_with_unit(
            "tideline_broker_publish",
            "Payloads taken from clients and sent to them, by role",
            Unit::Bytes,
            bytes.clone(),
        );
        Role::ALL.map(|role| {
            let role = role.as_str();
            let flow = |family: &Family<FlowLabel, Counter>, direction| {
                family.get_or_create_owned(&[("role", role), ("direction", direction)])
            };
            Self {
                connections: connections.get_or_create_owned(&[("role", role)]),
                opened: opened.get_or_create_owned(&[("role", role)]),
                publishes_in: flow(&publishes, "in"),
                publishes_out: flow(&publishes, "out"),
                bytes_in: flow(&bytes, "in"),
                bytes_out: flow(&bytes, "out"),
            }
        })
    }
}

fn count(family: &Family<Label, Counter>, reason: &'static str) {
    family.get_or_create(&[("reason", reason)]).inc();
}
