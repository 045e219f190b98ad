//! What is counted of requests that are turned away.

use daemon::metrics::{Label, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Its metric.
#[derive(Debug)]
pub(crate) struct AuthMeters(Family<Label, Counter>);

impl AuthMeters {
    /// Registers it.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self(registered(
            registry,
            "tideline_bridge_api_refused",
            "Requests without a token that counts",
        ))
    }

    /// A request without a token that counts; the reason is one of few.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.0.get_or_create(&[("reason", reason)]).inc();
    }
}
