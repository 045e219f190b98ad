//! The broker's metric families. Roles and reasons are small enums; no device, topic or client
//! id ever becomes a label.

use certs::Role;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::error::{Close, Refusal};

/// Everything that the broker counts. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Meters {
    roles: [RoleMeters; Role::ALL.len()],
    refused: Family<ReasonLabel, Counter>,
    closed: Family<ReasonLabel, Counter>,
    handshakes_failed: Family<ReasonLabel, Counter>,
    /// Clients that were slowed down for sending too much.
    pub(crate) throttled: Counter,
    /// Messages that a log dropped before a subscriber took them.
    pub(crate) backlog_dropped: Counter,
    /// Messages in the retained store.
    pub(crate) retained: Gauge,
    /// Messages that were to be retained when there was no room.
    pub(crate) not_retained: Counter,
    /// Wills published.
    pub(crate) wills: Counter,
    /// Messages over the size that an MQTT 5 client takes.
    pub(crate) too_large: Counter,
    /// Readings of changed TLS files that failed.
    pub(crate) reload_failures: Counter,
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

/// Why nobody knows who a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// TLS failed: no certificate, another authority's, revoked, too old a TLS.
    Tls,
    /// It took too long, TLS or the CONNECT after it.
    Timeout,
    /// The certificate names nobody.
    Identity,
    /// The client went away.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabel {
    role: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Meters {
    /// Adds the families to a registry.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let connections = Family::<RoleLabel, Gauge>::default();
        let opened = Family::<RoleLabel, Counter>::default();
        let publishes = Family::<FlowLabel, Counter>::default();
        let bytes = Family::<FlowLabel, Counter>::default();
        let roles = Role::ALL.map(|role| {
            let role = role.as_str();
            let flow = |direction| FlowLabel { role, direction };
            let counter = |family: &Family<FlowLabel, Counter>, direction| {
                family.get_or_create_owned(&flow(direction))
            };
            RoleMeters {
                connections: connections.get_or_create_owned(&RoleLabel { role }),
                opened: opened.get_or_create_owned(&RoleLabel { role }),
                publishes_in: counter(&publishes, "in"),
                publishes_out: counter(&publishes, "out"),
                bytes_in: counter(&bytes, "in"),
                bytes_out: counter(&bytes, "out"),
            }
        });
        let meters = Self {
            roles,
            refused: Family::default(),
            closed: Family::default(),
            handshakes_failed: Family::default(),
            throttled: Counter::default(),
            backlog_dropped: Counter::default(),
            retained: Gauge::default(),
            not_retained: Counter::default(),
            wills: Counter::default(),
            too_large: Counter::default(),
            reload_failures: Counter::default(),
        };
        registry.register(
            "tideline_broker_connections",
            "Clients that are connected, by role",
            connections,
        );
        registry.register(
            "tideline_broker_connections_opened",
            "Clients that were let in, by role",
            opened,
        );
        registry.register(
            "tideline_broker_publishes",
            "Messages taken from clients and sent to them, by role",
            publishes,
        );
        registry.register_with_unit(
            "tideline_broker_publish",
            "Payloads taken from clients and sent to them, by role",
            Unit::Bytes,
            bytes,
        );
        registry.register(
            "tideline_broker_refused",
            "Connections, messages and subscriptions that were refused, by reason",
            meters.refused.clone(),
        );
        registry.register(
            "tideline_broker_connections_closed",
            "Connections that ended, by reason",
            meters.closed.clone(),
        );
        registry.register(
            "tideline_broker_handshake_failures",
            "Connections that ended before anybody knew who they were, by reason",
            meters.handshakes_failed.clone(),
        );
        registry.register(
            "tideline_broker_throttled",
            "Times that a client was slowed down for sending too much",
            meters.throttled.clone(),
        );
        registry.register(
            "tideline_broker_backlog_dropped",
            "Messages that were dropped because a subscriber did not take them in time",
            meters.backlog_dropped.clone(),
        );
        registry.register(
            "tideline_broker_retained_messages",
            "Messages in the retained store",
            meters.retained.clone(),
        );
        registry.register(
            "tideline_broker_not_retained",
            "Messages that were not retained for want of room",
            meters.not_retained.clone(),
        );
        registry.register(
            "tideline_broker_wills",
            "Last wills that were published",
            meters.wills.clone(),
        );
        registry.register(
            "tideline_broker_too_large",
            "Messages that were not sent because the client takes none so large",
            meters.too_large.clone(),
        );
        registry.register(
            "tideline_broker_reload_failures",
            "Changed certificates or revocation lists that could not be used",
            meters.reload_failures.clone(),
        );
        meters
    }

    /// The counters of one role.
    pub(crate) fn of(&self, role: Role) -> RoleMeters {
        self.roles[role as usize].clone()
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        let reason = refusal.as_str();
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn closed(&self, close: Close) {
        let reason = match close {
            Close::Disconnected { .. } => "disconnected",
            Close::Lost => "lost",
            Close::Refused(_) => "refused",
            Close::KeepAlive => "keep_alive",
            Close::TakenOver => "taken_over",
            Close::Slow => "slow_consumer",
            Close::Revoked => "revoked",
            Close::Stopping => "stopping",
            Close::Broken => "broken",
        };
        self.closed.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn handshake_failed(&self, failure: HandshakeFailure) {
        let reason = match failure {
            HandshakeFailure::Tls => "tls",
            HandshakeFailure::Timeout => "timeout",
            HandshakeFailure::Identity => "identity",
            HandshakeFailure::Lost => "lost",
        };
        self.handshakes_failed
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }
}
