//! What an endpoint does not describe is refused: a parameter or a body that is passed over would let a
//! caller believe that it counts. Endpoints that take parameters or a body read their own strictly.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Operation, ParameterIn};

use super::problem::Problem;
use super::query::Query;

/// Longest body that is looked at where none is taken: room for what says nothing, and blanks.
const BODY_BYTES_MAX: usize = 64;

/// What one operation takes.
#[derive(Debug)]
pub(super) struct Takes {
    method: Method,
    parameters: bool,
    body: bool,
}

impl Takes {
    /// As its description says.
    pub(super) fn of(method: Method, operation: &Operation) -> Self {
        let mut parameters = operation.parameters.iter().flatten();
        Self {
            method,
            // One that stands elsewhere may be of any kind.
            parameters: parameters.any(|of| match of {
                RefOr::T(of) => of.parameter_in == ParameterIn::Query,
                RefOr::Ref(_) => true,
            }),
            body: operation.request_body.is_some(),
        }
    }
}

/// Stands before the handlers of one path.
pub(super) async fn refuse(
    State(takes): State<Arc<[Takes]>>,
    request: Request,
    next: Next,
) -> Response {
    let takes = takes.iter().find(|of| of.method == *request.method());
    let Some(takes) = takes else {
        return next.run(request).await;
    };
    if !takes.parameters
        && let Err(problem) = Query::parse(request.uri().query(), &[])
    {
        return problem.into_response();
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
        false => Problem::bad_request("body: nothing is taken here").into_response(),
    }
}
