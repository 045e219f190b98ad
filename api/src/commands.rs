//! Commands to one device: sent, looked at, withdrawn.

use schema::DeviceId;
use schema::message::CommandId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use crate::description::{answers_header, answers_too, refuses, takes_header};
use crate::endpoint::{endpoint, listing, paged};
use crate::{IDEMPOTENCY_KEY, OfDevice, Page, text};

endpoint! {
    /// Lists the commands of a device, latest first
    ListCommands: GET "/api/v1/devices/{device}/commands", ReadDevice, "commands";
    path OfDevice; query Page; answer Commands
}

endpoint! {
    /// Has a device do something
    SendCommand: POST "/api/v1/devices/{device}/commands", Operate, "commands";
    path OfDevice; body NewCommand; answer CommandBody; status 201; also describe_send
}

endpoint! {
    /// Shows a command
    ShowCommand: GET "/api/v1/devices/{device}/commands/{command}", ReadDevice, "commands";
    path OfDevicesCommand; answer CommandBody
}

endpoint! {
    /// Withdraws a command
    ///
    /// Withdraws a command: it does not start any more, if it has not yet, or is stopped.
    CancelCommand: POST "/api/v1/devices/{device}/commands/{command}/cancel", Operate, "commands";
    path OfDevicesCommand; answer CommandBody
}

/// The device and its command that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfDevicesCommand {
    /// The device's id
    #[param(value_type = String, pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64)]
    pub device: DeviceId,
    /// The command's id, a UUID
    #[serde(with = "text")]
    #[param(value_type = String, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36)]
    pub command: CommandId,
}

/// A command to send
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCommand {
    /// What to do.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    pub name: String,
    /// Any JSON of at most 64 KiB.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub arguments: Value,
    /// How long it may wait for its device; an hour when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub ttl_seconds: Option<u64>,
    /// Higher ones run first.
    #[serde(default)]
    pub priority: u8,
}

/// A command, and how it stands
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandBody {
    /// Its id, a UUID.
    pub id: String,
    /// The device, by its id.
    pub device: String,
    /// What to do.
    pub name: String,
    /// What it needs to know, any JSON.
    #[schema(value_type = Value)]
    pub arguments: Value,
    /// Higher ones run first.
    pub priority: u8,
    /// `queued`, `sent`, `delivered`, `running`, `succeeded`, `failed`, `expired`, `cancelled` or `unknown`.
    pub state: String,
    /// Whether nothing more is to be expected.
    pub ended: bool,
    /// It was withdrawn, and the device is being told.
    pub withdrawn: bool,
    /// How much of it is done, as the device says.
    pub percent: u8,
    /// What the device says.
    pub output: String,
    /// RFC 3339.
    pub created_at: String,
    /// Who sent it.
    pub created_by: String,
    /// It does not start after this, RFC 3339.
    pub expires_at: String,
    /// How often it was published.
    pub sent_times: u64,
    /// When it was published last.
    pub sent_at: Option<String>,
    /// When the device was last heard of it.
    pub heard_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// Commands of one device, or of one command to many
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Commands {
    /// The entries of this page.
    pub commands: Vec<CommandBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

listing!(Commands.commands: CommandBody);
paged!(Page, after);

fn describe_send(operation: &mut Operation) {
    takes_idempotency_key(operation, "yours for this device");
    answers_header(operation, 201, "location", "Where the command is found");
    answers_too(
        operation,
        200,
        201,
        "The same request has made this command before.",
    );
    refuses(operation, 409, "The device is retired.");
    refuses(operation, 422, KEY_TAKEN);
}

/// What is said of a key that another request had.
pub(crate) const KEY_TAKEN: &str = "Another request had this idempotency key.";

/// A request that may be named; `among` says whose requests have names of their own.
pub(crate) fn takes_idempotency_key(operation: &mut Operation, among: &str) {
    let text = format!(
        "Names this request among {among}: the same request again is the same command, so one that was answered \
         with a 5xx or not at all is safe to repeat"
    );
    let shape = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[!-~]{1,255}$"))
        .min_length(Some(1))
        .max_length(Some(255))
        .build();
    takes_header(operation, IDEMPOTENCY_KEY, &text, shape);
}
