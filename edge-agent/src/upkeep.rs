//! `POST /buffer/compact` beside the admin endpoints: what a person wants done to the buffer of an agent that runs. Only
//! this machine may ask, as for `/config`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Json;
use axum::routing::post;

use crate::buffer::{Buffer, CompactError, Compacted};
use crate::twin::http::{check, is_json};

type Caller = Option<Extension<ConnectInfo<SocketAddr>>>;

/// The route.
pub(crate) fn router(buffer: Buffer) -> Router {
    Router::new()
        .route("/buffer/compact", post(compact))
        .with_state(buffer)
}

async fn compact(
    State(buffer): State<Buffer>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Json<Compacted>, (StatusCode, String)> {
    check(caller, &headers)?;
    // A page in a browser cannot send that.
    if !is_json(&headers) {
        let reason = "the body must be application/json".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    buffer.compact().await.map(Json).map_err(|error| {
        let status = match error {
            CompactError::NoRoom { .. } => StatusCode::INSUFFICIENT_STORAGE,
            CompactError::NotReplaced(_) | CompactError::Buffer(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        (status, error.to_string())
    })
}
