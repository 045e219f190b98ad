//! Configuration of devices: what is desired of one, and what it says is in force.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::description::{answers_header, refuses, takes_header};
use crate::endpoint::{endpoint, listing, paged};
use crate::{Limit, OfDevice};

endpoint! {
    /// Shows what is desired of a device, and what it says is in force
    ShowDeviceConfig: GET "/api/v1/devices/{device}/config", ReadDevice, "configuration";
    path OfDevice; answer ConfigBody; also answers_tag
}

endpoint! {
    /// Changes keys of a device
    ///
    /// Changes the keys of a JSON object; `null` removes one. With `If-Match`, only if nobody has
    /// changed anything since.
    ChangeDeviceConfig: PATCH "/api/v1/devices/{device}/config", Operate, "configuration";
    path OfDevice; body Wanted; answer ConfigBody; also describe_change
}

endpoint! {
    /// Shows what was ever desired of a device, latest first: who, when, what
    ListDeviceConfigHistory: GET "/api/v1/devices/{device}/config/history", ReadDevice, "configuration";
    path OfDevice; query WhichChanges; answer History
}

/// Values that keys are to have, any JSON; `null` removes one. An object without a name of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wanted(pub BTreeMap<String, Value>);

/// Which part of a history is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichChanges {
    /// Of this key alone
    #[param(min_length = 1, max_length = 128)]
    pub key: Option<String>,
    /// What `next` of the page before said
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// What is desired of a device, and what it says is in force
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigBody {
    /// The device, by its id.
    pub device: String,
    /// Each key that is desired, or that the device has.
    pub keys: BTreeMap<String, KeyBody>,
}

/// One key of a device
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeyBody {
    /// What is desired; `null` for nothing.
    #[schema(value_type = Value)]
    pub desired: Value,
    /// Whether the device has it, and it is in force.
    pub in_force: bool,
    /// Why it is not in force, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Since when it is desired, RFC 3339.
    pub changed_at: Option<String>,
    /// Who desires it.
    pub changed_by: Option<String>,
    /// When the device said that it has it, RFC 3339.
    pub reported_at: Option<String>,
}

/// What was ever desired, latest first
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// The entries of this page.
    pub changes: Vec<HistoryBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One value that was desired
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryBody {
    /// Which key.
    pub key: String,
    /// `null` when the key was removed.
    #[schema(value_type = Value)]
    pub value: Value,
    /// Its clock: the latest of a key counts.
    pub clock: String,
    /// Since when it was desired, RFC 3339.
    pub changed_at: String,
    /// Who desired it.
    pub changed_by: String,
    /// The group that a device's value came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl PartialSchema for Wanted {
    fn schema() -> RefOr<Schema> {
        let any = Schema::Object(Object::with_type(SchemaType::AnyValue));
        let object = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property_names(Some(Object::with_type(Type::String)))
            .additional_properties(Some(any));
        object.build().into()
    }
}

impl ToSchema for Wanted {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("")
    }
}

paged!(WhichChanges, after);
listing!(History.changes: HistoryBody);

fn describe_change(operation: &mut Operation) {
    changes_if(operation);
    refuses(operation, 409, "The device is retired.");
}

/// A change that may be asked for on the condition that nobody was faster.
pub(crate) fn changes_if(operation: &mut Operation) {
    let shape = Object::with_type(SchemaType::from_iter([Type::String, Type::Null]));
    takes_header(
        operation,
        "if-match",
        "The `etag` of the state that is to be changed",
        shape,
    );
    answers_tag(operation);
    refuses(operation, 412, "Somebody else was faster.");
}

/// The state that an answer shows has a name.
pub(crate) fn answers_tag(operation: &mut Operation) {
    answers_header(
        operation,
        200,
        "etag",
        "Names this state of the configuration",
    );
}
