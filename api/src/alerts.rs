//! Alerts: what a person should look at.

use schema::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Limit;
use crate::endpoint::{endpoint, listing, paged};

endpoint! {
    /// Lists alerts, latest first
    ListAlerts: GET "/api/v1/alerts", ReadFleet, "alerts";
    query WhichAlerts; answer AlertList
}

endpoint! {
    /// Shows an alert
    ShowAlert: GET "/api/v1/alerts/{alert}", ReadFleet, "alerts";
    path OfAlert; answer AlertBody
}

endpoint! {
    /// Says that somebody knows of an alert; one that is resolved stays so
    AcknowledgeAlert: POST "/api/v1/alerts/{alert}/acknowledge", Operate, "alerts";
    path OfAlert; answer AlertBody
}

/// The alert that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfAlert {
    /// Its id
    #[param(pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32)]
    pub alert: String,
}

/// Which alerts are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichAlerts {
    /// `firing`, `acknowledged` or `resolved` ones alone
    #[param(value_type = Option<String>)]
    pub state: Option<AlertState>,
    /// Of this device alone
    #[param(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// Where a page ended, by its `next`
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// Wrong now, and nobody looks after it.
    Firing,
    /// Wrong now, and somebody looks after it.
    Acknowledged,
    /// Not wrong any more.
    Resolved,
}

/// Something that a person should look at
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertBody {
    /// Its name, 32 hexadecimal digits.
    pub id: String,
    /// What was looked for: `device_offline`, `readings_unaccounted`, `dead_letters`,
    /// `setting_not_in_force` or `clock_skewed`.
    pub rule: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// `firing`, `acknowledged` or `resolved`.
    pub state: String,
    /// Of which device, or of none.
    pub device: Option<String>,
    /// What was found, for a person.
    pub detail: String,
    /// When it was found first, RFC 3339.
    pub opened_at: String,
    /// When it was found last, RFC 3339.
    pub last_seen_at: String,
    /// When somebody said that they know of it, RFC 3339.
    pub acknowledged_at: Option<String>,
    /// Who said so.
    pub acknowledged_by: Option<String>,
    /// When it was found no more, RFC 3339.
    pub resolved_at: Option<String>,
}

/// Alerts, latest first
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertList {
    /// The entries of this page.
    pub alerts: Vec<AlertBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

listing!(AlertList.alerts: AlertBody);
paged!(WhichAlerts, after);
