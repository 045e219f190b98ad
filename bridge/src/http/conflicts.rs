//! Versions that lost to another one of the same reading.

use api::Page;
use api::conflicts::{ConflictBody, Conflicts, VersionBody};
use axum::Json;
use axum::extract::State;
use schema::time::ReceivedAt;
use schema::{Epoch, Hlc, Version};
use store::quota::Aside;
use store::{Conflict, ConflictCursor, OBSERVED_AT_MAX, OBSERVED_AT_MIN};

use super::dead_letters::not_kept;
use super::extract::{Device, Params, next, parsed};
use super::problem::Problem;
use super::{Shared, telemetry};

/// Conflicts of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Lists versions that lost to another one, latest first.
pub(super) async fn list(
    State(store): Shared,
    Device(device): Device,
    Params(asked): Params<Page>,
) -> Result<Json<Conflicts>, Problem> {
    let after = parsed("after", asked.after.as_deref(), cursor)?;
    let limit = asked.limit.map_or(LIMIT, usize::from);
    let found = store.conflicts(&device, after.as_ref(), limit).await?;
    let next = next(&found, limit, place);
    let not_kept = match after {
        None => Some(not_kept(&*store, Aside::Conflicts, Some(&device)).await?),
        Some(_) => None,
    };
    Ok(Json(Conflicts {
        conflicts: found.into_iter().map(body).collect(),
        next,
        not_kept,
    }))
}

fn place(last: &Conflict) -> String {
    let Version { hlc, epoch, seq } = last.loser.version;
    let at = last.recorded_at.micros();
    format!("{at}.{}.{epoch}.{seq}", hlc.bits())
}

fn cursor(text: &str) -> Result<ConflictCursor, String> {
    let parts: Vec<&str> = text.split('.').collect();
    let parsed = match parts.as_slice() {
        [at, hlc, epoch, seq] => at.parse().ok().zip(hlc.parse().ok()).and_then(|(at, hlc)| {
            let is_storable = (OBSERVED_AT_MIN.micros()..=OBSERVED_AT_MAX.micros()).contains(&at);
            let loser = Version {
                hlc: Hlc::from_bits(hlc),
                epoch: Epoch::try_from(u64::from_str_radix(epoch, 16).ok()?).ok()?,
                seq: seq.parse().ok()?,
            };
            is_storable.then_some(ConflictCursor {
                recorded_at: ReceivedAt::from_micros(at),
                loser,
            })
        }),
        _ => None,
    };
    parsed.ok_or_else(|| format!("{text:?} is no `next` of an answer"))
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
