//! What sensors are, on `up/event`, and the answer on `down/ack`. A device declares each of its sensors once per change,
//! and again until the answer says that the database has it; of two declarations of a sensor the one of the later
//! version wins, and of equal ones the one of the greater [`SensorDeclaration::digest`].

use serde::{Deserialize, Serialize};

use crate::limits::{SENSORS_MESSAGE_BYTES_MAX, SENSORS_MESSAGE_MAX};
use crate::{Hlc, SensorDeclaration, SensorName};

/// Some sensors of a device, each at most once; at most [`SENSORS_MESSAGE_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SensorReport {
    /// The sensors.
    pub sensors: Vec<DeclaredSensor>,
}

/// A sensor, and what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeclaredSensor {
    /// Which sensor of the device, as its readings name it.
    pub sensor: SensorName,
    /// When the device began to say so.
    pub version: Hlc,
    /// What it is. An empty one takes back what was declared before.
    pub declaration: SensorDeclaration,
}

/// What the bridge did with a declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedSensor {
    /// Which sensor.
    pub sensor: SensorName,
    /// The version that the database has; of one that was not kept, the one that was sent.
    pub version: Hlc,
    /// What was done.
    pub note: SensorNote,
}

/// What became of a declaration. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SensorNote {
    /// The database has it, or one that wins over it.
    Kept,
    /// Not kept: the device has as many sensors declared as it may.
    Full,
    /// Not kept: its version is further ahead of the database's time than is believed.
    TooNew,
}

impl SensorReport {
    /// As many messages as it takes: each has at most [`SENSORS_MESSAGE_MAX`] sensors and, if it has more than one,
    /// [`SENSORS_MESSAGE_BYTES_MAX`] bytes of them.
    #[must_use]
    pub fn of(sensors: Vec<DeclaredSensor>) -> Vec<Self> {
        let mut reports: Vec<Self> = Vec::new();
        let mut bytes = 0;
        for sensor in sensors {
            let size = postcard::to_allocvec(&sensor).map_or(0, |bytes| bytes.len());
            match reports.last_mut() {
                Some(last)
                    if last.sensors.len() < SENSORS_MESSAGE_MAX
                        && bytes + size <= SENSORS_MESSAGE_BYTES_MAX =>
                {
                    last.sensors.push(sensor);
                    bytes += size;
                }
                _ => {
                    reports.push(Self {
                        sensors: vec![sensor],
                    });
                    bytes = size;
                }
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope;
    use crate::limits::{SENSOR_DESCRIPTION_CHARS_MAX, SENSOR_UNIT_CHARS_MAX};

    fn sensor(name: String, description: usize) -> DeclaredSensor {
        DeclaredSensor {
            sensor: name.parse().unwrap(),
            version: Hlc::new(1_700_000_000_000, 1),
            declaration: SensorDeclaration {
                description: Some("d".repeat(description)),
                ..SensorDeclaration::default()
            },
        }
    }

    #[track_caller]
    fn check(sensors: Vec<DeclaredSensor>) -> Vec<usize> {
        let reports = SensorReport::of(sensors.clone());
        let mut joined = Vec::new();
        let mut counts = Vec::new();
        for report in reports {
            let payload = envelope::encode(&report).unwrap();
            // Version, flags and how many there are.
            assert!(
                payload.len() <= SENSORS_MESSAGE_BYTES_MAX + 4,
                "{}",
                payload.len()
            );
            counts.push(report.sensors.len());
            joined.extend(report.sensors);
        }
        assert_eq!(joined, sensors);
        counts
    }

    #[test]
    fn messages_are_bounded_by_count_and_by_bytes() {
        let short = |count| (0..count).map(|n| sensor(format!("s{n}"), 1)).collect();
        assert!(check(Vec::new()).is_empty());
        let most = SENSORS_MESSAGE_MAX;
        assert_eq!(check(short(most - 1)), [most - 1]);
        assert_eq!(check(short(most)), [most]);
        assert_eq!(check(short(most + 1)), [most, 1]);
        let long: Vec<_> = (0..100).map(|n| sensor(format!("s{n}"), 500)).collect();
        let counts = check(long);
        assert!(counts.len() > 2 && counts[0] > 20, "{counts:?}");
    }

    #[test]
    fn the_largest_declaration_fits_a_message() {
        let mut largest = sensor("°".repeat(128), SENSOR_DESCRIPTION_CHARS_MAX);
        largest.version = Hlc::from_bits(u64::MAX);
        largest.declaration = SensorDeclaration {
            unit: Some("u".repeat(SENSOR_UNIT_CHARS_MAX)),
            min: Some(f64::MIN),
            max: Some(f64::MAX),
            precision: Some(crate::sensor::Precision::Step(f64::MAX)),
            interval_ms: Some(u64::MAX),
            ..largest.declaration
        };
        assert_eq!(check(vec![largest; 2]), [2]);
    }
}
