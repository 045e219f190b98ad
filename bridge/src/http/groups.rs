//! Configuration of groups: what is desired of every device that a group has.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schema::Hlc;
use serde::Serialize;
use serde_json::Value;
use store::QUERY_ROWS_MAX;
use store::config::ConfigChange;
use store::groups::{GROUP_VALUES_MAX, Group, GroupChange, clock_of};
use store::labels::LabelValue;
use utoipa::ToSchema;

use super::config::{History, clock_tag, history_page, moved, parse};
use super::fleet::author;
use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Groups of an answer, unless told otherwise.
const LIMIT: usize = 1_000;

/// The groups of the fleet
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Groups {
    groups: Vec<GroupBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A group
#[derive(Debug, Serialize, ToSchema)]
struct GroupBody {
    group: String,
    /// Devices whose label `group` names it.
    members: u64,
    /// Keys that it has a value for.
    keys: u64,
}

/// What is desired of a group's members
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupConfig {
    group: String,
    keys: BTreeMap<String, GroupKey>,
}

/// One key of a group
#[derive(Debug, Serialize, ToSchema)]
struct GroupKey {
    /// What is desired; `null` for nothing.
    #[schema(value_type = Value)]
    desired: Value,
    changed_at: String,
    changed_by: String,
}

/// Lists the groups that have members or a configuration
#[utoipa::path(
    get,
    path = "/api/v1/groups",
    tag = "configuration",
    params(
        ("after" = Option<String>, Query, description = "The group behind which to go on"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = Groups))
)]
pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<Groups>, Problem> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after: Option<LabelValue> = query.get("after", str::parse)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.groups(after.as_ref(), limit).await?;
    let next = match found.last() {
        Some(last) if found.len() == limit => Some(last.name.to_string()),
        _ => None,
    };
    Ok(Json(Groups {
        groups: found.into_iter().map(GroupBody::from).collect(),
        next,
    }))
}

/// Shows what is desired of a group's members
#[utoipa::path(
    get,
    path = "/api/v1/groups/{group}/config",
    tag = "configuration",
    params(
        ("group" = String, Path, description = "The group, as the devices' label `group` names it", min_length = 1, max_length = 128),
    ),
    responses((status = 200, body = GroupConfig, headers(("etag" = String, description = "Names this state of the configuration"))))
)]
pub(crate) async fn show(
    State(store): Shared,
    Path(group): Path<String>,
) -> Result<Response, Problem> {
    let group = name(&group)?;
    let config = store.group_config(&group).await?;
    Ok(answer(&group, &config))
}

/// Changes keys of a group, and of every member
///
/// Changes the keys of a JSON object; `null` removes one. Each member has the change in the same
/// commit, in the place of whatever it had before. With `If-Match`, only if nobody has changed
/// anything of the group since.
#[utoipa::path(
    patch,
    path = "/api/v1/groups/{group}/config",
    tag = "configuration",
    params(
        ("group" = String, Path, description = "The group, as the devices' label `group` names it", min_length = 1, max_length = 128),
        ("if-match" = Option<String>, Header, description = "The `etag` of the state that is to be changed"),
    ),
    request_body = std::collections::BTreeMap<String, serde_json::Value>,
    responses(
        (status = 200, body = GroupConfig, headers(("etag" = String, description = "Names this state of the configuration"))),
        (status = 412, description = "Somebody else was faster.", body = api::Problem, content_type = "application/problem+json"),
        (status = 422, description = "The group is too large for so many keys at once.", body = api::Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let group = name(&group)?;
    super::is_json(&headers)?;
    let wanted: Vec<(String, String)> = parse(&body)?
        .into_iter()
        .map(|(key, value)| (key, value.to_string()))
        .collect();
    let expected = match headers.get(header::IF_MATCH) {
        Some(tag) => Some(clock_in(tag).ok_or_else(moved)?),
        None => None,
    };
    let author = author(caller, store.clock().now());
    let done = store.change_group(&group, &wanted, expected, &author);
    match done.await? {
        GroupChange::Done { config, .. } => {
            notifier.configs();
            Ok(answer(&group, &config))
        }
        GroupChange::Moved => Err(moved()),
        GroupChange::TooMuch { members } => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!(
                "one change writes at most {GROUP_VALUES_MAX} values, and the group has {members} \
                 members: change fewer keys at a time"
            ),
        )),
    }
}

/// Shows what was ever desired of a group, latest first: who, when, what
#[utoipa::path(
    get,
    path = "/api/v1/groups/{group}/config/history",
    tag = "configuration",
    params(
        ("group" = String, Path, description = "The group, as the devices' label `group` names it", min_length = 1, max_length = 128),
        ("key" = Option<String>, Query, description = "Of this key alone", min_length = 1, max_length = 128),
        ("after" = Option<String>, Query, description = "What `next` of the page before said"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = History))
)]
pub(crate) async fn history(
    State(store): Shared,
    Path(group): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<History>, Problem> {
    let group = name(&group)?;
    let page = history_page(query.as_deref())?;
    let found = store.group_history(&group, &page).await?;
    Ok(Json(History::of(found, page.limit)))
}

fn name(text: &str) -> Result<LabelValue, Problem> {
    text.parse()
        .map_err(|error| Problem::bad_request(format!("group: {error}")))
}

/// The clock that a tag names; a tag of another shape is none of ours.
fn clock_in(tag: &HeaderValue) -> Option<Hlc> {
    let bits = tag.to_str().ok()?.strip_prefix('"')?.strip_suffix('"')?;
    let clock = Hlc::from_bits(u64::from_str_radix(bits, 16).ok()?);
    (clock_tag(clock).as_bytes() == tag.as_bytes()).then_some(clock)
}

fn answer(group: &LabelValue, config: &[ConfigChange]) -> Response {
    let keys = config.iter().map(|change| {
        let key = GroupKey {
            desired: serde_json::from_str(&change.entry.value).unwrap_or_default(),
            changed_at: schema::rfc3339(change.changed_at.micros()),
            changed_by: change.changed_by.clone(),
        };
        (change.entry.key.clone(), key)
    });
    let body = GroupConfig {
        group: group.to_string(),
        keys: keys.collect(),
    };
    let tag = [(header::ETAG, clock_tag(clock_of(config)))];
    (tag, Json(body)).into_response()
}

impl From<Group> for GroupBody {
    fn from(group: Group) -> Self {
        Self {
            group: group.name.to_string(),
            members: group.members,
            keys: group.keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let read = |tag: &str| clock_in(&HeaderValue::from_str(tag).unwrap());
        let clock = Hlc::new(7, 9);
        assert_eq!(read(&clock_tag(clock)), Some(clock));
        for other in [
            "*",
            "\"\"",
            "\"7\"",
            "W/\"0000000000070009\"",
            "0000000000070009",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
