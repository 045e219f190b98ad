//! The REST API: what the database knows, as JSON, and commands. `/metrics`, `/healthz` and
//! `/readyz` come from the daemon crate and are merged in.

mod commands;
mod config;
mod devices;
mod ledger;
mod problem;
mod query;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use schema::DeviceId;
use schema::limits::COMMAND_BODY_BYTES_MAX;

use crate::store::Store;
pub(crate) use commands::Changes;
use problem::Problem;

/// Largest body of a request: the largest arguments of a command, written as JSON.
const BODY_BYTES_MAX: usize = 2 * COMMAND_BODY_BYTES_MAX;

/// How long a request may take: a query that needs longer should ask for less.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Names the request in logs and answers.
const REQUEST_ID: &str = "x-request-id";

/// What handlers share.
type Shared = State<Arc<dyn Store>>;

/// How long readings are kept.
#[derive(Debug, Clone, Copy)]
struct Retention(Option<Duration>);

/// The routes below `/api/v1`.
pub(crate) fn router(
    store: Arc<dyn Store>,
    retention: Option<Duration>,
    changes: Changes,
) -> Router {
    Router::new()
        .route("/api/v1/devices", get(devices::list))
        .route("/api/v1/devices/{device}", get(devices::one))
        .route(
            "/api/v1/devices/{device}/telemetry",
            get(devices::telemetry),
        )
        .route(
            "/api/v1/devices/{device}/telemetry/latest",
            get(devices::latest),
        )
        .route(
            "/api/v1/devices/{device}/conflicts",
            get(devices::conflicts),
        )
        .route("/api/v1/devices/{device}/ledger", get(ledger::device))
        .route(
            "/api/v1/devices/{device}/commands",
            get(commands::list).post(commands::create),
        )
        .route(
            "/api/v1/devices/{device}/commands/{command}",
            get(commands::one),
        )
        .route(
            "/api/v1/devices/{device}/commands/{command}/cancel",
            post(commands::cancel),
        )
        .route(
            "/api/v1/devices/{device}/config",
            get(config::show).patch(config::change),
        )
        .route("/api/v1/ledger", get(ledger::fleet))
        .route("/api/v1/dead-letters", get(devices::dead_letters))
        .fallback(async || Problem::not_found("no such path; see /api/v1/devices"))
        .method_not_allowed_fallback(async || {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not allowed here",
            )
                .into_response()
        })
        .layer(from_fn(bounded))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(Extension(Retention(retention)))
        .layer(Extension(changes))
        .with_state(store)
}

/// A time-out and a name for each request.
async fn bounded(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| id.len() <= 64)
        .cloned()
        .unwrap_or_else(|| {
            let id = format!("{:016x}", rand::random::<u64>());
            HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"))
        });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = match tokio::time::timeout(TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            [(header::RETRY_AFTER, "5")],
            "the request took too long; ask for less",
        )
            .into_response(),
    };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The body must say that it is JSON: what a form in a web page sends does not.
fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"));
    match is_json {
        true => Ok(()),
        false => Err(Problem::bad_request("the body must be application/json")),
    }
}

/// The device in a path.
fn device(text: &str) -> Result<DeviceId, Problem> {
    text.parse()
        .map_err(|error| Problem::bad_request(format!("device: {error}")))
}
