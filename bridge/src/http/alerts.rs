//! Alerts: what a person should look at.

use api::alerts::{self, AlertBody, AlertList, OfAlert, WhichAlerts};
use axum::extract::State;
use axum::{Extension, Json};
use schema::time::ReceivedAt;
use store::alerts::{Alert, AlertQuery, AlertState};
use store::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};

use super::extract::{Now, Of, Params, next, parsed, wrong};
use super::problem::Problem;
use super::{Caller, Shared, Stored};

/// Alerts of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Characters of an alert's name.
const ID_CHARS: usize = 32;

/// Lists alerts, latest first.
pub(super) async fn list(
    State(store): Shared,
    Params(asked): Params<WhichAlerts>,
) -> Result<Json<AlertList>, Problem> {
    let query = AlertQuery {
        state: asked.state.map(state),
        device: asked.device,
        after: parsed("after", asked.after.as_deref(), cursor)?,
        limit: asked.limit.map_or(LIMIT, usize::from),
    };
    let found = store.alerts(&query).await?;
    let place = |last: &Alert| format!("{}.{}", last.opened_at.micros(), last.id);
    let next = next(&found, query.limit, place);
    Ok(Json(AlertList {
        alerts: found.into_iter().map(body).collect(),
        next,
    }))
}

/// Shows an alert.
pub(super) async fn one(
    State(store): Shared,
    Of(OfAlert { alert }): Of<OfAlert>,
) -> Result<Json<AlertBody>, Problem> {
    shown(&store, alert_id(&alert)?).await
}

/// Says that somebody knows of an alert; one that is resolved stays so.
pub(super) async fn acknowledge(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Now(now): Now,
    Of(OfAlert { alert }): Of<OfAlert>,
) -> Result<Json<AlertBody>, Problem> {
    let id = alert_id(&alert)?;
    store.acknowledge_alert(id, &caller.name, now).await?;
    shown(&store, id).await
}

async fn shown(store: &Stored, id: &str) -> Result<Json<AlertBody>, Problem> {
    let found = store.alert(id).await?;
    let unknown = || Problem::not_found(format!("there is no alert {id}"));
    found.map(|found| Json(body(found))).ok_or_else(unknown)
}

fn alert_id(text: &str) -> Result<&str, Problem> {
    let is_id = text.len() == ID_CHARS
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match is_id {
        true => Ok(text),
        false => Err(wrong(
            "alert",
            format!("{text:?} is no id of {ID_CHARS} hexadecimal digits"),
        )),
    }
}

const fn state(state: alerts::AlertState) -> AlertState {
    match state {
        alerts::AlertState::Firing => AlertState::Firing,
        alerts::AlertState::Acknowledged => AlertState::Acknowledged,
        alerts::AlertState::Resolved => AlertState::Resolved,
    }
}

fn cursor(text: &str) -> Result<(ReceivedAt, String), String> {
    let parsed = text.split_once('.').and_then(|(at, id)| {
        let at: i64 = at.parse().ok()?;
        let is_storable = (OBSERVED_AT_MIN.micros()..=OBSERVED_AT_MAX.micros()).contains(&at);
        (is_storable && alert_id(id).is_ok()).then(|| (ReceivedAt::from_micros(at), id.to_owned()))
    });
    parsed.ok_or_else(|| format!("{text:?} is no `next` of an answer"))
}

fn body(alert: Alert) -> AlertBody {
    let time = |at: ReceivedAt| schema::rfc3339(at.micros());
    let state = alert.state().as_str().to_owned();
    let (acknowledged_at, acknowledged_by) = alert.acknowledged.unzip();
    AlertBody {
        id: alert.id,
        rule: alert.rule.as_str().to_owned(),
        severity: alert.rule.severity().as_str().to_owned(),
        state,
        device: alert.finding.device.map(|device| device.to_string()),
        detail: alert.finding.detail,
        opened_at: time(alert.opened_at),
        last_seen_at: time(alert.last_seen_at),
        acknowledged_at: acknowledged_at.map(time),
        acknowledged_by,
        resolved_at: alert.resolved_at.map(time),
    }
}
