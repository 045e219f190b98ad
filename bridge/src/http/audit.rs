//! The audit, as administrators read it.

use api::Page;
use api::audit::{AuditLine, AuditLog};
use axum::Json;
use axum::extract::State;
use schema::time::ReceivedAt;
use store::access::{AuditCursor, AuditEntry};

use super::Shared;
use super::extract::{Params, next, parsed};
use super::problem::Problem;

/// Entries of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Lists what was changed through the API and who was turned away, latest first.
pub(super) async fn list(
    State(store): Shared,
    Params(asked): Params<Page>,
) -> Result<Json<AuditLog>, Problem> {
    let after = parsed("after", asked.after.as_deref(), cursor)?;
    let limit = asked.limit.map_or(LIMIT, usize::from);
    let found = store.audit_log(after, limit).await?;
    let next = next(&found, limit, |(last, _)| {
        format!("{}.{}", last.at.micros(), last.id)
    });
    Ok(Json(AuditLog {
        entries: found.into_iter().map(|(_, entry)| line(entry)).collect(),
        next,
    }))
}

fn cursor(text: &str) -> Result<AuditCursor, String> {
    let parsed = text.split_once('.').and_then(|(at, id)| {
        let (at, id): (i64, i64) = (at.parse().ok()?, id.parse().ok()?);
        let is_storable =
            store::OBSERVED_AT_MIN.micros() <= at && at <= store::OBSERVED_AT_MAX.micros();
        is_storable.then_some(AuditCursor {
            at: ReceivedAt::from_micros(at),
            id,
        })
    });
    parsed.ok_or_else(|| format!("{text:?} is no `next` of an answer"))
}

fn line(entry: AuditEntry) -> AuditLine {
    AuditLine {
        at: schema::rfc3339(entry.at.micros()),
        actor: entry.actor,
        action: entry.action,
        target: entry.target,
        address: entry.address,
        outcome: entry.outcome,
    }
}
