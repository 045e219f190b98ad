//! Errors of the API as problem details (RFC 9457): one shape for every endpoint, also for what
//! the HTTP library refuses by itself.

use api::problem::PROBLEM_JSON;
use axum::Json;
use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::{Class, Fault};
use store::StoreError;
use tracing::warn;

/// Most bytes of a refusal's own text that are passed on.
const DETAIL_BYTES_MAX: usize = 4 * 1024;

/// What went wrong, as the caller hears it, and what the log says besides.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    body: Box<api::Problem>,
    retry_after_seconds: Option<u64>,
    /// It may name hosts and statements: it is for the log, not for the caller.
    cause: Option<String>,
}

impl Problem {
    /// A problem of a status that the API answers with.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            body: Box::new(api::Problem::new(status.as_u16(), detail)),
            retry_after_seconds: None,
            cause: None,
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

    /// The answer with the request's name in it, and in the log what the caller is not told.
    fn named(mut self, request_id: &HeaderValue) -> Response {
        self.body.request_id = request_id.to_str().ok().map(str::to_owned);
        if let Some(cause) = &self.cause {
            let request = self.body.request_id.as_deref();
            warn!(
                request,
                status = self.body.status,
                cause,
                "the database did not do as asked"
            );
        }
        self.into_response()
    }
}

/// As its class says: what may heal is worth asking again, what a person must mend is not.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let later = |seconds, detail| Self::later(StatusCode::SERVICE_UNAVAILABLE, seconds, detail);
        let mut problem = match (error.fault(), error.class()) {
            _ if matches!(error, StoreError::Closed) => later(5, "the bridge is stopping"),
            (Fault::Halt, _) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the bridge cannot use its database until somebody looks at it; its log has the cause",
            ),
            (_, Class::Data) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the database holds what this bridge cannot read; its log says what",
            ),
            (_, Class::Conflict) => later(
                1,
                "others write the same all the time: try again; the bridge's log has the cause",
            ),
            (_, Class::Overload) => later(
                30,
                "the database has no room: try again later; the bridge's log has the cause",
            ),
            _ => later(
                5,
                "the database does not answer: try again later; the bridge's log has the cause",
            ),
        };
        problem.cause = Some(format!("{}: {error}", error.class().as_str()));
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.body.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.body)).into_response();
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
    let mut problem = Problem::new(status, text);
    if problem.body.detail.is_empty() {
        problem.body.detail.clone_from(&problem.body.title);
    }
    let mut named = problem.named(request_id);
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

    #[test]
    fn what_a_store_says_is_answered_by_its_class() {
        let source = || "cause".into();
        for (error, status, again) in [
            (StoreError::Closed, 503, Some(5)),
            (
                StoreError::NotMigrated {
                    found: 1,
                    wanted: 2,
                },
                500,
                None,
            ),
            (StoreError::Full { source: source() }, 503, Some(30)),
            (
                StoreError::Unreadable {
                    what: "clock",
                    source: source(),
                },
                500,
                None,
            ),
            (
                StoreError::Exhausted {
                    attempts: 3,
                    seconds: 15,
                    source: source(),
                },
                503,
                Some(1),
            ),
            (
                StoreError::Unreachable {
                    address: "secret:1".to_owned(),
                    source: source(),
                },
                503,
                Some(5),
            ),
        ] {
            let problem = Problem::from(error);
            let answer = serde_json::to_string(&problem.body).unwrap();
            assert_eq!(problem.body.status, status, "{problem:?}");
            assert_eq!(problem.retry_after_seconds, again, "{problem:?}");
            assert!(!answer.contains("secret"), "{answer}");
            assert!(problem.cause.is_some());
        }
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
