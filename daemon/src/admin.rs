//! `/metrics`, `/healthz` and `/readyz` of a process.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tracing::info;

use crate::health::Health;
use crate::http;
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

/// Serves these endpoints, or a larger router that holds them, until the lifecycle stops.
pub fn serve(listener: TcpListener, router: Router, lifecycle: &Lifecycle) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "admin endpoints");
    }
    lifecycle.spawn(
        "admin",
        http::serve(listener, router, None, lifecycle.clone()),
    );
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::http::bind;

    /// A process of which one part is asked about, on a real socket.
    struct Served {
        address: SocketAddr,
        lifecycle: Lifecycle,
        health: Health,
    }

    async fn start() -> Served {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.register("tideline_test_readings", "Readings", counter);
        let (lifecycle, health) = (Lifecycle::new(), Health::default());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::new(registry), health.clone());
        serve(listener, router, &lifecycle);
        Served {
            address,
            lifecycle,
            health,
        }
    }

    impl Served {
        async fn get(&self, path: &str) -> String {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn health_is_told_apart_from_readiness() {
        let served = start().await;
        let part = served.health.component("store");
        assert!(served.get("/healthz").await.starts_with("HTTP/1.1 200 "));
        let waiting = served.get("/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503 "), "{waiting}");
        assert!(waiting.contains("starting"), "{waiting}");
        part.ready();
        assert!(served.get("/readyz").await.starts_with("HTTP/1.1 200 "));
        part.broken("gone");
        assert!(served.get("/healthz").await.starts_with("HTTP/1.1 503 "));
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let metrics = start().await.get("/metrics").await;
        assert!(
            metrics.contains("application/openmetrics-text"),
            "{metrics}"
        );
        assert!(
            metrics.contains("tideline_test_readings_total 3"),
            "{metrics}"
        );
        assert!(metrics.contains("# EOF"), "{metrics}");
    }

    #[tokio::test]
    async fn an_open_connection_does_not_keep_a_process_from_stopping() {
        let served = start().await;
        let _idle = TcpStream::connect(served.address).await.unwrap();
        let stopped = served.lifecycle.finish(Duration::from_secs(5)).await;
        assert!(stopped.is_ok(), "{stopped:?}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let served = start().await;
        let error = bind(served.address).await.unwrap_err();
        assert!(error.to_string().contains(&served.address.to_string()));
        assert_eq!(error.exit_code(), 1);
    }
}
