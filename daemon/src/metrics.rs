//! Registering metrics: each module declares its own beside the code that counts, by their full names.

use prometheus_client::registry::{Metric, Registry};

/// A new metric, registered under its full name.
pub fn registered<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
