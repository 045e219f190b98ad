//! What is counted of commands and configurations that are sent.

use daemon::registered;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Its metrics.
#[derive(Debug)]
pub(crate) struct DispatchMeters {
    pub(super) commands_sent: Counter,
    pub(super) commands_expired: Counter,
    pub(super) configs_sent: Counter,
}

impl DispatchMeters {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            commands_sent: registered(
                registry,
                "tideline_bridge_commands_sent",
                "Commands sent to devices, each time that they were",
            ),
            commands_expired: registered(
                registry,
                "tideline_bridge_commands_expired",
                "Commands given up because their device said nothing in time",
            ),
            configs_sent: registered(
                registry,
                "tideline_bridge_configs_sent",
                "Configurations sent to devices, each time that they were",
            ),
        }
    }
}
