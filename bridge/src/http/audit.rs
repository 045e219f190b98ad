//! The audit, as administrators read it.

use axum::Json;
use axum::extract::{RawQuery, State};
use schema::time::ReceivedAt;
use serde::Serialize;
use store::QUERY_ROWS_MAX;
use store::access::{AuditCursor, AuditEntry};
use utoipa::ToSchema;

use super::Shared;
use super::problem::Problem;
use super::query::Query;

/// Entries of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// What was changed, or who was turned away.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditLine {
    at: String,
    /// Who; empty when nobody knows.
    actor: String,
    /// A method and a path, or `authenticate`.
    #[schema(example = "POST /api/v1/devices/{device}/commands")]
    action: String,
    target: String,
    address: String,
    /// The status of the answer, or why there was no caller.
    #[schema(example = "201")]
    outcome: String,
}

/// A part of the audit.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditLog {
    entries: Vec<AuditLine>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Lists what was changed through the API and who was turned away, latest first
#[utoipa::path(
    get,
    path = "/api/v1/audit",
    tag = "access",
    params(
        ("after" = Option<String>, Query, description = "Where a page ended, by its `next`"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = AuditLog))
)]
pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<AuditLog>, Problem> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query.get("after", cursor)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.audit_log(after, limit).await?;
    let next = match found.last() {
        Some((last, _)) if found.len() == limit => {
            Some(format!("{}.{}", last.at.micros(), last.id))
        }
        _ => None,
    };
    Ok(Json(AuditLog {
        entries: found.into_iter().map(|(_, entry)| entry.into()).collect(),
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

impl From<AuditEntry> for AuditLine {
    fn from(entry: AuditEntry) -> Self {
        Self {
            at: schema::rfc3339(entry.at.micros()),
            actor: entry.actor,
            action: entry.action,
            target: entry.target,
            address: entry.address,
            outcome: entry.outcome,
        }
    }
}
