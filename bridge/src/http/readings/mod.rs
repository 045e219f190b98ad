//! Readings over HTTP: the way in for devices that cannot use MQTT. They go the way of MQTT's batches,
//! through admission, pipeline and ledger, and the answer says what the database has committed.
//!
//! The same (epoch, seq) again is the same reading: whoever heard no answer sends it again.

mod body;

use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Extension, Json};
use futures_util::TryStreamExt as _;
use schema::limits::{BATCH_ROWS_MAX, PAYLOAD_BYTES_MAX};
use schema::message::RejectReason;
use schema::{Batch, Epoch, SeqRange, codec};
use serde::Serialize;
use store::{Origin, Settled};
use utoipa::ToSchema;

use super::problem::Problem;
use super::shapes::{QualityShape, RangeShape, ValueShape};
use crate::direct::{Direct, DirectError};

/// Largest JSON body: twice what the most readings take that a batch may hold.
const JSON_BYTES_MAX: usize = 1024 * 1024;

/// The media type of one batch, as devices publish it.
const BATCH: &str = "application/vnd.tideline.batch";

/// Memory that a byte of JSON needs, with what it is read into; and a byte of a batch.
const JSON_MEMORY: usize = 2;
pub(super) const BATCH_MEMORY: usize = 20;

/// Of a body that is too large, so many times what is allowed is read.
const FORGOTTEN: usize = 4;

/// When to come again, seconds.
const AGAIN_SECONDS: u64 = 5;

/// What became of readings
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Settlement {
    /// The sequences' epoch.
    epoch: String,
    /// In the database, now or before.
    #[schema(value_type = Vec<RangeShape>)]
    committed: Vec<SeqRange>,
    /// Refused, with the reason. They are yours: the ledger knows nothing of them, and they may come
    /// again once what is wrong is mended.
    refused: Vec<RefusedBody>,
    /// What `refused` was called before 0.2.
    rejected: Vec<RefusedBody>,
}

/// A reading that is refused
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct RefusedBody {
    seq: u64,
    #[schema(value_type = String)]
    reason: RejectReason,
}

/// Readings to take in
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code, reason = "only its shape is of use: `body` reads it")]
pub(crate) struct NewReadings {
    /// Names this series of sequences: 12 hexadecimal digits, made at random once.
    #[schema(pattern = "^[0-9A-Fa-f]{12}$", example = "00c0ffee0001")]
    epoch: String,
    /// The sequence of the first reading; the others follow. Or each has a `seq` of its own.
    #[schema(minimum = 1)]
    first_seq: Option<u64>,
    /// In what numbers for `observed_at` count: `s`, `ms`, `us` or `ns`; microseconds unless it is given.
    #[schema(pattern = "^(s|ms|us|ns)$", example = "us")]
    timestamp_unit: Option<String>,
    #[schema(min_items = 1, max_items = 4096)]
    readings: Vec<NewReading>,
}

/// A reading to take in
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code, reason = "only its shape is of use: `body` reads it")]
pub(crate) struct NewReading {
    #[schema(min_length = 1, max_length = 128, example = "temperature")]
    sensor: String,
    /// RFC 3339, or a number in the body's `timestamp_unit` since the Unix epoch. One that looks like another unit
    /// is refused.
    #[schema(value_type = String, example = "2026-07-01T12:00:00.5Z")]
    observed_at: String,
    /// A whole number of 64 bits when it is written as one, else a float; texts have at most 1 KiB.
    #[schema(value_type = ValueShape)]
    value: String,
    /// `f64`, `i64`, `bool` or `text`: what the value is to be. `f64` makes a float of a whole number.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[schema(value_type = Option<QualityShape>)]
    quality: Option<String>,
    /// The version's clock, 64 bits as a number or as digits; else it follows from the time.
    hlc: Option<u64>,
    seq: Option<u64>,
}

/// One batch, the bytes of an `up/telemetry` payload
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "only its shape is of use")]
pub(crate) struct BatchBytes(Vec<u8>);

/// Takes readings in
///
/// For devices that cannot use MQTT. Answers after the database has committed. The same (epoch, sequence) again is
/// the same reading, so whoever heard no answer sends the same again; 503 says when.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/readings",
    tag = "telemetry",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    request_body(content(
        (NewReadings = "application/json"),
        (BatchBytes = "application/vnd.tideline.batch"),
    )),
    responses((status = 200, description = "What became of them", body = Settlement))
)]
pub(crate) async fn create(
    Extension(direct): Extension<Direct>,
    Path(device): Path<String>,
    request: Request,
) -> Result<Json<Settlement>, Problem> {
    let device = super::device(&device)?;
    let (parts, body) = request.into_parts();
    let kind = Kind::of(&parts.headers)?;
    let announced = length(&parts.headers).unwrap_or(kind.bytes_max());
    // One that is too large needs no room: it is read and forgotten.
    let hold = direct.hold(kind.memory(announced.min(kind.bytes_max())))?;
    let body = read(body, kind).await?;
    let batch = kind.parse(&body, direct.now_micros())?;
    let weight = kind.weight(body.len());
    drop(body);
    let epoch = batch.epoch;
    let delivery = direct
        .admit(device, batch, Origin::Direct)
        .map_err(DirectError::Refused)?;
    let settled = direct.deliver(delivery, weight, hold).await?;
    Ok(Json(Settlement::new(epoch, settled)))
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Batch,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        match super::media_type(headers) {
            Some("application/json") => Ok(Self::Json),
            Some(BATCH) => Ok(Self::Batch),
            _ => Err(Problem::unsupported_media_type(format!(
                "the body must be application/json or {BATCH}"
            ))),
        }
    }

    const fn bytes_max(self) -> usize {
        match self {
            Self::Json => JSON_BYTES_MAX,
            Self::Batch => PAYLOAD_BYTES_MAX,
        }
    }

    /// Memory that a body of so many bytes needs.
    const fn memory(self, bytes: usize) -> usize {
        match self {
            Self::Json => bytes * JSON_MEMORY,
            Self::Batch => bytes * BATCH_MEMORY,
        }
    }

    /// Bytes of payload that a body counts for.
    const fn weight(self, bytes: usize) -> usize {
        match self {
            Self::Json => bytes * JSON_MEMORY / BATCH_MEMORY,
            Self::Batch => bytes,
        }
    }

    fn parse(self, body: &[u8], now_micros: i64) -> Result<Batch, Problem> {
        let refused =
            |error: &dyn std::fmt::Display| Problem::bad_request(format!("body: {error}"));
        match self {
            Self::Json => body::parse(body, now_micros).map_err(|error| refused(&error)),
            Self::Batch => codec::decode(body).map_err(|error| refused(&error)),
        }
    }
}

/// How long the body says that it is.
fn length(headers: &HeaderMap) -> Option<usize> {
    let text = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    text.parse().ok()
}

/// Reads a body. Of one that is too large the rest is read and forgotten, up to a bound, because
/// whoever is cut off while sending does not hear why.
async fn read(body: Body, kind: Kind) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut seen) = (Vec::new(), 0);
    let broken = |error: axum::Error| Problem::bad_request(format!("body: {error}"));
    while let Some(part) = stream.try_next().await.map_err(broken)? {
        seen += part.len();
        if seen > FORGOTTEN * kind.bytes_max() {
            break;
        }
        if seen <= kind.bytes_max() {
            bytes.extend_from_slice(&part);
        }
    }
    match seen > kind.bytes_max() {
        true => Err(too_large(kind)),
        false => Ok(bytes),
    }
}

fn too_large(kind: Kind) -> Problem {
    let detail = format!(
        "the body may have {} bytes: send fewer readings",
        kind.bytes_max()
    );
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

impl Settlement {
    /// What a commit made of a batch.
    pub(super) fn new(epoch: Epoch, settled: Settled) -> Self {
        let each = settled.rejected.iter().flat_map(|rejection| {
            let range = rejection.range;
            let reason = rejection.reason;
            (range.first()..=range.last()).map(move |seq| RefusedBody { seq, reason })
        });
        // Each is one of the batch's rows.
        let refused: Vec<RefusedBody> = each.take(BATCH_ROWS_MAX).collect();
        Self {
            epoch: epoch.to_string(),
            rejected: refused.clone(),
            refused,
            committed: settled.committed,
        }
    }
}

impl From<DirectError> for Problem {
    fn from(error: DirectError) -> Self {
        match error {
            DirectError::Refused(refused) => Self::bad_request(format!("body: {refused}")),
            DirectError::Busy | DirectError::NoTime | DirectError::Stopping => Self::later(
                StatusCode::SERVICE_UNAVAILABLE,
                AGAIN_SECONDS,
                error.to_string(),
            ),
        }
    }
}
