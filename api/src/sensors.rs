//! What sensors are, as their devices declare it.

use schema::{SensorName, ValueType};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::endpoint::{endpoint, listing, paged};
use crate::shapes::ValueTypeShape;
use crate::{Limit, OfDevice};

endpoint! {
    /// Lists what sensors of a device are: units, descriptions, types
    ///
    /// By name, those that something was ever declared of. What is not declared is `null`.
    ListSensors: GET "/api/v1/devices/{device}/sensors", ReadDevice, "telemetry";
    path OfDevice; query WhichSensors; answer Sensors
}

/// Which sensors are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichSensors {
    /// The name behind which to go on
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

paged!(WhichSensors, after);

/// Sensors of a device
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sensors {
    /// The device, by its id.
    pub device: String,
    /// By name, in the order of its bytes.
    pub sensors: Vec<SensorBody>,
    /// Where the next page begins, if there may be one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a sensor is
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SensorBody {
    /// Its name, as readings have it.
    #[schema(value_type = String)]
    pub sensor: SensorName,
    /// The unit of its values: a code of UCUM where there is one, as `Cel` or `kW.h`, or any other text.
    pub unit: Option<String>,
    /// What it measures.
    pub description: Option<String>,
    /// Of which type its values are.
    #[serde(rename = "type")]
    #[schema(value_type = Option<ValueTypeShape>)]
    pub value_type: Option<ValueType>,
    /// The lowest value that it can have.
    pub min: Option<f64>,
    /// The highest value that it can have.
    pub max: Option<f64>,
    /// How many digits behind the point mean something.
    pub decimals: Option<u8>,
    /// Its values are multiples of this.
    pub step: Option<f64>,
    /// How often a reading is to be expected.
    pub interval_seconds: Option<f64>,
    /// When a bridge heard so, RFC 3339.
    pub declared_at: String,
    /// The version's clock, 64 bits.
    pub hlc: u64,
}

listing!(Sensors.sensors: SensorBody);
