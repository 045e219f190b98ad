//! Errors of the API as problem details (RFC 9457): one shape for every endpoint.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::store::StoreError;

/// What went wrong, for a program and for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// A short name that stays the same.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    /// The request cannot be understood.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self {
            kind: "bad-request",
            title: "The request cannot be understood",
            status: 400,
            detail: detail.into(),
        }
    }

    /// The caller may not do this.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self {
            kind: "forbidden",
            title: "This is not allowed",
            status: 403,
            detail: detail.into(),
        }
    }

    /// Somebody else was faster.
    pub(crate) fn precondition_failed(detail: impl Into<String>) -> Self {
        Self {
            kind: "precondition-failed",
            title: "It has changed meanwhile",
            status: 412,
            detail: detail.into(),
        }
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self {
            kind: "not-found",
            title: "There is no such thing",
            status: 404,
            detail: detail.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // The cause may name hosts and statements: it is for the log, not for the caller.
        tracing::warn!(class = error.class().as_str(), %error, "a query failed");
        Self {
            kind: "database-unavailable",
            title: "The database does not answer this request",
            status: 503,
            detail: "try again later; the bridge's log has the cause".to_owned(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(self)).into_response()
    }
}
