//! `/metrics`, `/healthz` and `/readyz` of a process.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::failure::{Class, Failure};
use crate::health::Health;
use crate::lifecycle::Lifecycle;

/// The content type of OpenMetrics text, which prometheus-client writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Admin {
    registry: Arc<Registry>,
    health: Health,
}

/// The three endpoints, to serve alone or merged into a larger router.
pub fn router(registry: Arc<Registry>, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Admin { registry, health })
}

/// Binds an HTTP address; port 0 takes a free one.
///
/// # Errors
/// A network [`Failure`] that names the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(Class::Network, format!("listen for HTTP on {address}"))
            .because(error)
            .help("choose a free address of this machine, or port 0 for any free port")
    })
}

/// Serves `router` until the lifecycle stops; requests in hand are answered first.
///
/// # Errors
/// A network [`Failure`] when the listener breaks.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    lifecycle: Lifecycle,
) -> Result<(), Failure> {
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { lifecycle.stopping().await })
        .await
        .map_err(|error| Failure::new(Class::Network, "serve HTTP").because(error))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn healthz(State(admin): State<Admin>) -> Response {
    answer(admin.health.is_alive(), &admin.health)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    answer(admin.health.is_ready(), &admin.health)
}

fn answer(good: bool, health: &Health) -> Response {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health.states())).into_response()
}
