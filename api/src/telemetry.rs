//! Readings as they are stored: page by page, the latest, by time bucket; as JSON, CSV or an Arrow stream.

use schema::{Quality, SensorName, Value};
use serde::{Deserialize, Serialize};
use utoipa::openapi::Ref;
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, PartialSchema as _, ToSchema};

use crate::description::{answers_as, answers_header, refuses};
use crate::endpoint::{endpoint, listing, paged};
use crate::media::{ARROW, CSV};
use crate::shapes::{QualityShape, ValueShape};
use crate::{Limit, NEXT, OfDevice, Time};

endpoint! {
    /// Lists readings by time
    ///
    /// One page of at most `limit`, as JSON, CSV or an Arrow stream; `x-next` names the next one.
    ListReadings: GET "/api/v1/devices/{device}/telemetry", ReadDevice, "telemetry";
    path OfDevice; query OfReadings; answer Readings; also describe_list; shapes ArrowBytes
}

endpoint! {
    /// Shows the newest reading of each sensor
    ShowLatest: GET "/api/v1/devices/{device}/telemetry/latest", ReadDevice, "telemetry";
    path OfDevice; answer Readings
}

endpoint! {
    /// Sums up a sensor's numbers by time bucket
    ///
    /// Whole numbers count as the nearest 64-bit float, false as 0 and true as 1; texts do not count, nor do readings
    /// of a quality worse than `quality`. Buckets without a number are left out.
    SumUpReadings: GET "/api/v1/devices/{device}/telemetry/aggregates", ReadDevice, "telemetry";
    path OfDevice; query OfBuckets; answer AggregatesBody; also describe_sums
}

/// Which readings are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfReadings {
    /// Of this sensor alone
    #[param(value_type = Option<String>)]
    pub sensor: Option<SensorName>,
    /// Observed at or after: RFC 3339, or microseconds since the Unix epoch
    #[param(value_type = Option<String>)]
    pub from: Option<Time>,
    /// Observed before
    #[param(value_type = Option<String>)]
    pub to: Option<Time>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
    /// `oldest` or `newest` first
    pub order: Option<String>,
    /// The `next` of the page before; all else as it was there
    pub after: Option<String>,
    /// `json`, `csv` or `arrow`; else what `Accept` says
    pub format: Option<String>,
    /// With the unit of each reading, as far as one is declared: a last column of CSV, a field of JSON. An Arrow stream
    /// has it in any case, in its schema
    pub units: Option<bool>,
}

/// Which numbers are summed up, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfBuckets {
    /// Of this sensor
    #[param(min_length = 1, max_length = 128)]
    pub sensor: String,
    /// How long a bucket is: whole seconds, or with `s`, `m`, `h` or `d`; from `1s` to `366d`
    #[param(pattern = "^[0-9]{1,8}[smhd]?$", example = "5m")]
    pub bucket: String,
    /// Observed at or after: RFC 3339, or microseconds since the Unix epoch
    #[param(value_type = Option<String>)]
    pub from: Option<Time>,
    /// Observed before
    #[param(value_type = Option<String>)]
    pub to: Option<Time>,
    /// At most so many buckets
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
    /// The worst that counts: `good`, `uncertain` (unless given) or `bad`
    #[param(value_type = Option<String>)]
    pub quality: Option<Quality>,
    /// The `next` of the answer before; all else as it was there
    pub after: Option<String>,
    /// `json` or `csv`; else what `Accept` says
    pub format: Option<String>,
}

paged!(OfReadings, after);
paged!(OfBuckets, after);

/// Readings of a device
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Readings {
    /// The device, by its id.
    pub device: String,
    /// In the order that was asked for.
    pub readings: Vec<ReadingBody>,
    /// Where the next page begins, if there may be one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A reading as it is stored
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadingBody {
    /// Which sensor of the device.
    #[schema(value_type = String)]
    pub sensor: SensorName,
    /// When it was taken, RFC 3339.
    pub observed_at: String,
    /// What the sensor said.
    #[schema(value_type = ValueShape)]
    pub value: Value,
    /// The unit of the value, if it was asked for and is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// How far it is to be trusted.
    #[schema(value_type = QualityShape)]
    pub quality: Quality,
    /// When the bridge took it, RFC 3339.
    pub received_at: String,
    /// Of which epoch, 12 hexadecimal digits.
    pub epoch: String,
    /// Its sequence there.
    pub seq: u64,
    /// The version's clock, 64 bits.
    pub hlc: u64,
}

/// An Arrow IPC stream
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct ArrowBytes(pub Vec<u8>);

/// Numbers of a sensor by time bucket
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AggregatesBody {
    /// The device, by its id.
    pub device: String,
    /// Which sensor's.
    pub sensor: String,
    /// How long a bucket is.
    pub bucket_seconds: i64,
    /// Those that hold a number.
    pub buckets: Vec<BucketBody>,
    /// Where the next answer begins, if there are more readings: pass it as `after`. There may be
    /// some although this answer has no bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a sensor's numbers were within one bucket
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BucketBody {
    /// When it begins: a multiple of its length since the Unix epoch.
    pub start: String,
    /// How many numbers.
    pub count: u64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
    /// The earliest.
    pub first: f64,
    /// The latest.
    pub last: f64,
}

listing!(Readings.readings: ReadingBody);
listing!(AggregatesBody.buckets: BucketBody);

const NO_SUCH_KIND: &str = "There is no answer of a kind that `Accept` allows.";

fn describe_list(operation: &mut Operation) {
    let forms = [
        (CSV, String::schema()),
        (ARROW, Ref::from_schema_name("ArrowBytes").into()),
    ];
    answers_as(operation, "A page of readings", &forms);
    let text = "Where the next page begins, if there may be one";
    answers_header(operation, 200, NEXT, text);
    refuses(operation, 406, NO_SUCH_KIND);
}

fn describe_sums(operation: &mut Operation) {
    answers_as(operation, "Buckets", &[(CSV, String::schema())]);
    let text = "Where the next answer begins, if there are more readings";
    answers_header(operation, 200, NEXT, text);
    refuses(operation, 406, NO_SUCH_KIND);
}
