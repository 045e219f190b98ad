//! Configuration of groups: what is desired of every device that a group has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, ToSchema};

use crate::Limit;
use crate::config::{History, Wanted, WhichChanges, answers_tag, changes_if};
use crate::description::refuses;
use crate::endpoint::{endpoint, listing, paged};

endpoint! {
    /// Lists the groups that have members or a configuration
    ListGroups: GET "/api/v1/groups", ReadFleet, "configuration";
    query WhichGroups; answer Groups
}

endpoint! {
    /// Shows what is desired of a group's members
    ShowGroupConfig: GET "/api/v1/groups/{group}/config", ReadFleet, "configuration";
    path OfGroup; answer GroupConfig; also answers_tag
}

endpoint! {
    /// Changes keys of a group, and of every member
    ///
    /// Changes the keys of a JSON object; `null` removes one. Each member has the change in the same
    /// commit, in the place of whatever it had before. With `If-Match`, only if nobody has changed
    /// anything of the group since.
    ChangeGroupConfig: PATCH "/api/v1/groups/{group}/config", Operate, "configuration";
    path OfGroup; body Wanted; answer GroupConfig; also describe_change
}

endpoint! {
    /// Shows what was ever desired of a group, latest first: who, when, what
    ListGroupConfigHistory: GET "/api/v1/groups/{group}/config/history", ReadFleet, "configuration";
    path OfGroup; query WhichChanges; answer History
}

/// The group that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfGroup {
    /// The group, as the devices' label `group` names it
    #[param(min_length = 1, max_length = 128)]
    pub group: String,
}

/// Which groups are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichGroups {
    /// The group behind which to go on
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// The groups of the fleet
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Groups {
    /// The entries of this page.
    pub groups: Vec<GroupBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A group
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupBody {
    /// Its name.
    pub group: String,
    /// Devices whose label `group` names it.
    pub members: u64,
    /// Keys that it has a value for.
    pub keys: u64,
}

/// What is desired of a group's members
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupConfig {
    /// The group's name.
    pub group: String,
    /// Each key that is, or was, desired.
    pub keys: BTreeMap<String, GroupKey>,
}

/// One key of a group
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupKey {
    /// What is desired; `null` for nothing.
    #[schema(value_type = Value)]
    pub desired: Value,
    /// Since when, RFC 3339.
    pub changed_at: String,
    /// Who desires it.
    pub changed_by: String,
}

paged!(WhichGroups, after);
listing!(Groups.groups: GroupBody);

fn describe_change(operation: &mut Operation) {
    changes_if(operation);
    let text = "The group is too large for so many keys at once.";
    refuses(operation, 422, text);
}
