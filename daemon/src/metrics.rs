//! Registering metrics: each module declares its own beside the code that counts, by their full names.

use prometheus_client::registry::{Metric, Registry};

/// One label of a metric: its name, and a value out of few.
pub type Label = [(&'static str, &'static str); 1];

/// A new metric, registered under its full name.
pub fn registered<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
