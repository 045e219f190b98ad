//! Dead letters: looked at, tried again, thrown away.
//!
//! ```text
//! retry ─► decode and admit, by today's rules ─► the path of readings over HTTP ─► commit ─► letter gone
//!             └─ refused: 422 with today's reason, the letter stays
//! ```
//!
//! The commit comes first and the letter goes after: killed in between, the letter is still there, and
//! the same again changes nothing.

use api::readings::Settlement;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use schema::message::RejectReason;
use schema::{Channel, Topic, codec};
use serde::Serialize;
use store::dead_letters::{LetterCursor, LetterId, LetterQuery};
use store::{DEAD_LETTER_BYTES_MAX, Delivery, KeptLetter, Origin};
use utoipa::ToSchema;

use super::Shared;
use super::problem::Problem;
use super::query::Query;
use super::readings::{BATCH_MEMORY, settlement};
use crate::direct::Direct;

/// Letters of an answer unless asked for more, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;

/// Payloads that could not be used
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetters {
    dead_letters: Vec<LetterBody>,
    /// Where the next page begins, if there may be one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A payload that could not be used
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LetterBody {
    /// Its name.
    id: String,
    /// Whose, when the topic told.
    device: Option<String>,
    topic: String,
    /// Why it is here.
    reason: String,
    /// When it last arrived.
    received_at: String,
    /// How often it arrived.
    times: u64,
    /// The payload's whole length; at most 65,536 bytes are kept.
    payload_bytes: u64,
    /// What is kept of it; in a list, its first 256 bytes.
    payload_hex: String,
}

/// Lists payloads that could not be used, latest first
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters",
    tag = "dead letters",
    params(
        ("device" = Option<String>, Query, description = "Of this device alone"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1_000, description = "At most so many"),
    ),
    responses((status = 200, body = DeadLetters))
)]
pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadLetters>, Problem> {
    let given = Query::parse(query.as_deref(), &["device", "after", "limit"])?;
    let query = LetterQuery {
        device: given.get("device", str::parse)?,
        after: given.get("after", str::parse)?,
        limit: given.limit(LIMIT, LIMIT_MAX)?,
    };
    let letters = store.letters(&query).await?;
    let next = match letters.last() {
        Some(last) if letters.len() == query.limit => Some(LetterCursor {
            received_at: last.letter.received_at,
            id: last.id.clone(),
        }),
        _ => None,
    };
    Ok(Json(DeadLetters {
        dead_letters: letters.into_iter().map(LetterBody::from).collect(),
        next: next.map(|cursor| cursor.to_string()),
    }))
}

/// Shows a payload that could not be used
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/{letter}",
    tag = "dead letters",
    params(
        ("letter" = String, Path, description = "Its name", pattern = "^[0-9a-f]{16}\\.[A-Za-z0-9._-]{0,64}$"),
    ),
    responses((status = 200, body = LetterBody))
)]
pub(crate) async fn one(
    State(store): Shared,
    Path(letter): Path<String>,
) -> Result<Json<LetterBody>, Problem> {
    let id = letter_id(&letter)?;
    let found = store.letter(&id).await?;
    Ok(Json(found.ok_or_else(|| unknown(&id))?.into()))
}

/// Tries a payload again
///
/// It is read and admitted by today's rules. What is committed is answered, and the letter is gone; when nothing of it
/// can be, the letter stays.
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/{letter}/retry",
    tag = "dead letters",
    params(
        ("letter" = String, Path, description = "Its name", pattern = "^[0-9a-f]{16}\\.[A-Za-z0-9._-]{0,64}$"),
    ),
    responses(
        (status = 200, description = "What became of its readings", body = Settlement),
        (status = 422, description = "It cannot be used today either; the letter stays.", body = api::Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn retry(
    State(store): Shared,
    Extension(direct): Extension<Direct>,
    Path(letter): Path<String>,
) -> Result<Json<Settlement>, Problem> {
    let id = letter_id(&letter)?;
    let found = store.letter(&id).await?;
    let kept = found.ok_or_else(|| unknown(&id))?;
    let hold = direct.hold(BATCH_MEMORY * kept.letter.payload.len())?;
    let delivery = admitted(&direct, &kept).map_err(stays)?;
    let epoch = delivery.batch.epoch;
    let bytes = kept.letter.payload.len();
    let settled = direct.deliver(delivery, bytes, hold).await?;
    if settled.committed.is_empty() {
        let reasons = settled.rejected.iter().map(|rejection| rejection.reason);
        return Err(stays(every_one_refused(reasons)));
    }
    store.discard_letter(&id).await?;
    Ok(Json(settlement(epoch, settled)))
}

/// Throws a payload away
#[utoipa::path(
    delete,
    path = "/api/v1/dead-letters/{letter}",
    tag = "dead letters",
    params(
        ("letter" = String, Path, description = "Its name", pattern = "^[0-9a-f]{16}\\.[A-Za-z0-9._-]{0,64}$"),
    ),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn discard(
    State(store): Shared,
    Path(letter): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = letter_id(&letter)?;
    match store.discard_letter(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown(&id)),
    }
}

/// The letter as a delivery, or why it is none.
fn admitted(direct: &Direct, kept: &KeptLetter) -> Result<Delivery, String> {
    let letter = &kept.letter;
    let device = match letter.topic.parse::<Topic>() {
        Ok(Topic {
            device,
            channel: Channel::Telemetry,
        }) if letter.device.as_ref() == Some(&device) => device,
        _ => return Err(format!("{:?} carries no telemetry", letter.topic)),
    };
    if kept.payload_bytes > letter.payload.len() as u64 {
        return Err(format!(
            "of its {} bytes, {DEAD_LETTER_BYTES_MAX} were kept",
            kept.payload_bytes
        ));
    }
    let batch = codec::decode(&letter.payload).map_err(|error| error.to_string())?;
    let delivery = direct
        .admit(device, batch, Origin::Letter)
        .map_err(|error| error.to_string())?;
    if delivery.batch.rows.is_empty() {
        let reasons = delivery.rejected.iter().map(|rejection| rejection.reason);
        return Err(every_one_refused(reasons));
    }
    Ok(delivery)
}

fn every_one_refused(reasons: impl Iterator<Item = RejectReason>) -> String {
    let mut reasons: Vec<&str> = reasons.map(RejectReason::as_str).collect();
    reasons.sort_unstable();
    reasons.dedup();
    format!("every reading of it is refused: {}", reasons.join(", "))
}

fn stays(reason: String) -> Problem {
    let detail = format!("the letter stays: {reason}");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

fn letter_id(text: &str) -> Result<LetterId, Problem> {
    text.parse()
        .map_err(|error| Problem::bad_request(format!("dead letter: {text:?} {error}")))
}

fn unknown(id: &LetterId) -> Problem {
    Problem::not_found(format!("there is no dead letter {id}"))
}

impl From<KeptLetter> for LetterBody {
    fn from(kept: KeptLetter) -> Self {
        Self {
            id: kept.id.to_string(),
            device: kept.letter.device.map(|device| device.to_string()),
            topic: kept.letter.topic,
            reason: kept.letter.reason,
            received_at: schema::rfc3339(kept.letter.received_at.micros()),
            times: kept.times,
            payload_bytes: kept.payload_bytes,
            payload_hex: hex::encode(kept.letter.payload),
        }
    }
}
