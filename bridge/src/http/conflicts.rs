//! Versions that lost to another one of the same reading.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde::Serialize;
use store::{Conflict, QUERY_ROWS_MAX};
use utoipa::ToSchema;

use super::Shared;
use super::problem::Problem;
use super::query::Query;
use super::telemetry::ReadingBody;

/// Conflicts of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Versions that lost
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Conflicts {
    conflicts: Vec<ConflictBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ConflictBody {
    loser: ReadingBody,
    winner: VersionBody,
    recorded_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct VersionBody {
    epoch: String,
    seq: u64,
    hlc: u64,
}

/// Lists versions that lost to another one, latest first
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/conflicts",
    tag = "telemetry",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = Conflicts))
)]
pub(crate) async fn list(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Conflicts>, Problem> {
    let device = super::device(&device)?;
    let limit = Query::parse(query.as_deref(), &["limit"])?.limit(LIMIT, QUERY_ROWS_MAX)?;
    let conflicts = store.conflicts(&device, limit).await?;
    Ok(Json(Conflicts {
        conflicts: conflicts.into_iter().map(ConflictBody::from).collect(),
    }))
}

impl From<Conflict> for ConflictBody {
    fn from(conflict: Conflict) -> Self {
        Self {
            loser: conflict.loser.into(),
            winner: VersionBody {
                epoch: conflict.winner.epoch.to_string(),
                seq: conflict.winner.seq,
                hlc: conflict.winner.hlc.bits(),
            },
            recorded_at: schema::rfc3339(conflict.recorded_at.micros()),
        }
    }
}
