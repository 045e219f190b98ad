//! The link's metric families.

use std::sync::{Arc, Mutex, PoisonError};

use daemon::Class;
use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::counted::Traffic;

/// Places of brokers in the settings, as labels.
const PLACES: [&str; super::BROKERS_MAX] = ["1", "2", "3", "4", "5", "6", "7", "8"];

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
    /// Bytes that passed the socket.
    pub traffic: Traffic,
    failures: Family<Label, Counter>,
    in_use: Family<Label, Gauge>,
    broker: Arc<Mutex<Option<String>>>,
}

impl LinkMeters {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let bytes = Family::<Label, Counter>::default();
        registry.register_with_unit(
            "tideline_agent_link",
            "Bytes that passed the socket of the link, TLS included",
            Unit::Bytes,
            bytes.clone(),
        );
        let of = |direction| bytes.get_or_create_owned(&[("direction", direction)]);
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
            in_use: registered(
                registry,
                "tideline_agent_link_broker",
                "1 for the broker that is connected, by its place in [mqtt] addresses",
            ),
            traffic: Traffic {
                sent: of("sent"),
                received: of("received"),
            },
            broker: Arc::default(),
        }
    }

    pub(crate) fn failed(&self, class: Class) {
        let class = [("class", class.as_str())];
        self.failures.get_or_create(&class).inc();
    }

    /// The broker at this place of the list, from 0, is connected.
    pub(crate) fn came_up(&self, place: usize, broker: &str) {
        // Another one may have been, a moment before.
        self.disconnected();
        self.connected.set(1);
        self.connections.inc();
        if let Some(place) = PLACES.get(place) {
            self.in_use.get_or_create(&[("place", place)]).set(1);
        }
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = Some(broker.to_owned());
    }

    pub(crate) fn disconnected(&self) {
        self.connected.set(0);
        let mut broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        if broker.take().is_some() {
            for place in PLACES {
                // Those that never were connected have no series.
                if let Some(gauge) = self.in_use.get(&[("place", place)]) {
                    gauge.set(0);
                }
            }
        }
    }

    /// The broker that is connected.
    #[must_use]
    pub fn broker(&self) -> Option<String> {
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        broker.clone()
    }
}
