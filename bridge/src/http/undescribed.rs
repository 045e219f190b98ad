//! What an endpoint does not describe is refused: a parameter or a body that is passed over would let a
//! caller believe that it counts. Endpoints that take parameters or a body read their own strictly.

use api::{Endpoint, Nothing};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams as _;
use utoipa::openapi::path::ParameterIn;

use super::extract::wrong;
use super::problem::Problem;

/// Longest body that is looked at where none is taken: room for what says nothing, and blanks.
const BODY_BYTES_MAX: usize = 64;

/// What an endpoint takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takes {
    parameters: bool,
    body: bool,
}

impl Takes {
    /// As it is declared.
    pub(super) fn of<E: Endpoint>() -> Self {
        Self {
            parameters: !E::Query::into_params(|| Some(ParameterIn::Query)).is_empty(),
            body: E::HAS_BODY,
        }
    }
}

/// Stands before the handler of one endpoint.
pub(super) async fn refuse(State(takes): State<Takes>, request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    if !takes.parameters
        && let Err(reason) = api::parameters::from_query::<Nothing>(query)
    {
        return Problem::bad_request(reason).into_response();
    }
    if takes.body {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let is_empty = match to_bytes(body, BODY_BYTES_MAX).await {
        Ok(bytes) => matches!(bytes.trim_ascii(), b"" | b"{}" | b"null"),
        Err(_) => false,
    };
    match is_empty {
        true => next.run(Request::from_parts(parts, Body::empty())).await,
        false => wrong("body", "nothing is taken here").into_response(),
    }
}
