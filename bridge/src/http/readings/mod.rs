//! Readings over HTTP: the way in for devices that cannot use MQTT. They go the way of MQTT's batches,
//! through admission, pipeline and ledger, and the answer says what the database has committed.
//!
//! The same (epoch, seq) again is the same reading: whoever heard no answer sends it again.

mod body;

use api::media::{BATCH, JSON};
use api::readings::{RefusedBody, Settlement};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Extension, Json};
use futures_util::TryStreamExt as _;
use schema::limits::{BATCH_ROWS_MAX, PAYLOAD_BYTES_MAX};
use schema::{Batch, Epoch, codec};
use store::{Origin, Settled};

use super::extract::{Device, media_type, wrong};
use super::problem::Problem;
use crate::direct::{Direct, DirectError};

/// Largest JSON body: twice what the most readings take that a batch may hold.
const JSON_BYTES_MAX: usize = 1024 * 1024;

/// Memory that a byte of JSON needs, with what it is read into; and a byte of a batch.
const JSON_MEMORY: usize = 2;
pub(super) const BATCH_MEMORY: usize = 20;

/// Of a body that is too large, so many times what is allowed is read.
const FORGOTTEN: usize = 4;

/// When to come again, seconds.
const AGAIN_SECONDS: u64 = 5;

/// Takes readings in. It reads the body itself, because how much of it is read depends on its kind and on
/// the room that there is.
pub(super) async fn create(
    Extension(direct): Extension<Direct>,
    Device(device): Device,
    request: Request,
) -> Result<Json<Settlement>, Problem> {
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
    Ok(Json(settlement(epoch, settled)))
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Batch,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        match media_type(headers) {
            Some(JSON) => Ok(Self::Json),
            Some(BATCH) => Ok(Self::Batch),
            _ => Err(Problem::unsupported_media_type(format!(
                "the body must be {JSON} or {BATCH}"
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
        match self {
            Self::Json => body::parse(body, now_micros).map_err(|error| wrong("body", error)),
            Self::Batch => codec::decode(body).map_err(|error| wrong("body", error)),
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
    let broken = |error: axum::Error| wrong("body", error);
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

/// What a commit made of a batch.
pub(super) fn settlement(epoch: Epoch, settled: Settled) -> Settlement {
    let each = settled.rejected.iter().flat_map(|rejection| {
        let range = rejection.range;
        (range.first()..=range.last()).map(|seq| RefusedBody {
            seq,
            reason: rejection.reason.as_str().to_owned(),
        })
    });
    // Each is one of the batch's rows.
    let refused: Vec<RefusedBody> = each.take(BATCH_ROWS_MAX).collect();
    Settlement {
        epoch: epoch.to_string(),
        rejected: refused.clone(),
        refused,
        committed: settled.committed,
    }
}

impl From<DirectError> for Problem {
    fn from(error: DirectError) -> Self {
        match error {
            DirectError::Refused(refused) => wrong("body", refused),
            DirectError::Busy | DirectError::NoTime | DirectError::Stopping => Self::later(
                StatusCode::SERVICE_UNAVAILABLE,
                AGAIN_SECONDS,
                error.to_string(),
            ),
        }
    }
}
