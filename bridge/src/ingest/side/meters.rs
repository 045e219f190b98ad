//! What is counted of what devices send beside readings.

use daemon::registered;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Its metrics.
#[derive(Debug)]
pub(super) struct SideMeters {
    pub(super) overflows: Counter,
    pub(super) dead_letters: Counter,
    pub(super) refusals: Counter,
    pub(super) command_progress: Counter,
    pub(super) config_overrides: Counter,
    pub(super) sensor_declarations: Counter,
}

impl SideMeters {
    /// Registers them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            overflows: registered(
                registry,
                "tideline_bridge_side_overflows",
                "Births, reports and other words of devices that had no room; they are said again",
            ),
            dead_letters: registered(
                registry,
                "tideline_bridge_dead_letters",
                "Payloads kept aside because they could not be read",
            ),
            refusals: registered(
                registry,
                "tideline_bridge_refusals",
                "Refusals of whole payloads published",
            ),
            command_progress: registered(
                registry,
                "tideline_bridge_command_words",
                "Words of devices on their commands",
            ),
            config_overrides: registered(
                registry,
                "tideline_bridge_config_overrides",
                "Settings that devices have changed themselves, taken over as desired",
            ),
            sensor_declarations: registered(
                registry,
                "tideline_bridge_sensor_declarations",
                "Declarations of sensors by devices, those that were known among them",
            ),
        }
    }
}
