//! `GET` and `POST /config` beside the admin endpoints: how the command line reaches an agent that
//! runs and has the buffer's file.
//!
//! Only this machine may ask: the caller's address and the name that it calls us by must be this
//! machine's own, and a change must be JSON, so that a page in a browser cannot make one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use daemon::http::names_this_machine;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{ChangeError, Request, local};

/// Largest body: all known keys many times over.
const BODY_BYTES_MAX: usize = 64 * 1024;

type Requests = State<mpsc::Sender<Request>>;
type Caller = Option<Extension<ConnectInfo<SocketAddr>>>;

/// The routes.
pub(crate) fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/config", get(show).post(change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(requests)
}

async fn show(
    State(requests): Requests,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    check(caller, &headers)?;
    let shown = ask(&requests, Request::Show).await?;
    Ok(Json(shown).into_response())
}

async fn change(
    State(requests): Requests,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    check(caller, &headers)?;
    if !is_json(&headers) {
        let reason = "the body must be application/json".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    let changes: BTreeMap<String, Value> = serde_json::from_slice(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("body: {error}")))?;
    let changes = local::texts(&changes);
    let changed = ask(&requests, |reply| Request::Change { changes, reply }).await?;
    match changed {
        Ok(shown) => Ok(Json(shown).into_response()),
        Err(ChangeError::Edit(error)) => Err((StatusCode::BAD_REQUEST, error.to_string())),
        Err(ChangeError::Buffer(error)) => {
            Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
        }
    }
}

type Refusal = (StatusCode, String);

async fn ask<T>(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, Refusal> {
    let stopping = || {
        let reason = "the agent is stopping".to_owned();
        (StatusCode::SERVICE_UNAVAILABLE, reason)
    };
    let (reply, answer) = oneshot::channel();
    let sent = requests.send(request(reply)).await;
    sent.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

pub(crate) fn check(caller: Caller, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_here =
        caller.is_some_and(|Extension(ConnectInfo(from))| from.ip().to_canonical().is_loopback());
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if is_here && host.is_none_or(names_this_machine) {
        return Ok(());
    }
    let reason = "settings are shown and changed on this machine alone: call 127.0.0.1";
    Err((StatusCode::FORBIDDEN, reason.to_owned()))
}

/// What a form in a web page sends does not say that it is JSON.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_on_this_machine_and_call_it_by_its_name() {
        let called = |from: Option<&str>, host: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert(header::HOST, host.parse().unwrap());
            }
            let caller = from.map(|from| Extension(ConnectInfo(from.parse().unwrap())));
            check(caller, &headers).is_ok()
        };
        for host in ["127.0.0.1:9464", "localhost", "[::1]:9464", "LOCALHOST:1"] {
            assert!(called(Some("127.0.0.1:1"), Some(host)), "{host}");
            assert!(called(Some("[::ffff:127.0.0.1]:1"), Some(host)), "{host}");
            assert!(!called(Some("10.0.0.2:1"), Some(host)), "{host}");
            assert!(!called(None, Some(host)), "{host}");
        }
        for host in ["attacker.example", "127.0.0.1.example:80", "10.0.0.1", ""] {
            assert!(!called(Some("127.0.0.1:1"), Some(host)), "{host}");
        }
        assert!(called(Some("[::1]:1"), None));
    }
}
