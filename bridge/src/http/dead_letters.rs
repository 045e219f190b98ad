//! Dead letters: looked at, tried again, thrown away.
//!
//! ```text
//! retry ─► decode and admit, by today's rules ─► the path of readings over HTTP ─► commit ─► letter gone
//!             └─ refused: 422 with today's reason, the letter stays
//! ```
//!
//! The commit comes first and the letter goes after: killed in between, the letter is still there, and
//! the same again changes nothing.

use api::dead_letters::{DeadLetters, LetterBody, OfLetter, WhichLetters};
use api::readings::Settlement;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use schema::message::RejectReason;
use schema::{Channel, DeviceId, Topic, codec};
use store::dead_letters::{LetterCursor, LetterId, LetterQuery};
use store::quota::Aside;
use store::{DEAD_LETTER_BYTES_MAX, Delivery, KeptLetter, Origin, Store};

use super::Shared;
use super::extract::{Of, Params, next, parsed, wrong};
use super::problem::Problem;
use super::readings::{BATCH_MEMORY, settlement};
use crate::direct::Direct;

/// Letters of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Lists payloads that could not be used, latest first.
pub(super) async fn list(
    State(store): Shared,
    Params(asked): Params<WhichLetters>,
) -> Result<Json<DeadLetters>, Problem> {
    let query = LetterQuery {
        device: asked.device,
        after: parsed("after", asked.after.as_deref(), str::parse)?,
        limit: asked.limit.map_or(LIMIT, usize::from),
    };
    let letters = store.letters(&query).await?;
    let not_kept = match query.after {
        None => Some(not_kept(&*store, Aside::DeadLetters, query.device.as_ref()).await?),
        Some(_) => None,
    };
    let next = next(&letters, query.limit, |last| {
        let cursor = LetterCursor {
            received_at: last.letter.received_at,
            id: last.id.clone(),
        };
        cursor.to_string()
    });
    Ok(Json(DeadLetters {
        dead_letters: letters.into_iter().map(body).collect(),
        next,
        not_kept,
    }))
}

/// How many more there were than were kept, of a device or of all.
pub(super) async fn not_kept(
    store: &dyn Store,
    aside: Aside,
    device: Option<&DeviceId>,
) -> Result<u64, Problem> {
    let aside = store.kept_aside(aside, device).await?;
    Ok(aside.not_kept.rows)
}

/// Shows a payload that could not be used.
pub(super) async fn one(
    State(store): Shared,
    Of(OfLetter { letter }): Of<OfLetter>,
) -> Result<Json<LetterBody>, Problem> {
    let id = letter_id(&letter)?;
    let found = store.letter(&id).await?;
    let kept = found.ok_or_else(|| unknown(&id))?;
    Ok(Json(body(kept)))
}

/// Tries a payload again.
pub(super) async fn retry(
    State(store): Shared,
    Extension(direct): Extension<Direct>,
    Of(OfLetter { letter }): Of<OfLetter>,
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

/// Throws a payload away.
pub(super) async fn discard(
    State(store): Shared,
    Of(OfLetter { letter }): Of<OfLetter>,
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
        .map_err(|error| wrong("dead letter", format!("{text:?} {error}")))
}

fn unknown(id: &LetterId) -> Problem {
    Problem::not_found(format!("there is no dead letter {id}"))
}

fn body(kept: KeptLetter) -> LetterBody {
    LetterBody {
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
