//! Which sensors a run of a source has declared already.

use std::collections::HashSet;

use schema::SensorName;
use schema::limits::DECLARED_SENSORS_MAX;

/// Sensors that were declared: each is looked up once for each reading, and described once.
#[derive(Debug, Default)]
pub(super) struct Described(HashSet<SensorName>);

impl Described {
    /// Whether this one was not declared yet; it is from now on.
    pub(super) fn is_new(&mut self, sensor: &SensorName) -> bool {
        if self.0.contains(sensor) {
            return false;
        }
        // Names that come and go begin anew: what is declared again changes nothing.
        if self.0.len() >= DECLARED_SENSORS_MAX {
            self.0.clear();
        }
        self.0.insert(sensor.clone())
    }
}
