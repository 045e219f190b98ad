//! Versions that lost to another one of the same reading.

use api::Limited;
use api::conflicts::{ConflictBody, Conflicts, VersionBody};
use axum::Json;
use axum::extract::State;
use store::Conflict;

use super::extract::{Device, Params};
use super::problem::Problem;
use super::{Shared, telemetry};

/// Conflicts of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Lists versions that lost to another one, latest first.
pub(super) async fn list(
    State(store): Shared,
    Device(device): Device,
    Params(Limited { limit }): Params<Limited>,
) -> Result<Json<Conflicts>, Problem> {
    let limit = limit.map_or(LIMIT, usize::from);
    let conflicts = store.conflicts(&device, limit).await?;
    Ok(Json(Conflicts {
        conflicts: conflicts.into_iter().map(body).collect(),
    }))
}

fn body(conflict: Conflict) -> ConflictBody {
    ConflictBody {
        loser: telemetry::body(conflict.loser),
        winner: VersionBody {
            epoch: conflict.winner.epoch.to_string(),
            seq: conflict.winner.seq,
            hlc: conflict.winner.hlc.bits(),
        },
        recorded_at: schema::rfc3339(conflict.recorded_at.micros()),
    }
}
