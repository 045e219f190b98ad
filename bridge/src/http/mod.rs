//! The REST API: what the database knows, and what operators have devices do. `/metrics`,
//! `/healthz` and `/readyz` come from the daemon crate and are merged in.
//!
//! ```text
//! request ─► gzip ─► name, time-out, problem details ─► guard (who, may they) ─► handler ─► Store
//! ```
//!
//! Reading order: [`served`] (which handler serves which endpoint; [`api`] declares them, with who may ask) → [`routes`] → [`guard`] → the
//! handlers, a file for each thing → [`extract`] (what they take), [`problem`].

mod alerts;
mod audit;
mod commands;
mod config;
mod conflicts;
mod dead_letters;
mod extract;
mod fan_out;
mod fleet;
mod groups;
mod guard;
mod ledger;
mod problem;
mod readings;
mod routes;
mod sensors;
mod status;
mod telemetry;
mod tokens;
mod undescribed;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use schema::limits::PAYLOAD_BYTES_MAX;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_swagger_ui::SwaggerUi;

use crate::direct::Direct;
use crate::dispatch::Notifier;
use api::REQUEST_ID;
pub(crate) use guard::{Caller, Guard};
use problem::Problem;
use routes::Routes;
pub(crate) use status::Host;
use store::Store;

/// Largest body of a request: one batch, or the largest arguments of a command written as JSON.
const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;

/// How long a request may take: a query that needs longer should ask for less.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest name that a caller may give its request.
const REQUEST_ID_CHARS_MAX: usize = 64;

/// What handlers share.
type Stored = Arc<dyn Store>;
type Shared = State<Stored>;

/// How long readings are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    /// For ever, when there is none.
    pub(crate) keep: Option<Duration>,
    /// Whoever removes them counts them; a database that does so by itself does not.
    pub(crate) is_counted: bool,
}

/// What the API is made of.
#[derive(Debug)]
pub(crate) struct Api {
    /// What it answers from.
    pub(crate) store: Arc<dyn Store>,
    /// How long readings are kept.
    pub(crate) retention: Retention,
    /// Notified when there is something to send.
    pub(crate) notifier: Notifier,
    /// The way in for readings.
    pub(crate) direct: Direct,
    /// Who may ask.
    pub(crate) guard: Guard,
    /// What it tells of the process around it.
    pub(crate) host: Host,
    /// Sites whose pages may ask too.
    pub(crate) cors_origins: Vec<HeaderValue>,
}

impl Api {
    /// The routes: `/api/v1`, its description at `/openapi.json`, and a page for it at `/docs`.
    pub(crate) fn router(self) -> Router {
        let (router, served) = served().finish();
        let described = Arc::new(api::description::description(served));
        let docs = SwaggerUi::new("/docs")
            .config(utoipa_swagger_ui::Config::from("/openapi.json").try_it_out_enabled(true));
        let api = router
            .route(
                "/openapi.json",
                get(async move || Json(Arc::clone(&described))),
            )
            .with_state(self.store)
            .merge(docs)
            .fallback(async || Problem::not_found("no such path; see /docs"))
            .method_not_allowed_fallback(async || {
                let detail = "this method is not known here";
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(Extension(self.retention))
            .layer(Extension(self.notifier))
            .layer(Extension(self.direct))
            .layer(Extension(self.host))
            .layer(Extension(Arc::new(self.guard)))
            .layer(from_fn(bounded))
            .layer(CompressionLayer::new());
        if self.cors_origins.is_empty() {
            return api;
        }
        api.layer(cors(self.cors_origins))
    }
}

/// Every endpoint of the API's table, with its handler.
fn served() -> Routes {
    use api::alerts::{AcknowledgeAlert, ListAlerts, ShowAlert};
    use api::audit::ListAudit;
    use api::commands::{CancelCommand, ListCommands, SendCommand, ShowCommand};
    use api::config::{ChangeDeviceConfig, ListDeviceConfigHistory, ShowDeviceConfig};
    use api::conflicts::ListConflicts;
    use api::dead_letters::{DiscardDeadLetter, ListDeadLetters, RetryDeadLetter, ShowDeadLetter};
    use api::fan_out::{CancelMany, ListDevicesOf, SendToMany, ShowMany};
    use api::fleet::{LabelDevice, ListDevices, ReinstateDevice, RetireDevice, ShowDevice};
    use api::groups::{ChangeGroupConfig, ListGroupConfigHistory, ListGroups, ShowGroupConfig};
    use api::ledger::{AcceptLoss, ShowFleetLedger, ShowLedger};
    use api::readings::SendReadings;
    use api::sensors::ListSensors;
    use api::status::ShowStatus;
    use api::telemetry::{ListReadings, ShowLatest, SumUpReadings};
    use api::tokens::{ListRevokedSubjects, ListRevokedTokens, RevokeSubject, RevokeToken};

    Routes::new()
        .serve(ListAlerts, alerts::list)
        .serve(ShowAlert, alerts::one)
        .serve(AcknowledgeAlert, alerts::acknowledge)
        .serve(ListAudit, audit::list)
        .serve(ListCommands, commands::list)
        .serve(SendCommand, commands::create)
        .serve(ShowCommand, commands::one)
        .serve(CancelCommand, commands::cancel)
        .serve(ShowDeviceConfig, config::show)
        .serve(ChangeDeviceConfig, config::change)
        .serve(ListDeviceConfigHistory, config::history)
        .serve(ListConflicts, conflicts::list)
        .serve(ListDeadLetters, dead_letters::list)
        .serve(ShowDeadLetter, dead_letters::one)
        .serve(RetryDeadLetter, dead_letters::retry)
        .serve(DiscardDeadLetter, dead_letters::discard)
        .serve(SendToMany, fan_out::create)
        .serve(ShowMany, fan_out::one)
        .serve(ListDevicesOf, fan_out::devices)
        .serve(CancelMany, fan_out::cancel)
        .serve(ListDevices, fleet::list)
        .serve(ShowDevice, fleet::one)
        .serve(LabelDevice, fleet::change)
        .serve(RetireDevice, fleet::retire)
        .serve(ReinstateDevice, fleet::reinstate)
        .serve(ListGroups, groups::list)
        .serve(ShowGroupConfig, groups::show)
        .serve(ChangeGroupConfig, groups::change)
        .serve(ListGroupConfigHistory, groups::history)
        .serve(ShowFleetLedger, ledger::fleet)
        .serve(ShowLedger, ledger::device)
        .serve(AcceptLoss, ledger::accept_loss)
        .serve(SendReadings, readings::create)
        .serve(ListSensors, sensors::list)
        .serve(ShowStatus, status::show)
        .serve(ListReadings, telemetry::list)
        .serve(ShowLatest, telemetry::latest)
        .serve(SumUpReadings, telemetry::aggregates)
        .serve(ListRevokedTokens, tokens::revoked)
        .serve(RevokeToken, tokens::revoke)
        .serve(ListRevokedSubjects, tokens::subjects)
        .serve(RevokeSubject, tokens::revoke_subject)
}

fn cors(origins: Vec<HeaderValue>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            HeaderName::from_static(api::IDEMPOTENCY_KEY),
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            HeaderName::from_static(api::NEXT),
            HeaderName::from_static(REQUEST_ID),
        ])
}

/// A time-out and a name for each request, and one shape for what is refused.
async fn bounded(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    request
        .headers_mut()
        .insert(HeaderName::from_static(REQUEST_ID), id.clone());
    let answered = tokio::time::timeout(TIMEOUT, next.run(request)).await;
    let response = answered.unwrap_or_else(|_| {
        use axum::response::IntoResponse;
        let detail = "the request took too long: ask for less";
        Problem::later(StatusCode::GATEWAY_TIMEOUT, 5, detail).into_response()
    });
    let mut response = problem::finished(response, &id).await;
    response
        .headers_mut()
        .insert(HeaderName::from_static(REQUEST_ID), id);
    response
}

/// The caller's name for its request, if it is short and plain, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |id: &&HeaderValue| {
        id.len() <= REQUEST_ID_CHARS_MAX && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(REQUEST_ID).filter(|id| !id.is_empty());
    given.filter(is_plain).cloned().unwrap_or_else(|| {
        let id = format!("{:016x}", rand::random::<u64>());
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"))
    })
}

#[cfg(test)]
mod tests {
    use api::description::Described;

    use super::*;

    #[test]
    fn a_requests_name_is_kept_if_it_is_short_and_plain() {
        let named = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            request_id(&headers)
        };
        let longest = "a".repeat(REQUEST_ID_CHARS_MAX);
        assert_eq!(named(&longest), longest.as_str());
        for other in ["", "a b", "ü", &"a".repeat(REQUEST_ID_CHARS_MAX + 1)] {
            let id = named(other);
            assert!(id != other && id.len() == 16, "{other}: {id:?}");
        }
    }

    #[test]
    fn what_is_served_is_the_apis_table() {
        let names = |endpoints: Vec<Described>| {
            let mut names: Vec<&str> = endpoints.iter().map(|of| of.name).collect();
            names.sort_unstable();
            names
        };
        let (_, served) = served().finish();
        assert_eq!(names(served), names(api::table()));
    }

    #[test]
    fn every_endpoint_is_described_and_asks_something() {
        let table = api::table();
        let description = api::description::description(table.clone());
        let description = serde_json::to_value(description).unwrap();
        for endpoint in &table {
            let method = endpoint.method.as_str().to_lowercase();
            let operation = &description["paths"][endpoint.path][method];
            assert_eq!(
                operation["x-access"],
                endpoint.access.as_str(),
                "{endpoint:?}"
            );
            for status in ["400", "401", "403", "503"] {
                assert!(operation["responses"].get(status).is_some(), "{endpoint:?}");
            }
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{endpoint:?} says what it does");
        }
    }
}
