//! Readings: as they are, the latest, by time bucket; as JSON, CSV or an Arrow stream. An answer is
//! one page, so that what a request needs is bounded; `x-next` says where the next one begins.

mod arrow;
mod csv;
mod format;
mod units;

use api::telemetry::{AggregatesBody, BucketBody, OfBuckets, OfReadings, ReadingBody, Readings};
use api::{NEXT, ROWS_MAX};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schema::{DeviceId, ObservedAt, Quality};
use store::history::{AggregateQuery, Aggregates, BUCKETS_MAX, Bucket, BucketWidth, Cursor};
use store::{Order, QUERY_ROWS_MAX, StoredReading, TelemetryQuery};

use super::Shared;
use super::extract::{Device, Params, next, parsed, wrong};
use super::problem::Problem;
use format::Format;
use units::Units;

/// Rows of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// The end of a query unless given, exclusive: behind the year 9999, which every calendar holds.
const TO: ObservedAt = ObservedAt::from_micros(253_402_300_800_000_000);

// What may be asked for is what a database gives at once.
const _: () = assert!(ROWS_MAX == QUERY_ROWS_MAX && ROWS_MAX == BUCKETS_MAX);

/// Lists readings by time.
pub(super) async fn list(
    State(store): Shared,
    Device(device): Device,
    Params(asked): Params<OfReadings>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let format = wanted(asked.format.as_deref(), &headers, &Format::ALL)?;
    let order = parsed("order", asked.order.as_deref(), |text| match text {
        "oldest" => Ok(Order::OldestFirst),
        "newest" => Ok(Order::NewestFirst),
        _ => Err(format!("{text:?} is neither oldest nor newest")),
    })?;
    let after = parsed("after", asked.after.as_deref(), cursor)?;
    let query = TelemetryQuery {
        device,
        sensor: asked.sensor,
        from: asked.from.unwrap_or_default().0,
        to: asked.to.map_or(TO, |to| to.0),
        limit: asked.limit.map_or(LIMIT, usize::from),
        order: order.unwrap_or(Order::OldestFirst),
    };
    let readings = store.telemetry_page(&query, after.as_ref()).await?;
    let next = next(&readings, query.limit, cursor_text);
    let (device, of_one) = (query.device, query.sensor.is_some());
    let units = match format {
        Format::Arrow => Some(Units::of(&*store, &device, &readings).await?),
        Format::Json | Format::Csv if asked.units == Some(true) => {
            Some(Units::of(&*store, &device, &readings).await?)
        }
        Format::Json | Format::Csv => None,
    };
    Ok(match format {
        Format::Json => {
            let body = bodies(&device, readings, next.clone(), units.as_ref());
            paged(format, &device, next, Json(body))
        }
        Format::Csv => paged(
            format,
            &device,
            next,
            csv::readings(&readings, units.as_ref()),
        ),
        Format::Arrow => {
            let stream = arrow::readings(&device, &readings, &units.unwrap_or_default(), of_one)
                .map_err(|error| {
                    let detail = format!("the Arrow stream cannot be written: {error}");
                    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
                })?;
            paged(format, &device, next, stream)
        }
    })
}

/// Shows the newest reading of each sensor.
pub(super) async fn latest(
    State(store): Shared,
    Device(device): Device,
) -> Result<Json<Readings>, Problem> {
    let readings = store.latest(&device).await?;
    Ok(Json(bodies(&device, readings, None, None)))
}

/// Sums up a sensor's numbers by time bucket.
pub(super) async fn aggregates(
    State(store): Shared,
    Device(device): Device,
    Params(asked): Params<OfBuckets>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let forms = [Format::Json, Format::Csv];
    let format = wanted(asked.format.as_deref(), &headers, &forms)?;
    let from = asked.from.unwrap_or_default().0;
    let after = parsed("after", asked.after.as_deref(), |text| match text.parse() {
        Ok(micros) => Ok(ObservedAt::from_micros(micros)),
        Err(_) => Err(format!("{text:?} is no `next` of an answer")),
    })?;
    let sensor = asked.sensor.parse();
    let query = AggregateQuery {
        device,
        sensor: sensor.map_err(|error| wrong("sensor", error))?,
        from: after.map_or(from, |after| after.max(from)),
        to: asked.to.map_or(TO, |to| to.0),
        bucket: bucket(&asked.bucket).map_err(|reason| wrong("bucket", reason))?,
        limit: asked.limit.map_or(LIMIT, usize::from),
        worst: asked.quality.unwrap_or(Quality::Uncertain),
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
                buckets: buckets.into_iter().map(bucket_body).collect(),
                next: next.clone(),
            };
            paged(format, &device, next, Json(body))
        }
    })
}

/// What `format` says, or else the best of what is accepted.
fn wanted(named: Option<&str>, headers: &HeaderMap, allowed: &[Format]) -> Result<Format, Problem> {
    let names = || {
        let names: Vec<&str> = allowed.iter().map(|format| format.as_str()).collect();
        names.join(", ")
    };
    let named = parsed("format", named, |text| {
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

fn bodies(
    device: &DeviceId,
    readings: Vec<StoredReading>,
    next: Option<String>,
    units: Option<&Units>,
) -> Readings {
    let body = |reading: StoredReading| {
        let unit = units.and_then(|units| units.unit(&reading.sensor));
        ReadingBody {
            unit: unit.map(str::to_owned),
            ..body(reading)
        }
    };
    Readings {
        device: device.to_string(),
        readings: readings.into_iter().map(body).collect(),
        next,
    }
}

/// A reading as it stands in answers.
pub(super) fn body(reading: StoredReading) -> ReadingBody {
    ReadingBody {
        sensor: reading.sensor,
        observed_at: schema::rfc3339(reading.observed_at.micros()),
        value: reading.value,
        unit: None,
        quality: reading.quality,
        received_at: schema::rfc3339(reading.received_at.micros()),
        epoch: reading.version.epoch.to_string(),
        seq: reading.version.seq,
        hlc: reading.version.hlc.bits(),
    }
}

fn bucket_body(bucket: Bucket) -> BucketBody {
    BucketBody {
        start: schema::rfc3339(bucket.start.micros()),
        count: bucket.count,
        min: bucket.min,
        max: bucket.max,
        mean: bucket.mean,
        first: bucket.first,
        last: bucket.last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, Value, Version};

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
            let _ = (cursor(&text), bucket(&text));
        }
    }
}
