//! The fleet: which devices there are, their labels, and which are retired.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, ToSchema};

use crate::description::refuses;
use crate::endpoint::{endpoint, listing, paged};
use crate::{Limit, OfDevice};

endpoint! {
    /// Lists devices by id
    ListDevices: GET "/api/v1/devices", ReadFleet, "devices";
    query WhichDevices; answer Devices
}

endpoint! {
    /// Shows a device
    ShowDevice: GET "/api/v1/devices/{device}", ReadDevice, "devices";
    path OfDevice; answer DeviceBody
}

endpoint! {
    /// Changes labels of a device
    ///
    /// A device that nobody has heard of yet is met by it. The label `group` names the device's group:
    /// with it the configuration of the group comes and goes.
    LabelDevice: PATCH "/api/v1/devices/{device}", Operate, "devices";
    path OfDevice; body DevicePatch; answer DeviceBody; also describe_label
}

endpoint! {
    /// Retires a device
    ///
    /// It is left out of lists and fan-outs, commands that wait for it are cancelled, and it gets nothing
    /// sent any more. What it still says is taken.
    RetireDevice: POST "/api/v1/devices/{device}/retire", Administer, "devices";
    path OfDevice; answer DeviceBody
}

endpoint! {
    /// Takes a retired device back
    ReinstateDevice: POST "/api/v1/devices/{device}/reinstate", Administer, "devices";
    path OfDevice; answer DeviceBody
}

/// Which devices are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichDevices {
    /// KEY=VALUE; may stand several times, and all must hold
    #[serde(default)]
    #[param(example = json!(["site=a"]))]
    pub label: Vec<String>,
    /// Only those that are, or are not, online
    pub online: Option<bool>,
    /// Those that are retired instead of those that are not
    pub retired: Option<bool>,
    /// The id begins so
    #[param(max_length = 64, pattern = "^[A-Za-z0-9._-]*$")]
    pub prefix: Option<String>,
    /// The id behind which to go on
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// Devices of the fleet
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// The entries of this page.
    pub devices: Vec<DeviceBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One device
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceBody {
    /// Its id.
    pub device: String,
    /// Whether its last word on `up/status` was a birth.
    pub online: bool,
    /// When it was first heard of, RFC 3339.
    pub first_seen: String,
    /// When it was last heard of, RFC 3339.
    pub last_seen: String,
    /// The agent's version, from its last birth.
    pub agent_version: Option<String>,
    /// The epoch of its buffer that is in use, from its last birth; 16 hexadecimal digits.
    pub epoch: Option<String>,
    /// What people call it by.
    #[serde(default)]
    #[schema(required, example = json!({"site": "a", "group": "press"}))]
    pub labels: BTreeMap<String, String>,
    /// Since when it is retired: it gets nothing sent.
    pub retired_at: Option<String>,
}

/// What is to change of a device
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DevicePatch {
    /// Labels to set, and with `null` to remove. Keys have 1 to 64 characters of `a-z 0-9 . _ -`,
    /// values 1 to 128 characters; a device has at most 32.
    #[schema(example = json!({"site": "a", "old": null}))]
    pub labels: BTreeMap<String, Option<String>>,
}

paged!(WhichDevices, after);
listing!(Devices.devices: DeviceBody);

fn describe_label(operation: &mut Operation) {
    refuses(operation, 422, "The device would have too many labels.");
}
