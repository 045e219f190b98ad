//! One command to many devices: sent, looked at, withdrawn.

use std::collections::BTreeMap;
use std::ops::Not;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, ToSchema};

use crate::commands::{Commands, KEY_TAKEN, takes_idempotency_key};
use crate::description::{answers_header, refuses};
use crate::endpoint::{endpoint, paged};
use crate::{Limit, OfCommand};

endpoint! {
    /// Has many devices do something
    ///
    /// Each device with these labels that is not retired gets the command once, with the same id, one
    /// after the other at the rate that is asked for.
    SendToMany: POST "/api/v1/commands", Operate, "commands";
    body NewFanOutBody; answer TakenFanOut; status 202; also describe_send
}

endpoint! {
    /// Shows how a command to many devices stands
    ShowMany: GET "/api/v1/commands/{command}", ReadFleet, "commands";
    path OfCommand; answer FanOutBody
}

endpoint! {
    /// Lists the devices' commands of one state
    ListDevicesOf: GET "/api/v1/commands/{command}/devices", ReadFleet, "commands";
    path OfCommand; query OfState; answer Commands
}

endpoint! {
    /// Withdraws a command from all its devices
    ///
    /// It does not start any more where it has not yet, and is stopped where it runs.
    CancelMany: POST "/api/v1/commands/{command}/cancel", Operate, "commands";
    path OfCommand; answer FanOutBody
}

/// Which devices' commands are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfState {
    /// Which state
    #[param(
        example = "failed",
        pattern = "^(queued|sent|delivered|running|succeeded|failed|expired|cancelled|unknown)$"
    )]
    pub state: String,
    /// The device behind which to go on
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

paged!(OfState, after);

/// A command for many devices
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFanOutBody {
    /// For the devices that have all of these labels and are not retired.
    #[serde(default)]
    #[schema(example = json!({"site": "a"}))]
    pub labels: BTreeMap<String, String>,
    /// Instead of labels: for all devices.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub all: bool,
    /// What to do.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    pub name: String,
    /// Any JSON of at most 64 KiB.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub arguments: Value,
    /// How long it may wait for a device from that device's turn on; an hour when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub ttl_seconds: Option<u64>,
    /// Higher ones run first.
    #[serde(default)]
    pub priority: u8,
    /// Devices that get it in a second; 50 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.01, maximum = 1_000)]
    pub per_second: Option<f64>,
}

/// A command for many devices that was taken
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakenFanOut {
    /// The command's id, the same for all devices.
    pub id: String,
    /// Devices that have their turn so far.
    pub devices: u64,
    /// Whether these are all.
    pub complete: bool,
}

/// A command for many devices, and how it stands
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FanOutBody {
    /// The command's id, the same for all devices.
    pub id: String,
    /// What to do.
    pub name: String,
    /// What it needs to know, any JSON.
    #[schema(value_type = Value)]
    pub arguments: Value,
    /// Higher ones run first.
    pub priority: u8,
    /// All of them held for each device; none: all devices.
    pub labels: BTreeMap<String, String>,
    /// Devices that get it in a second.
    pub per_second: f64,
    /// Devices that have their turn so far.
    pub devices: u64,
    /// Whether these are all; or, of one that was cancelled, whether all of them are withdrawn.
    pub complete: bool,
    /// How many devices' commands are in which state.
    #[schema(example = json!({"queued": 12, "succeeded": 30}))]
    pub states: BTreeMap<String, u64>,
    /// Whether nothing more is to be expected.
    pub ended: bool,
    /// RFC 3339.
    pub created_at: String,
    /// Who sent it.
    pub created_by: String,
    /// Since when it is withdrawn, RFC 3339.
    pub cancelled_at: Option<String>,
}

fn describe_send(operation: &mut Operation) {
    takes_idempotency_key(operation, "yours");
    answers_header(operation, 202, "location", "Where its summary is found");
    refuses(operation, 404, "No device has these labels.");
    refuses(operation, 422, KEY_TAKEN);
}
