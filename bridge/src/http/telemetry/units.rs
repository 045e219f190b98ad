//! What is declared of the sensors of an answer.

use std::collections::{BTreeMap, BTreeSet};

use schema::{DeviceId, SensorName};
use store::sensors::KeptSensor;
use store::{Store, StoreError, StoredReading};

/// Declarations by sensor.
#[derive(Debug, Default)]
pub(super) struct Units(BTreeMap<SensorName, KeptSensor>);

impl Units {
    /// Those of the sensors of some readings.
    pub(super) async fn of(
        store: &dyn Store,
        device: &DeviceId,
        readings: &[StoredReading],
    ) -> Result<Self, StoreError> {
        let names: BTreeSet<&SensorName> = readings.iter().map(|of| &of.sensor).collect();
        let names: Vec<SensorName> = names.into_iter().cloned().collect();
        let found = store.sensors_named(device, &names).await?;
        Ok(Self::from_iter(found))
    }

    /// The unit of a sensor.
    pub(super) fn unit(&self, sensor: &SensorName) -> Option<&str> {
        self.0.get(sensor)?.declaration.unit.as_deref()
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> impl Iterator<Item = &KeptSensor> {
        self.0.values()
    }
}

impl FromIterator<KeptSensor> for Units {
    fn from_iter<I: IntoIterator<Item = KeptSensor>>(found: I) -> Self {
        let of = |kept: KeptSensor| (kept.sensor.clone(), kept);
        Self(found.into_iter().map(of).collect())
    }
}
