//! Readings: as they are, the latest, by time bucket; as JSON, CSV or an Arrow stream. An answer is
//! one page, so that what a request needs is bounded; `x-next` says where the next one begins.

mod arrow;
mod csv;
mod format;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schema::{DeviceId, ObservedAt, Quality, SensorName, Value};
use serde::Serialize;
use store::history::{AggregateQuery, Aggregates, BUCKETS_MAX, Bucket, BucketWidth, Cursor};
use store::{Order, QUERY_ROWS_MAX, StoredReading, TelemetryQuery};
use utoipa::ToSchema;

use super::problem::Problem;
use super::query::{Query, time};
use super::shapes::{QualityShape, ValueShape};
use super::{NEXT, Shared};
use format::Format;

/// Rows of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// The end of a query unless given, exclusive: behind the year 9999, which every calendar holds.
const TO: ObservedAt = ObservedAt::from_micros(253_402_300_800_000_000);

/// Readings of a device
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Readings {
    device: String,
    readings: Vec<ReadingBody>,
    /// Where the next page begins, if there may be one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A reading as it is stored
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadingBody {
    #[schema(value_type = String)]
    sensor: SensorName,
    observed_at: String,
    #[schema(value_type = ValueShape)]
    value: Value,
    #[schema(value_type = QualityShape)]
    quality: Quality,
    received_at: String,
    epoch: String,
    seq: u64,
    hlc: u64,
}

/// An Arrow IPC stream
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "only its shape is of use")]
pub(crate) struct ArrowBytes(Vec<u8>);

/// Numbers of a sensor by time bucket
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AggregatesBody {
    device: String,
    sensor: String,
    bucket_seconds: i64,
    /// Those that hold a number.
    buckets: Vec<BucketBody>,
    /// Where the next answer begins, if there are more readings: pass it as `after`. There may be
    /// some although this answer has no bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What a sensor's numbers were within one bucket
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BucketBody {
    /// When it begins: a multiple of its length since the Unix epoch.
    start: String,
    /// How many numbers.
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
    first: f64,
    last: f64,
}

/// Lists readings by time
///
/// One page of at most `limit`, as JSON, CSV or an Arrow stream; `x-next` names the next one.
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/telemetry",
    tag = "telemetry",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("sensor" = Option<String>, Query, description = "Of this sensor alone"),
        ("from" = Option<String>, Query, description = "Observed at or after: RFC 3339, or microseconds since the Unix epoch"),
        ("to" = Option<String>, Query, description = "Observed before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
        ("order" = Option<String>, Query, description = "`oldest` or `newest` first"),
        ("after" = Option<String>, Query, description = "The `next` of the page before; all else as it was there"),
        ("format" = Option<String>, Query, description = "`json`, `csv` or `arrow`; else what `Accept` says"),
    ),
    responses(
        (status = 200, description = "A page of readings", content(
            (Readings = "application/json"),
            (String = "text/csv"),
            (ArrowBytes = "application/vnd.apache.arrow.stream"),
        ), headers(("x-next" = String, description = "Where the next page begins, if there may be one"))),
        (status = 406, description = "There is no answer of a kind that `Accept` allows.", body = api::Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    let known = ["sensor", "from", "to", "limit", "order", "after", "format"];
    let given = Query::parse(query.as_deref(), &known)?;
    let format = wanted(&given, &headers, &Format::ALL)?;
    let order = given.get("order", |text| match text {
        "oldest" => Ok(Order::OldestFirst),
        "newest" => Ok(Order::NewestFirst),
        _ => Err(format!("{text:?} is neither oldest nor newest")),
    })?;
    let after = given.get("after", cursor)?;
    let query = TelemetryQuery {
        device,
        sensor: given.get("sensor", str::parse)?,
        from: given.get("from", time)?.unwrap_or_default(),
        to: given.get("to", time)?.unwrap_or(TO),
        limit: given.limit(LIMIT, QUERY_ROWS_MAX)?,
        order: order.unwrap_or(Order::OldestFirst),
    };
    let readings = store.telemetry_page(&query, after.as_ref()).await?;
    let next = match readings.last() {
        Some(last) if readings.len() == query.limit => Some(cursor_text(last)),
        _ => None,
    };
    let device = query.device;
    Ok(match format {
        Format::Json => {
            let body = Readings {
                device: device.to_string(),
                readings: readings.into_iter().map(ReadingBody::from).collect(),
                next: next.clone(),
            };
            paged(format, &device, next, Json(body))
        }
        Format::Csv => paged(format, &device, next, csv::readings(&readings)),
        Format::Arrow => {
            let stream = arrow::readings(&device, &readings).map_err(|error| {
                let detail = format!("the Arrow stream cannot be written: {error}");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
            })?;
            paged(format, &device, next, stream)
        }
    })
}

/// Shows the newest reading of each sensor
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/telemetry/latest",
    tag = "telemetry",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = Readings))
)]
pub(crate) async fn latest(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Readings>, Problem> {
    let device = super::device(&device)?;
    Query::parse(query.as_deref(), &[])?;
    let readings = store.latest(&device).await?;
    Ok(Json(Readings {
        device: device.to_string(),
        readings: readings.into_iter().map(ReadingBody::from).collect(),
        next: None,
    }))
}

/// Sums up a sensor's numbers by time bucket
///
/// Whole numbers count as the nearest 64-bit float, false as 0 and true as 1; texts do not count, nor do readings
/// of a quality worse than `quality`. Buckets without a number are left out.
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/telemetry/aggregates",
    tag = "telemetry",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("sensor" = String, Query, description = "Of this sensor", min_length = 1, max_length = 128),
        ("bucket" = String, Query, description = "How long a bucket is: whole seconds, or with `s`, `m`, `h` or `d`; from `1s` to `366d`", pattern = "^[0-9]{1,8}[smhd]?$", example = "5m"),
        ("from" = Option<String>, Query, description = "Observed at or after: RFC 3339, or microseconds since the Unix epoch"),
        ("to" = Option<String>, Query, description = "Observed before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many buckets"),
        ("quality" = Option<String>, Query, description = "The worst that counts: `good`, `uncertain` (unless given) or `bad`"),
        ("after" = Option<String>, Query, description = "The `next` of the answer before; all else as it was there"),
        ("format" = Option<String>, Query, description = "`json` or `csv`; else what `Accept` says"),
    ),
    responses(
        (status = 200, description = "Buckets", content(
            (AggregatesBody = "application/json"),
            (String = "text/csv"),
        ), headers(("x-next" = String, description = "Where the next answer begins, if there are more readings"))),
        (status = 406, description = "There is no answer of a kind that `Accept` allows.", body = api::Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn aggregates(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    let known = [
        "sensor", "bucket", "from", "to", "limit", "quality", "after", "format",
    ];
    let given = Query::parse(query.as_deref(), &known)?;
    let format = wanted(&given, &headers, &[Format::Json, Format::Csv])?;
    let missing = |name: &str| Problem::bad_request(format!("parameter {name:?} is required"));
    let from = given.get("from", time)?.unwrap_or_default();
    let after = given.get("after", |text| match text.parse() {
        Ok(micros) => Ok(ObservedAt::from_micros(micros)),
        Err(_) => Err(format!("{text:?} is no `next` of an answer")),
    })?;
    let query = AggregateQuery {
        device,
        sensor: given
            .get("sensor", str::parse)?
            .ok_or_else(|| missing("sensor"))?,
        from: after.map_or(from, |after| after.max(from)),
        to: given.get("to", time)?.unwrap_or(TO),
        bucket: given
            .get("bucket", bucket)?
            .ok_or_else(|| missing("bucket"))?,
        limit: given.limit(LIMIT, BUCKETS_MAX)?,
        worst: given.get("quality", quality)?.unwrap_or(Quality::Uncertain),
    };
    let Aggregates { buckets, next } = store.aggregates(&query).await?;
    let next = next.map(|at| at.micros().to_string());
    let device = query.device;
    Ok(match format {
        Format::Csv => paged(format, &device, next, csv::aggregates(&buckets)),
        Format::Json | Format::Arrow => {
            let body = AggregatesBody {
                device: device.to_string(),
                sensor: query.sensor.to_string(),
                bucket_seconds: query.bucket.seconds(),
                buckets: buckets.into_iter().map(BucketBody::from).collect(),
                next: next.clone(),
            };
            paged(format, &device, next, Json(body))
        }
    })
}

/// What `format` says, or else the best of what is accepted.
fn wanted(given: &Query, headers: &HeaderMap, allowed: &[Format]) -> Result<Format, Problem> {
    let names = || {
        let names: Vec<&str> = allowed.iter().map(|format| format.as_str()).collect();
        names.join(", ")
    };
    let named = given.get("format", |text| {
        let mut allowed = allowed.iter().copied();
        let found = allowed.find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", names()))
    })?;
    named
        .or_else(|| Format::accepted(headers, allowed))
        .ok_or_else(|| {
            let types: Vec<&str> = allowed.iter().map(|format| format.media_type()).collect();
            let detail = format!("there are {}", types.join(", "));
            Problem::new(StatusCode::NOT_ACCEPTABLE, detail)
        })
}

/// A page in its form, with where the next one begins.
fn paged(
    format: Format,
    device: &DeviceId,
    next: Option<String>,
    body: impl IntoResponse,
) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static(format.content_type());
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    let file = match format {
        Format::Json => None,
        Format::Csv => Some("csv"),
        Format::Arrow => Some("arrows"),
    };
    // A device's id has no character that would need to be quoted.
    let named = file.and_then(|ending| {
        HeaderValue::try_from(format!("attachment; filename=\"{device}.{ending}\"")).ok()
    });
    if let Some(named) = named {
        headers.insert(header::CONTENT_DISPOSITION, named);
    }
    if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        headers.insert(NEXT, next);
    }
    response
}

/// A cursor fits a header and a query string, whatever sensors are called.
fn cursor_text(last: &StoredReading) -> String {
    let plain = format!("{}.{}", last.observed_at.micros(), last.sensor);
    URL_SAFE_NO_PAD.encode(plain)
}

fn cursor(text: &str) -> Result<Cursor, String> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let plain = String::from_utf8(bytes).ok()?;
        let (micros, sensor) = plain.split_once('.')?;
        Some(Cursor {
            observed_at: ObservedAt::from_micros(micros.parse().ok()?),
            sensor: sensor.parse().ok()?,
        })
    };
    read().ok_or_else(|| format!("{text:?} is no `next` of a page"))
}

fn bucket(text: &str) -> Result<BucketWidth, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(digits) => (digits, text.as_bytes()[digits.len()]),
        None => (text, b's'),
    };
    let seconds_of_unit = match unit {
        b'm' => 60,
        b'h' => 3_600,
        b'd' => 86_400,
        _ => 1,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = digits.parse().ok().filter(|_| is_number);
    number
        .and_then(|number| number.checked_mul(seconds_of_unit))
        .and_then(BucketWidth::from_seconds)
        .ok_or_else(|| format!("{text:?} is no time from 1s to 366d, as 30s, 5m, 1h or 1d"))
}

fn quality(text: &str) -> Result<Quality, String> {
    [Quality::Good, Quality::Uncertain, Quality::Bad]
        .into_iter()
        .find(|quality| quality.as_str() == text)
        .ok_or_else(|| format!("{text:?} is none of good, uncertain, bad"))
}

impl From<StoredReading> for ReadingBody {
    fn from(reading: StoredReading) -> Self {
        Self {
            sensor: reading.sensor,
            observed_at: schema::rfc3339(reading.observed_at.micros()),
            value: reading.value,
            quality: reading.quality,
            received_at: schema::rfc3339(reading.received_at.micros()),
            epoch: reading.version.epoch.to_string(),
            seq: reading.version.seq,
            hlc: reading.version.hlc.bits(),
        }
    }
}

impl From<Bucket> for BucketBody {
    fn from(bucket: Bucket) -> Self {
        let Bucket {
            start,
            count,
            min,
            max,
            mean,
            first,
            last,
        } = bucket;
        Self {
            start: schema::rfc3339(start.micros()),
            count,
            min,
            max,
            mean,
            first,
            last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, Version};

    #[test]
    fn a_bucket_is_a_number_with_a_unit() {
        let seconds = |text: &str| bucket(text).map(BucketWidth::seconds).ok();
        for (text, expected) in [
            ("1", Some(1)),
            ("1s", Some(1)),
            ("5m", Some(300)),
            ("24h", Some(86_400)),
            ("366d", Some(31_622_400)),
            ("31622400", Some(31_622_400)),
            ("31622401", None),
            ("367d", None),
            ("0", None),
            ("0m", None),
            ("", None),
            ("m", None),
            ("+1m", None),
            ("1.5h", None),
            ("1w", None),
            ("ü", None),
            ("99999999999999999999d", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_names_a_reading_and_fits_a_header(micros in any::<i64>(), sensor in "[^\\p{Cc}]{1,128}") {
            let last = StoredReading {
                sensor: sensor.parse().unwrap(),
                observed_at: ObservedAt::from_micros(micros),
                value: Value::Bool(true),
                quality: Quality::Good,
                version: Version { hlc: Hlc::default(), epoch: Epoch::from_random(1), seq: 1 },
                received_at: ReceivedAt::from_micros(0),
            };
            let text = cursor_text(&last);
            prop_assert!(HeaderValue::try_from(text.as_str()).is_ok());
            let read = cursor(&text).unwrap();
            prop_assert_eq!((read.observed_at, read.sensor), (last.observed_at, last.sensor));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = (cursor(&text), bucket(&text), quality(&text));
        }
    }
}
