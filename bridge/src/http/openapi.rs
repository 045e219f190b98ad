//! Routes with what they ask of their callers, and the description that is made from them: an
//! endpoint cannot be served without either.

use std::collections::BTreeMap;

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use serde::Serialize;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, Info, Object, OpenApi, Ref, RefOr, ResponseBuilder, Schema, Type,
};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::guard::gate;
use super::{REQUEST_ID, Stored};
use crate::auth::Access;
use api::Problem;

/// The name of the way in, in the description.
const BEARER: &str = "bearer";

/// One endpoint, and what it asks of its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Endpoint {
    /// Its method.
    #[serde(serialize_with = "as_text")]
    pub(crate) method: Method,
    /// Its path, with names in braces.
    pub(crate) path: String,
    /// What it asks.
    pub(crate) access: Access,
}

fn as_text<S: serde::Serializer>(method: &Method, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(method.as_str())
}

/// Routes as they are put together.
pub(crate) struct Routes {
    router: OpenApiRouter<Stored>,
    endpoints: Vec<Endpoint>,
}

impl Routes {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            router: OpenApiRouter::new(),
            endpoints: Vec::new(),
        }
    }

    /// Adds what `routes!` made of handlers of one path, which all ask the same.
    pub(crate) fn with(mut self, access: Access, routes: UtoipaMethodRouter<Stored>) -> Self {
        let (schemas, mut paths, methods) = routes;
        for (path, item) in &mut paths.paths {
            for (method, operation) in operations(item) {
                describe(operation, access, path);
                self.endpoints.push(Endpoint {
                    method,
                    path: path.clone(),
                    access,
                });
            }
        }
        let methods = methods.route_layer(from_fn_with_state(access, gate));
        self.router = self.router.routes((schemas, paths, methods));
        self
    }

    /// The router, its description, and the table of its endpoints.
    pub(crate) fn finish(self) -> (Router<Stored>, OpenApi, Vec<Endpoint>) {
        let (router, mut description) = self.router.split_for_parts();
        complete(&mut description);
        (router, description, self.endpoints)
    }
}

/// The operations of a path that are there.
fn operations(item: &mut PathItem) -> Vec<(Method, &mut Operation)> {
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::DELETE, item.delete.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
    .collect()
}

/// What every endpoint may answer, and what it asks.
fn describe(operation: &mut Operation, access: Access, path: &str) {
    let mut common = vec![
        ("400", "The request cannot be understood."),
        ("401", "There is no token, or it is not taken."),
        ("403", "The caller's role may not do this."),
        ("405", "The path knows no such method."),
        (
            "429",
            "There were too many failed attempts from this address.",
        ),
        (
            "503",
            "The database or the way to it is not there; `Retry-After` says when to ask again.",
        ),
        ("504", "The answer took too long: ask for less."),
    ];
    if path.contains('{') {
        common.push(("404", "There is no such thing."));
    }
    if operation.request_body.is_some() {
        common.push(("413", "The body is too large."));
        common.push(("415", "The body is of a wrong kind."));
    }
    for (status, text) in common {
        let known = &mut operation.responses.responses;
        known
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(problem(text)));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let named = Header::new(Object::with_type(Type::String));
            response
                .headers
                .insert(REQUEST_ID.to_owned(), RefOr::T(named));
        }
    }
    operation.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
    let asks: BTreeMap<String, serde_json::Value> =
        BTreeMap::from([("x-access".to_owned(), access.as_str().into())]);
    let extensions = operation.extensions.get_or_insert_with(Extensions::default);
    extensions.merge(Extensions::from_iter(asks));
}

fn problem(text: &str) -> utoipa::openapi::Response {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    ResponseBuilder::new()
        .description(text)
        .content("application/problem+json", content)
        .build()
}

/// What stands once in the description.
fn complete(description: &mut OpenApi) {
    description.info = Info::new("Tideline", env!("CARGO_PKG_VERSION"));
    description.info.description = Some(
        "Devices, their readings, commands and configuration. Tokens come from `tideline token issue`; a bridge \
         without keys takes requests from its own machine, without a token."
            .to_owned(),
    );
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    let components = description.components.get_or_insert_with(Components::new);
    components
        .security_schemes
        .insert(BEARER.to_owned(), SecurityScheme::Http(bearer).into());
    let mut schemas: Vec<(String, RefOr<Schema>)> = Vec::new();
    <Problem as utoipa::ToSchema>::schemas(&mut schemas);
    schemas.push((
        "Problem".to_owned(),
        <Problem as utoipa::PartialSchema>::schema(),
    ));
    components.schemas.extend(schemas);
}
