//! The bridge's REST API, as the commands of this binary ask it: where the bridge is, who asks,
//! and what a refusal means for a person.

mod answer;
mod pages;
mod transport;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use api::commands::SendCommand;
use api::{Endpoint, Request};
use clap::Args;
use daemon::{Class, Failure};
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
};
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep};

pub(crate) use answer::Answered;
pub(crate) use pages::Pages;
use transport::{Answer, Ask, Root, Transport, TransportError};

/// Holds the token itself.
const TOKEN_VARIABLE: &str = "TIDELINE_TOKEN";

/// Longest file that is read as a token.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// How long whoever watches something waits for a bridge that is gone: it may be starting again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names a request, so that the same one again is not a second one.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(api::IDEMPOTENCY_KEY);

/// Where a bridge describes its API.
const DESCRIPTION: &str = "/openapi.json";

/// The pause before such a bridge is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where the bridge is, who asks, and how its answers are printed. Declared here once, and taken at
/// each place of a command line: [`crate::cli`].
#[derive(Debug, Args)]
#[command(next_help_heading = "Bridge")]
pub(crate) struct Reach {
    /// The bridge's address, http or https
    #[arg(
        long,
        value_name = "URL",
        env = "TIDELINE_API",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
    /// File that holds the token to show; without it, the token in TIDELINE_TOKEN
    #[arg(long, value_name = "FILE", env = "TIDELINE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificate of the authority that an https bridge's certificate comes from, PEM
    #[arg(long, value_name = "FILE", env = "TIDELINE_CA")]
    ca: Option<PathBuf>,
    /// Print the bridge's answer as JSON; a list as one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// A client of one bridge.
#[derive(Debug)]
pub(crate) struct Api {
    transport: Transport,
    token: Option<HeaderValue>,
    root: String,
}

/// An answer that is no JSON, or whose headers count.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Whole {
    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Api {
    /// A client; nothing is asked yet.
    pub(crate) fn of(reach: &Reach) -> Result<Self, Failure> {
        let root = Root::parse(&reach.api).map_err(|reason| {
            Failure::new(Class::Configuration, format!("use --api {}", reach.api)).because(reason)
        })?;
        let tls = match (root.is_encrypted(), &reach.ca) {
            (false, _) => None,
            (true, Some(ca)) => Some(certs::tls::client_config_without_certificate(ca)?),
            (true, None) => {
                return Err(
                    Failure::new(Class::Configuration, format!("trust {}", reach.api)).help(
                        "give the authority that its certificate comes from with --ca, as \
                         tideline-data/certs/ca.pem, or the system's own \
                         /etc/ssl/certs/ca-certificates.crt",
                    ),
                );
            }
        };
        let token = token(reach)?;
        if token.is_some() && root.is_open_to_others() {
            eprintln!(
                "warning: the token travels unencrypted to {}: use https",
                reach.api
            );
        }
        Ok(Self {
            transport: Transport::new(root, tls),
            token,
            root: reach.api.trim_end_matches('/').to_owned(),
        })
    }

    /// Asks an endpoint.
    pub(crate) async fn ask<E: Endpoint>(
        &mut self,
        request: &Request<E>,
    ) -> Result<Answered<E::Answer>, Failure> {
        let call = Call::of(request)?;
        Answered::of(&self.call(&call).await?)
    }

    /// As [`Self::ask`]; when the bridge is gone for a moment, or asks to be asked later, it is
    /// asked again for a while.
    pub(crate) async fn ask_patiently<E: Endpoint>(
        &mut self,
        request: &Request<E>,
    ) -> Result<Answered<E::Answer>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask(request).await {
                Err(failure)
                    if matches!(failure.class(), Class::Network | Class::Overload)
                        && Instant::now() < deadline =>
                {
                    sleep(AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Asks an endpoint for its answer in another of its forms.
    pub(crate) async fn ask_for<E: Endpoint>(
        &mut self,
        request: &Request<E>,
        kind: &'static str,
    ) -> Result<Whole, Failure> {
        let accept = HeaderValue::from_static(kind);
        self.call(&Call::of(request)?.with(ACCEPT, accept)).await
    }

    /// Asks for a change; with a tag, only if nobody has changed it since.
    pub(crate) async fn ask_if<E: Endpoint>(
        &mut self,
        request: &Request<E>,
        tag: Option<&str>,
    ) -> Result<Answered<E::Answer>, Failure> {
        let mut call = Call::of(request)?;
        if let Some(tag) = tag {
            let quoted = format!("\"{}\"", tag.trim_matches('"'));
            let value = HeaderValue::from_str(&quoted).map_err(|error| {
                Failure::new(Class::Configuration, format!("use --if-match {tag}")).because(error)
            })?;
            call = call.with(IF_MATCH, value);
        }
        Answered::of(&self.call(&call).await?)
    }

    /// Asks for what makes something, once: the request has a name of its own. When its answer is lost,
    /// or says that it may have been done (5xx), the same one is sent again for a while, if the bridge
    /// knows such names: one of 0.1 would do it twice.
    pub(crate) async fn ask_once<E: Endpoint>(
        &mut self,
        request: &Request<E>,
    ) -> Result<Answered<E::Answer>, Failure> {
        let key = format!("{:032x}", rand::random::<u128>());
        let key = HeaderValue::from_str(&key)
            .map_err(|error| Failure::new(Class::Data, "name the request").because(error))?;
        let call = Call::of(request)?.with(IDEMPOTENCY_KEY, key);
        // Asked before: who takes the request may be gone when it is to be repeated.
        let mut knows_keys = self.knows_keys().await.unwrap_or(false);
        let deadline = Instant::now() + PATIENCE;
        let mut was_taken = false;
        loop {
            let Unanswered { failure, end } = match self.try_calling(&call).await {
                Ok(answer) => return Answered::of(&answer),
                Err(unanswered) => unanswered,
            };
            let is_open = match end {
                End::Refused => false,
                // A bridge that took it may be starting again.
                End::Unreachable => was_taken,
                End::Unknown => true,
            };
            if !is_open {
                return Err(failure);
            }
            if knows_keys {
                if !was_taken {
                    eprintln!("warning: {failure}: the same request is sent again");
                }
                was_taken = true;
                // Behind a balancer it may come to another bridge, of another version.
                knows_keys = self.next_knows_keys(deadline).await;
            }
            if !knows_keys {
                return Err(failure.help(
                    "it may have been done all the same: see what is there (`tideline command list`) \
                     before it is sent again",
                ));
            }
        }
    }

    /// Waits a moment, and for a bridge that answers. Whether it knows the names of requests; what is asked
    /// next goes over the same connection while it stands, and so to the same bridge, unless a balancer deals
    /// out single requests. `false` when the time is up.
    async fn next_knows_keys(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            sleep(AGAIN).await;
            if let Some(knows) = self.knows_keys().await {
                return knows;
            }
        }
        false
    }

    /// Whether the bridge does not do a request twice that comes again under its name: its own
    /// description says so; `None` where that cannot be had.
    async fn knows_keys(&mut self) -> Option<bool> {
        let call = Call::new(Method::GET, DESCRIPTION.to_owned(), None);
        let description = self.call(&call).await.ok()?;
        let description: Value = serde_json::from_slice(&description.body).ok()?;
        let mut parameters = description["paths"][SendCommand::PATH]["post"]["parameters"]
            .as_array()
            .into_iter()
            .flatten();
        Some(parameters.any(|parameter| parameter["name"] == IDEMPOTENCY_KEY.as_str()))
    }

    async fn call(&mut self, call: &Call) -> Result<Whole, Failure> {
        let answered = self.try_calling(call).await;
        answered.map_err(|unanswered| unanswered.failure)
    }

    async fn try_calling(&mut self, call: &Call) -> Result<Whole, Unanswered> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        if call.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &call.headers {
            headers.insert(name, value.clone());
        }
        let ask = Ask {
            method: call.method.clone(),
            path: call.target.clone(),
            headers,
            body: call.body.clone().unwrap_or_default(),
        };
        let url = format!("{}{}", self.root, call.target);
        let answer = self.transport.ask(&ask).await;
        let answer = answer.map_err(|error| Unanswered {
            end: End::of(&error),
            failure: unreachable(&url, error),
        })?;
        if answer.status.is_success() {
            return Ok(Whole {
                headers: answer.headers,
                body: answer.body,
            });
        }
        let end = match answer.status.is_server_error() {
            true => End::Unknown,
            false => End::Refused,
        };
        let failure = self.refusal(&url, &answer);
        Err(Unanswered { failure, end })
    }

    /// What a status means for whoever typed the command.
    fn refusal(&self, url: &str, answer: &Answer) -> Failure {
        let status = answer.status;
        let reason = format!("{status}: {}", detail(&answer.body));
        let failed = |class| Failure::new(class, format!("use {url}")).because(reason.clone());
        match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => failed(Class::Authentication).help(
                "show a token with --token-file, or in TIDELINE_TOKEN; `tideline token issue` makes one",
            ),
            StatusCode::UNAUTHORIZED => failed(Class::Authentication)
                .help("look at the token with `tideline token inspect`, or get a new one"),
            StatusCode::FORBIDDEN => failed(Class::Authentication),
            StatusCode::PRECONDITION_FAILED => failed(Class::Conflict),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                failed(Class::Overload)
            }
            _ => failed(Class::Data),
        }
    }
}

/// A request as it is sent: by its own bytes, so that the same can be sent again.
#[derive(Debug)]
struct Call {
    method: Method,
    target: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
}

impl Call {
    fn new(method: Method, target: String, body: Option<Bytes>) -> Self {
        Self {
            method,
            target,
            headers: Vec::new(),
            body,
        }
    }

    fn of<E: Endpoint>(request: &Request<E>) -> Result<Self, Failure> {
        let written = |error| Failure::new(Class::Data, format!("ask {}", E::NAME)).because(error);
        let target = request.target().map_err(written)?;
        let body = request.json().map_err(written)?;
        Ok(Self::new(E::METHOD, target, body.map(Bytes::from)))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// A request that did not do as it was to, as far as is known.
struct Unanswered {
    failure: Failure,
    end: End,
}

/// What is known of a request that failed.
enum End {
    /// It was not done, and never will be.
    Refused,
    /// It did not arrive.
    Unreachable,
    /// It may have been done.
    Unknown,
}

impl End {
    fn of(error: &TransportError) -> Self {
        match error {
            TransportError::Connect(_) | TransportError::Tls(_) => Self::Unreachable,
            TransportError::Broken(_) | TransportError::Late(_) | TransportError::Cut => {
                Self::Unknown
            }
            TransportError::TooLong | TransportError::Path(_) => Self::Refused,
        }
    }
}

/// The words of a refusal: those of its problem details, or its text.
fn detail(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let said = json
        .as_ref()
        .and_then(|problem| problem["detail"].as_str().or(problem["title"].as_str()));
    let text = match said {
        Some(said) => said.to_owned(),
        None => String::from_utf8_lossy(body).chars().take(200).collect(),
    };
    crate::output::clean(&text)
}

fn unreachable(url: &str, error: TransportError) -> Failure {
    let help = match &error {
        TransportError::Tls(_) => {
            "--ca must be the authority of its certificate, which must hold the host of --api"
        }
        TransportError::Connect(_) => "start it (`tideline up`), or say where it is with --api",
        TransportError::Broken(_) | TransportError::Cut => {
            "see that --api leads to a bridge, by https where it wants that; its log may say more"
        }
        TransportError::Late(_) | TransportError::TooLong | TransportError::Path(_) => {
            "see that --api leads to a bridge, or ask for less"
        }
    };
    Failure::new(Class::Network, format!("ask the bridge at {url}"))
        .because(error)
        .help(help)
}

/// The token to show, as its header says it.
fn token(reach: &Reach) -> Result<Option<HeaderValue>, Failure> {
    let (place, text) = match &reach.token_file {
        Some(file) => {
            let place = format!("the token in {}", file.display());
            let text = fs::read_to_string(file).map_err(|error| {
                Failure::new(Class::Configuration, format!("read {place}")).because(error)
            })?;
            (place, text)
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) if !text.trim().is_empty() => (format!("the token in {TOKEN_VARIABLE}"), text),
            _ => return Ok(None),
        },
    };
    let text = text.trim();
    let wrong = |reason: &str| {
        Failure::new(Class::Configuration, format!("use {place}"))
            .because(reason.to_owned())
            .help("a token is one line, as `tideline token issue` prints it")
    };
    if text.is_empty() || text.len() > TOKEN_BYTES_MAX || text.contains(char::is_whitespace) {
        return Err(wrong("it is no token"));
    }
    let mut value =
        HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| wrong("it is no token"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// JSON on the command line.
pub(crate) fn json_of(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))
}

/// The failure of an answer that is not what it should be.
pub(crate) fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(Class::Data, "understand the bridge's answer")
        .because(error)
        .help("bridge and `tideline` should be of the same version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_bridges_words() {
        let problem = br#"{"type":"x","title":"No","status":400,"detail":"limit: too much"}"#;
        assert_eq!(detail(problem), "limit: too much");
        assert_eq!(detail(br#"{"title":"No"}"#), "No");
        assert_eq!(detail(b"Bad \x1b[31mGateway"), "Bad \\u{1b}[31mGateway");
        assert_eq!(detail(&[b'x'; 1000]).len(), 200);
    }
}
