//! Errors as problem details (RFC 9457): one shape for every endpoint.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What stands before a kind of problem: it is a name, and leads nowhere.
const TYPE_PREFIX: &str = "urn:tideline:problem:";

/// The media type of problem details.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong, for a program and for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A short name that stays the same, as a URN.
    #[serde(rename = "type")]
    #[schema(example = "urn:tideline:problem:bad-request")]
    pub kind: String,
    /// What this kind of problem is about.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong with this request, and what to do.
    pub detail: String,
    /// The request's name in the bridge's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem of a status that the API answers with.
    #[must_use]
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let (kind, title) = names(status);
        Self {
            kind: format!("{TYPE_PREFIX}{kind}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            request_id: None,
        }
    }
}

/// The kind and the title of a status.
const fn names(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("bad-request", "The request cannot be understood"),
        401 => ("unauthorized", "Who asks is not known"),
        403 => ("forbidden", "This is not allowed"),
        404 => ("not-found", "There is no such thing"),
        405 => ("method-not-allowed", "This cannot be done here"),
        406 => ("not-acceptable", "There is no answer of this kind"),
        409 => ("conflict", "It is not in a state for this"),
        412 => ("precondition-failed", "It has changed meanwhile"),
        413 => ("too-large", "The body is too large"),
        415 => ("unsupported-media-type", "The body is of a wrong kind"),
        422 => ("unprocessable", "What is asked for cannot be done"),
        429 => ("too-many-requests", "There are too many requests"),
        503 => ("unavailable", "This cannot be answered now"),
        504 => ("timeout", "The answer took too long"),
        _ => ("error", "Something went wrong"),
    }
}
