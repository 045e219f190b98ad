//! What handlers take: the parts of a request, read strictly, each with the problem that a caller is told.

use std::convert::Infallible;
use std::fmt::Display;

use api::{OfDevice, Parameters};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use schema::DeviceId;
use schema::time::ReceivedAt;
use serde::de::DeserializeOwned;

use super::Stored;
use super::problem::Problem;

/// What the path names.
#[derive(Debug)]
pub(super) struct Of<T>(pub(super) T);

/// The device that the path names.
#[derive(Debug)]
pub(super) struct Device(pub(super) DeviceId);

/// What stands behind the question mark.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

/// A body, of JSON. It must say so: what a form in a web page sends does not.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

/// The database's time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now(pub(super) ReceivedAt);

impl<T: Parameters, S: Send + Sync> FromRequestParts<S> for Of<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let named = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(IntoResponse::into_response)?;
        let read = api::parameters::from_pairs(named.iter());
        read.map(Self)
            .map_err(|reason| Problem::bad_request(reason).into_response())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Device {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let Of(OfDevice { device }) = Of::from_request_parts(parts, state).await?;
        Ok(Self(device))
    }
}

impl<T: Parameters, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let read = api::parameters::from_query(query);
        read.map(Self).map_err(Problem::bad_request)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let is_json = media_type(request.headers()) == Some("application/json");
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(IntoResponse::into_response)?;
        if !is_json {
            let detail = "the body must be application/json";
            return Err(Problem::unsupported_media_type(detail).into_response());
        }
        let read = serde_json::from_slice(&bytes);
        read.map(Self)
            .map_err(|error| wrong("body", error).into_response())
    }
}

impl FromRequestParts<Stored> for Now {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, store: &Stored) -> Result<Self, Infallible> {
        Ok(Self(store.clock().now()))
    }
}

/// What a body is, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    kind.split(';').next().map(str::trim)
}

/// What is wrong with a named part of a request.
pub(super) fn wrong(name: &str, reason: impl Display) -> Problem {
    Problem::bad_request(format!("{name}: {reason}"))
}

/// A named part of a request, parsed, if it is there.
pub(super) fn parsed<T, E: Display>(
    name: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Problem> {
    let parsed = text.map(parse).transpose();
    parsed.map_err(|reason| wrong(name, reason))
}

/// Where the page behind this one begins: a full one may be followed by another.
pub(super) fn next<T>(
    found: &[T],
    limit: usize,
    place: impl FnOnce(&T) -> String,
) -> Option<String> {
    found.last().filter(|_| found.len() >= limit).map(place)
}
