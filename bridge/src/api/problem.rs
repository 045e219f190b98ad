//! Errors of the API as problem details (RFC 9457): one shape for every endpoint, also for what
//! the HTTP library refuses by itself.

use axum::Json;
use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use store::StoreError;

/// What stands before a kind of problem: it is a name, and leads nowhere.
const TYPE_PREFIX: &str = "urn:tideline:problem:";

/// The media type of problem details.
const PROBLEM_JSON: &str = "application/problem+json";

/// Most bytes of a refusal's own text that are passed on.
const DETAIL_BYTES_MAX: usize = 4 * 1024;

/// What went wrong, for a program and for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// A short name that stays the same, as a URN.
    #[serde(rename = "type")]
    #[schema(example = "urn:tideline:problem:bad-request")]
    kind: String,
    /// What this kind of problem is about.
    title: String,
    /// The status of the answer.
    status: u16,
    /// What is wrong with this request, and what to do.
    detail: String,
    /// The request's name in the bridge's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip)]
    retry_after_seconds: Option<u64>,
}

impl Problem {
    /// A problem of a status that the API answers with.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let (kind, title) = names(status);
        Self {
            kind: format!("{TYPE_PREFIX}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            request_id: None,
            retry_after_seconds: None,
        }
    }

    /// The request cannot be understood.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Nobody knows who asks.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// The caller may not do this.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// Somebody else was faster.
    pub(crate) fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, detail)
    }

    /// The body is not of a kind that is understood here.
    pub(crate) fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    /// It cannot be done now, and may be after so many seconds.
    pub(crate) fn later(status: StatusCode, seconds: u64, detail: impl Into<String>) -> Self {
        Self {
            retry_after_seconds: Some(seconds),
            ..Self::new(status, detail)
        }
    }

    /// The answer with the request's name in it.
    pub(crate) fn named(mut self, request_id: &HeaderValue) -> Response {
        self.request_id = request_id.to_str().ok().map(str::to_owned);
        self.into_response()
    }
}

/// The kind and the title of a status.
fn names(status: StatusCode) -> (&'static str, &'static str) {
    match status {
        StatusCode::BAD_REQUEST => ("bad-request", "The request cannot be understood"),
        StatusCode::UNAUTHORIZED => ("unauthorized", "Who asks is not known"),
        StatusCode::FORBIDDEN => ("forbidden", "This is not allowed"),
        StatusCode::NOT_FOUND => ("not-found", "There is no such thing"),
        StatusCode::METHOD_NOT_ALLOWED => ("method-not-allowed", "This cannot be done here"),
        StatusCode::NOT_ACCEPTABLE => ("not-acceptable", "There is no answer of this kind"),
        StatusCode::CONFLICT => ("conflict", "It is not in a state for this"),
        StatusCode::PRECONDITION_FAILED => ("precondition-failed", "It has changed meanwhile"),
        StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "The body is too large"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported-media-type", "The body is of a wrong kind")
        }
        StatusCode::UNPROCESSABLE_ENTITY => ("unprocessable", "What is asked for cannot be done"),
        StatusCode::TOO_MANY_REQUESTS => ("too-many-requests", "There are too many requests"),
        StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "This cannot be answered now"),
        StatusCode::GATEWAY_TIMEOUT => ("timeout", "The answer took too long"),
        _ => ("error", "Something went wrong"),
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // The cause may name hosts and statements: it is for the log, not for the caller.
        tracing::warn!(class = error.class().as_str(), %error, "a query failed");
        let detail =
            "the database does not answer: try again later; the bridge's log has the cause";
        Self::later(StatusCode::SERVICE_UNAVAILABLE, 5, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"tideline\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// An answer as it leaves: a refusal that is not yet a problem becomes one, and each has the name
/// of its request.
pub(crate) async fn finished(mut response: Response, request_id: &HeaderValue) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return problem.named(request_id);
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, DETAIL_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let detail = match text.is_empty() {
        true => names(status).1.to_owned(),
        false => text,
    };
    let mut named = Problem::new(status, detail).named(request_id);
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        named.headers_mut().insert(header::ALLOW, allow.clone());
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(response: Response) -> serde_json::Value {
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn what_the_library_refuses_is_a_problem_too() {
        let id = HeaderValue::from_static("r1");
        let plain = (StatusCode::PAYLOAD_TOO_LARGE, "length limit exceeded").into_response();
        let answer = finished(plain, &id).await;
        assert_eq!(answer.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let body = body(answer).await;
        assert_eq!(body["type"], "urn:tideline:problem:too-large");
        assert_eq!(body["detail"], "length limit exceeded");
        assert_eq!(body["request_id"], "r1");
    }

    #[tokio::test]
    async fn a_problem_keeps_what_it_says() {
        let id = HeaderValue::from_static("r2");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let answer = finished(Problem::later(status, 7, "slowly").into_response(), &id).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()[header::RETRY_AFTER], "7");
        let body = body(answer).await;
        assert_eq!(
            (&body["detail"], &body["request_id"]),
            (&"slowly".into(), &"r2".into())
        );
    }

    #[tokio::test]
    async fn what_went_well_is_left_alone() {
        let id = HeaderValue::from_static("r3");
        let answer = finished((StatusCode::OK, "text").into_response(), &id).await;
        assert_eq!(to_bytes(answer.into_body(), 9).await.unwrap(), "text");
    }
}
