//! Who asks, and whether they may: stands before every endpoint.
//!
//! With keys, each request brings a token. Without, requests are taken from this machine alone:
//! the caller must have reached us by a name of this machine, and no page of another site may have
//! sent it. What is changed, and what is refused, is audited; failed attempts are limited by address.

mod attempts;
mod local;
mod revoked;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{ConnectInfo, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use daemon::Clock as _;
use store::{Store, StoreClock};
use tokio::time::timeout;
use tracing::debug;

use super::problem::Problem;
use crate::audit::{Audit, AuditEntry};
use crate::auth::token::{self, Refused};
use crate::auth::{Access, AuthMeters, KeyFolder, Role};
use attempts::Attempts;
use revoked::Revoked;

/// How long a request waits for the database's time, after this machine slept or its clock was set.
const TIME_PATIENCE: Duration = Duration::from_secs(3);

/// When to come again after that, seconds.
const TIME_AGAIN_SECONDS: u64 = 2;

/// The name of a caller that needs no token.
const LOCAL: &str = "local";

/// Longest text of a path or subject in the audit.
const AUDIT_CHARS_MAX: usize = 256;

/// How long somebody waits who failed too often, seconds.
const AGAIN_SECONDS: u64 = 10;

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// A person's, program's or device's name, by its token.
    pub(crate) name: String,
    /// What it may.
    pub(crate) role: Role,
    /// From where.
    pub(crate) address: IpAddr,
}

/// What decides.
#[derive(Debug)]
pub(crate) struct Guard {
    keys: Option<KeyFolder>,
    revoked: Revoked,
    clock: StoreClock,
    attempts: Attempts,
    audit: Audit,
    meters: AuthMeters,
}

impl Guard {
    /// A guard that asks for tokens of these keys, or without keys for callers of this machine.
    pub(crate) fn new(
        keys: Option<KeyFolder>,
        store: Arc<dyn Store>,
        audit: Audit,
        meters: AuthMeters,
    ) -> Self {
        Self {
            keys,
            clock: store.clock().clone(),
            revoked: Revoked::new(store),
            attempts: Attempts::default(),
            audit,
            meters,
        }
    }

    async fn caller(&self, headers: &HeaderMap, address: IpAddr) -> Result<Caller, Problem> {
        let Some(keys) = &self.keys else {
            local::check(headers)?;
            return Ok(Caller {
                name: LOCAL.to_owned(),
                role: Role::Admin,
                address,
            });
        };
        let refuse = |reason: Reason| Err(self.refused(reason, headers, address));
        let Some(text) = bearer(headers) else {
            return refuse(Reason::Missing);
        };
        let now = self.clock.now_ms() / 1000;
        let claims = match token::verify(text, now, |kid| keys.key(kid)) {
            Ok(claims) => claims,
            Err(refused) => return refuse(Reason::Refused(refused)),
        };
        if self.revoked.contains(&claims).await? {
            return refuse(Reason::Revoked);
        }
        Ok(Caller {
            name: claims.sub,
            role: claims.role,
            address,
        })
    }

    /// Somebody came without a token that counts.
    fn refused(&self, reason: Reason, headers: &HeaderMap, address: IpAddr) -> Problem {
        self.meters.refused(reason.as_str());
        if self.attempts.is_one_too_many(address) {
            let detail = "too many attempts failed from this address";
            return Problem::later(StatusCode::TOO_MANY_REQUESTS, AGAIN_SECONDS, detail);
        }
        let agent = headers.get(header::USER_AGENT);
        let agent = agent
            .and_then(|agent| agent.to_str().ok())
            .unwrap_or_default();
        self.audit.note(AuditEntry {
            at: self.clock.now(),
            actor: String::new(),
            action: "authenticate".to_owned(),
            target: cut(agent),
            address: address.to_string(),
            outcome: reason.as_str().to_owned(),
        });
        debug!(%address, reason = reason.as_str(), "a request was refused");
        let detail = match reason {
            Reason::Missing => {
                "send a token: `Authorization: Bearer …`; `tideline token issue` makes one"
                    .to_owned()
            }
            Reason::Refused(refused) => format!("the token {refused}"),
            Reason::Revoked => "the token was revoked".to_owned(),
        };
        Problem::unauthorized(detail)
    }

    fn note(&self, caller: &Caller, action: String, target: &str, outcome: StatusCode) {
        self.audit.note(AuditEntry {
            at: self.clock.now(),
            actor: cut(&caller.name),
            action,
            target: cut(target),
            address: caller.address.to_string(),
            outcome: outcome.as_u16().to_string(),
        });
    }
}

/// Why a request has no caller.
#[derive(Debug, Clone, Copy)]
enum Reason {
    Missing,
    Refused(Refused),
    Revoked,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Refused(refused) => refused.as_str(),
            Self::Revoked => "revoked",
        }
    }
}

/// Stands before the handlers of one endpoint.
pub(super) async fn gate(
    State(access): State<Access>,
    Extension(guard): Extension<Arc<Guard>>,
    parameters: RawPathParams,
    matched: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let address = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(from)| {
            from.ip()
        });
    // Tokens, ends of commands and whatever else is judged here: not by a clock that nobody knows.
    if timeout(TIME_PATIENCE, guard.clock.known()).await.is_err() {
        let detail = "the database's time is not known now: send it again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Problem::later(status, TIME_AGAIN_SECONDS, detail).into_response();
    }
    let caller = match guard.caller(request.headers(), address).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let device = parameters.iter().find(|(name, _)| *name == "device");
    let device = device.map(|(_, device)| device);
    let action = format!("{} {}", request.method(), matched.as_str());
    let target = request.uri().path().to_owned();
    if !caller.role.may(access, &caller.name, device) {
        guard.note(&caller, action, &target, StatusCode::FORBIDDEN);
        let detail = match caller.role {
            Role::Device => format!("a device's token is good for its own {} alone", caller.name),
            role => format!("role {role} may not {}", access.as_str().replace('_', " ")),
        };
        return Problem::forbidden(detail).into_response();
    }
    // Readings are accounted for by the ledger.
    let is_change = request.method() != Method::GET && access != Access::WriteReadings;
    request.extensions_mut().insert(caller.clone());
    let response = next.run(request).await;
    if is_change {
        guard.note(&caller, action, &target, response.status());
    }
    response
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start_matches(' '))
}

/// The beginning of a text, without what SQL text cannot hold.
fn cut(text: &str) -> String {
    text.chars()
        .take(AUDIT_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_behind_its_scheme() {
        let found = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(found("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(found("bearer  a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(found("Basic a"), None);
        assert_eq!(found("Bearer"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn texts_for_the_audit_are_bounded_and_plain() {
        assert_eq!(cut(&"ü".repeat(300)).chars().count(), AUDIT_CHARS_MAX);
        assert_eq!(cut("a\0b"), "a\u{fffd}b");
    }
}
