//! What sensors are, as their devices declare it.

use api::sensors::{SensorBody, Sensors, WhichSensors};
use axum::Json;
use axum::extract::State;
use schema::SensorName;
use schema::sensor::Precision;
use store::sensors::KeptSensor;

use super::Shared;
use super::extract::{Device, Params, next, parsed};
use super::problem::Problem;

/// Sensors of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Lists what sensors of a device are.
pub(super) async fn list(
    State(store): Shared,
    Device(device): Device,
    Params(asked): Params<WhichSensors>,
) -> Result<Json<Sensors>, Problem> {
    let after = parsed("after", asked.after.as_deref(), str::parse::<SensorName>)?;
    let limit = asked.limit.map_or(LIMIT, usize::from);
    let found = store.sensors(&device, after.as_ref(), limit).await?;
    let next = next(&found, limit, |last| last.sensor.to_string());
    Ok(Json(Sensors {
        device: device.to_string(),
        sensors: found.into_iter().map(body).collect(),
        next,
    }))
}

/// A sensor as it stands in answers.
pub(super) fn body(kept: KeptSensor) -> SensorBody {
    let KeptSensor {
        sensor,
        declaration,
        version,
        declared_at,
    } = kept;
    let (decimals, step) = match declaration.precision {
        Some(Precision::Decimals(count)) => (Some(count), None),
        Some(Precision::Step(step)) => (None, Some(step)),
        None => (None, None),
    };
    SensorBody {
        sensor,
        unit: declaration.unit,
        description: declaration.description,
        value_type: declaration.value_type,
        min: declaration.min,
        max: declaration.max,
        decimals,
        step,
        interval_seconds: declaration.interval_ms.map(|ms| ms as f64 / 1000.0),
        declared_at: schema::rfc3339(declared_at.micros()),
        hlc: version.bits(),
    }
}
