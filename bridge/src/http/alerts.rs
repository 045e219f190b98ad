//! Alerts: what a person should look at.

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use schema::time::ReceivedAt;
use serde::Serialize;
use store::alerts::{Alert, AlertQuery, AlertState};
use store::{OBSERVED_AT_MAX, OBSERVED_AT_MIN, QUERY_ROWS_MAX};
use utoipa::ToSchema;

use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared};

/// Alerts of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Characters of an alert's name.
const ID_CHARS: usize = 32;

/// Something that a person should look at
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AlertBody {
    id: String,
    /// What was looked for: `device_offline`, `readings_unaccounted`, `dead_letters`,
    /// `setting_not_in_force` or `clock_skewed`.
    rule: &'static str,
    /// `warning` or `critical`.
    severity: &'static str,
    /// `firing`, `acknowledged` or `resolved`.
    state: &'static str,
    /// Of which device, or of none.
    device: Option<String>,
    detail: String,
    opened_at: String,
    last_seen_at: String,
    acknowledged_at: Option<String>,
    acknowledged_by: Option<String>,
    resolved_at: Option<String>,
}

/// Alerts, latest first
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AlertList {
    alerts: Vec<AlertBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Lists alerts, latest first
#[utoipa::path(
    get,
    path = "/api/v1/alerts",
    tag = "alerts",
    params(
        ("state" = Option<String>, Query, description = "`firing`, `acknowledged` or `resolved` ones alone"),
        ("device" = Option<String>, Query, description = "Of this device alone"),
        ("after" = Option<String>, Query, description = "Where a page ended, by its `next`"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = AlertList))
)]
pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<AlertList>, Problem> {
    let query = Query::parse(query.as_deref(), &["state", "device", "after", "limit"])?;
    let query = AlertQuery {
        state: query.get("state", state)?,
        device: query.get("device", str::parse)?,
        after: query.get("after", cursor)?,
        limit: query.limit(LIMIT, QUERY_ROWS_MAX)?,
    };
    let found = store.alerts(&query).await?;
    let next = match found.last() {
        Some(last) if found.len() == query.limit => {
            Some(format!("{}.{}", last.opened_at.micros(), last.id))
        }
        _ => None,
    };
    Ok(Json(AlertList {
        alerts: found.into_iter().map(AlertBody::from).collect(),
        next,
    }))
}

/// Shows an alert
#[utoipa::path(
    get,
    path = "/api/v1/alerts/{alert}",
    tag = "alerts",
    params(("alert" = String, Path, description = "Its id", pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32)),
    responses((status = 200, body = AlertBody))
)]
pub(crate) async fn one(
    State(store): Shared,
    Path(id): Path<String>,
) -> Result<Json<AlertBody>, Problem> {
    let found = store.alert(alert_id(&id)?).await?;
    found
        .map(|found| Json(found.into()))
        .ok_or_else(|| unknown(&id))
}

/// Says that somebody knows of an alert; one that is resolved stays so
#[utoipa::path(
    post,
    path = "/api/v1/alerts/{alert}/acknowledge",
    tag = "alerts",
    params(("alert" = String, Path, description = "Its id", pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32)),
    responses((status = 200, body = AlertBody))
)]
pub(crate) async fn acknowledge(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<AlertBody>, Problem> {
    let name = alert_id(&id)?;
    let now = store.clock().now();
    store.acknowledge_alert(name, &caller.name, now).await?;
    let found = store.alert(name).await?;
    found
        .map(|found| Json(found.into()))
        .ok_or_else(|| unknown(&id))
}

fn alert_id(text: &str) -> Result<&str, Problem> {
    let is_id = text.len() == ID_CHARS
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match is_id {
        true => Ok(text),
        false => Err(Problem::bad_request(format!(
            "alert: {text:?} is no id of {ID_CHARS} hexadecimal digits"
        ))),
    }
}

fn unknown(id: &str) -> Problem {
    Problem::not_found(format!("there is no alert {id}"))
}

fn state(text: &str) -> Result<AlertState, String> {
    let mut all = AlertState::ALL.into_iter();
    all.find(|state| state.as_str() == text)
        .ok_or_else(|| format!("{text:?} is none of firing, acknowledged, resolved"))
}

fn cursor(text: &str) -> Result<(ReceivedAt, String), String> {
    let parsed = text.split_once('.').and_then(|(at, id)| {
        let at: i64 = at.parse().ok()?;
        let is_storable = (OBSERVED_AT_MIN.micros()..=OBSERVED_AT_MAX.micros()).contains(&at);
        (is_storable && alert_id(id).is_ok()).then(|| (ReceivedAt::from_micros(at), id.to_owned()))
    });
    parsed.ok_or_else(|| format!("{text:?} is no `next` of an answer"))
}

impl From<Alert> for AlertBody {
    fn from(alert: Alert) -> Self {
        let time = |at: ReceivedAt| schema::rfc3339(at.micros());
        let state = alert.state().as_str();
        let (acknowledged_at, acknowledged_by) = alert.acknowledged.unzip();
        Self {
            id: alert.id,
            rule: alert.rule.as_str(),
            severity: alert.rule.severity().as_str(),
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
}
