//! Configuration of groups: what is desired of every device that a group has.

use api::config::{History, Wanted, WhichChanges};
use api::groups::{GroupBody, GroupConfig, GroupKey, Groups, OfGroup, WhichGroups};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use store::config::ConfigChange;
use store::groups::{GROUP_VALUES_MAX, Group, GroupChange, version};
use store::labels::LabelValue;

use super::config::{Tagged, checked, expected, history_body, history_page, moved, tagged};
use super::extract::{Body, Now, Of, Params, next, parsed, wrong};
use super::fleet::author;
use super::problem::Problem;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Groups of an answer, unless told otherwise.
const LIMIT: usize = 1_000;

/// Lists the groups that have members or a configuration.
pub(super) async fn list(
    State(store): Shared,
    Params(query): Params<WhichGroups>,
) -> Result<Json<Groups>, Problem> {
    let after = parsed("after", query.after.as_deref(), str::parse)?;
    let limit = query.limit.map_or(LIMIT, usize::from);
    let found = store.groups(after.as_ref(), limit).await?;
    Ok(Json(Groups {
        next: next(&found, limit, |last| last.name.to_string()),
        groups: found.into_iter().map(body).collect(),
    }))
}

/// Shows what is desired of a group's members.
pub(super) async fn show(
    State(store): Shared,
    Of(OfGroup { group }): Of<OfGroup>,
) -> Result<Tagged<GroupConfig>, Problem> {
    let group = name(&group)?;
    let config = store.group_config(&group).await?;
    Ok(answer(&group, &config))
}

/// Changes keys of a group, and of every member.
pub(super) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Now(now): Now,
    Of(OfGroup { group }): Of<OfGroup>,
    headers: HeaderMap,
    Body(wanted): Body<Wanted>,
) -> Result<Tagged<GroupConfig>, Problem> {
    let group = name(&group)?;
    let wanted = checked(wanted)?;
    let expected = expected(&headers)?;
    let author = author(caller, now);
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

/// Shows what was ever desired of a group.
pub(super) async fn history(
    State(store): Shared,
    Of(OfGroup { group }): Of<OfGroup>,
    Params(query): Params<WhichChanges>,
) -> Result<Json<History>, Problem> {
    let group = name(&group)?;
    let page = history_page(query)?;
    let found = store.group_history(&group, &page).await?;
    Ok(Json(history_body(found, page.limit)))
}

fn name(text: &str) -> Result<LabelValue, Problem> {
    text.parse().map_err(|error| wrong("group", error))
}

fn answer(group: &LabelValue, config: &[ConfigChange]) -> Tagged<GroupConfig> {
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
    tagged(version(config), body)
}

/// A group as it stands in answers.
fn body(group: Group) -> GroupBody {
    GroupBody {
        group: group.name.to_string(),
        members: group.members,
        keys: group.keys,
    }
}
