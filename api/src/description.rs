//! The OpenAPI description, made from the endpoints: what one takes, answers and asks of its caller,
//! and what every one may answer besides.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use http::Method;
use serde::Serialize;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, Info, Object, OpenApi, Paths, Ref, RefOr, Required, Response,
    ResponseBuilder, Schema, Type,
};
use utoipa::{IntoParams, ToSchema};

use crate::problem::PROBLEM_JSON;
use crate::{Access, Endpoint, Problem, REQUEST_ID};

/// The name of the way in, in the description.
const BEARER: &str = "bearer";

/// The status of an answer without a body.
const NO_CONTENT: u16 = 204;

/// An endpoint of the table, with its description.
#[derive(Clone, Serialize)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// Its method.
    #[serde(serialize_with = "as_text")]
    pub method: Method,
    /// Its path, with names in braces.
    pub path: &'static str,
    /// What it asks of its caller.
    pub access: Access,
    #[serde(skip)]
    operation: Operation,
    #[serde(skip)]
    schemas: Vec<(String, RefOr<Schema>)>,
}

fn as_text<S: serde::Serializer>(method: &Method, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(method.as_str())
}

impl fmt::Debug for Described {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} {} ({})",
            self.method,
            self.path,
            self.access.as_str()
        )
    }
}

impl Described {
    /// Describes an endpoint.
    #[must_use]
    pub fn new<E: Endpoint>() -> Self {
        let mut schemas = E::shapes();
        if E::STATUS != NO_CONTENT {
            schemas.extend(schemas_of::<E::Answer>());
        }
        if E::HAS_BODY {
            schemas.extend(schemas_of::<E::Body>());
        }
        Self {
            name: E::NAME,
            method: E::METHOD,
            path: E::PATH,
            access: E::ACCESS,
            operation: operation::<E>(),
            schemas,
        }
    }

    /// The parameters that stand in its path.
    #[must_use]
    pub fn in_path(&self) -> HashSet<&str> {
        let parameters = self.operation.parameters.iter().flatten();
        parameters
            .filter_map(|of| match of {
                RefOr::T(of) if of.parameter_in == ParameterIn::Path => Some(of.name.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// The description of endpoints.
#[must_use]
pub fn description(table: Vec<Described>) -> OpenApi {
    let mut paths = Paths::new();
    let mut schemas = schemas_of::<Problem>();
    for of in table {
        paths.add_path_operation(of.path, vec![http_method(&of.method)], of.operation);
        schemas.extend(of.schemas);
    }
    let mut info = Info::new("Tideline", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Devices, their readings, commands and configuration. Tokens come from `tideline token issue`; a bridge \
         without keys takes requests from its own machine, without a token."
            .to_owned(),
    );
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    let mut components = Components::new();
    components
        .security_schemes
        .insert(BEARER.to_owned(), SecurityScheme::Http(bearer).into());
    components.schemas.extend(schemas);
    let mut description = OpenApi::new(info, paths);
    description.components = Some(components);
    description
}

/// Adds a status that an endpoint answers besides those that each one may.
pub(crate) fn refuses(operation: &mut Operation, status: u16, text: &str) {
    let responses = &mut operation.responses.responses;
    responses.insert(status.to_string(), RefOr::T(problem(text)));
}

/// Says what an answer of a status holds.
pub(crate) fn answers(operation: &mut Operation, status: u16, text: &str) {
    if let Some(RefOr::T(response)) = operation.responses.responses.get_mut(&status.to_string()) {
        text.clone_into(&mut response.description);
    }
}

/// Adds a header that an answer of a status has.
pub(crate) fn answers_header(operation: &mut Operation, status: u16, name: &str, text: &str) {
    if let Some(RefOr::T(response)) = operation.responses.responses.get_mut(&status.to_string()) {
        response
            .headers
            .insert(name.to_owned(), RefOr::T(header(Some(text))));
    }
}

/// Adds an answer that is another one's, with a status and a reason of its own.
pub(crate) fn answers_too(operation: &mut Operation, status: u16, other: u16, text: &str) {
    let responses = &mut operation.responses.responses;
    if let Some(RefOr::T(of)) = responses.get(&other.to_string()) {
        let mut same = of.clone();
        text.clone_into(&mut same.description);
        responses.insert(status.to_string(), RefOr::T(same));
    }
}

/// Adds a header that a request may have; `shape` narrows its text.
pub(crate) fn takes_header(operation: &mut Operation, name: &str, text: &str, shape: Object) {
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .description(Some(text))
        .required(Required::False)
        .schema(Some(RefOr::T(Schema::Object(shape))))
        .build();
    operation
        .parameters
        .get_or_insert_default()
        .push(RefOr::T(parameter));
}

/// Describes the answer that all went well with, and the media types that it comes as.
pub(crate) fn answers_as(operation: &mut Operation, text: &str, more: &[(&str, RefOr<Schema>)]) {
    for response in operation.responses.responses.values_mut() {
        let RefOr::T(response) = response else {
            continue;
        };
        if response.content.contains_key("application/json") {
            text.clone_into(&mut response.description);
            for (kind, schema) in more {
                let content = Content::new(Some(schema.clone()));
                response
                    .content
                    .insert((*kind).to_owned(), RefOr::T(content));
            }
        }
    }
}

/// Adds a media type that the body may have.
pub(crate) fn takes_as(operation: &mut Operation, kind: &str, schema: RefOr<Schema>) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        let content = Content::new(Some(schema));
        body.content.insert(kind.to_owned(), RefOr::T(content));
    }
}

fn operation<E: Endpoint>() -> Operation {
    let mut parameters = E::Path::into_params(|| Some(ParameterIn::Path));
    parameters.extend(E::Query::into_params(|| Some(ParameterIn::Query)));
    let (summary, more) = texts(E::DOC);
    let mut answer = ResponseBuilder::new();
    if E::STATUS != NO_CONTENT {
        answer = answer.content("application/json", content_of::<E::Answer>());
    }
    let mut operation = OperationBuilder::new()
        .operation_id(Some(E::NAME))
        .tag(E::TAG)
        .summary(Some(summary))
        .description(more)
        .parameters((!parameters.is_empty()).then_some(parameters))
        .response(E::STATUS.to_string(), answer.build())
        .build();
    if E::HAS_BODY {
        let body = RequestBodyBuilder::new()
            .content("application/json", content_of::<E::Body>())
            .required(Some(Required::True))
            .build();
        operation.request_body = Some(body.into());
    }
    E::describe(&mut operation);
    complete(&mut operation, E::ACCESS, E::PATH);
    operation
}

/// What every endpoint may answer, and what it asks.
fn complete(operation: &mut Operation, access: Access, path: &str) {
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
            "500",
            "The bridge or its database needs to be looked at: its log has the cause.",
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
    let responses = &mut operation.responses.responses;
    for (status, text) in common {
        responses
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(problem(text)));
    }
    for response in responses.values_mut() {
        if let RefOr::T(response) = response {
            let named = RefOr::T(header(None));
            response.headers.insert(REQUEST_ID.to_owned(), named);
        }
    }
    operation.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
    let asks: BTreeMap<String, serde_json::Value> =
        BTreeMap::from([("x-access".to_owned(), access.as_str().into())]);
    let extensions = operation.extensions.get_or_insert_with(Extensions::default);
    extensions.merge(Extensions::from_iter(asks));
}

/// The first line, and what stands behind it.
fn texts(doc: &str) -> (String, Option<String>) {
    let lines: Vec<&str> = doc.lines().map(str::trim).collect();
    let text = lines.join("\n");
    let (summary, more) = text.split_once('\n').unwrap_or((&text, ""));
    let more = more.trim();
    (
        summary.trim().to_owned(),
        (!more.is_empty()).then(|| more.to_owned()),
    )
}

fn problem(text: &str) -> Response {
    ResponseBuilder::new()
        .description(text)
        .content(PROBLEM_JSON, content_of::<Problem>())
        .build()
}

fn header(text: Option<&str>) -> Header {
    let mut header = Header::new(Object::with_type(Type::String));
    header.description = text.map(str::to_owned);
    header
}

fn content_of<T: ToSchema>() -> Content {
    Content::new(Some(match has_name::<T>() {
        true => Ref::from_schema_name(T::name()).into(),
        false => T::schema(),
    }))
}

/// Whether a type stands under a name of its own; else it is described where it is used.
fn has_name<T: ToSchema>() -> bool {
    !T::name().is_empty()
}

/// A shape by its name, and those that it is made of.
pub(crate) fn schemas_of<T: ToSchema>() -> Vec<(String, RefOr<Schema>)> {
    let mut schemas = Vec::new();
    T::schemas(&mut schemas);
    if has_name::<T>() {
        schemas.push((T::name().into_owned(), T::schema()));
    }
    schemas
}

fn http_method(method: &Method) -> HttpMethod {
    match *method {
        Method::PUT => HttpMethod::Put,
        Method::POST => HttpMethod::Post,
        Method::DELETE => HttpMethod::Delete,
        Method::PATCH => HttpMethod::Patch,
        _ => HttpMethod::Get,
    }
}
