//! The bridge's REST API, as the commands of this binary ask it.

use std::time::Duration;

use clap::Args;
use daemon::{Class, Failure};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// How long the bridge may take to answer: verifying a ledger reads every row.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the bridge is.
#[derive(Debug, Args)]
pub(crate) struct Address {
    /// The bridge's address
    #[arg(
        long,
        value_name = "URL",
        env = "TIDELINE_API",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
}

/// A client of one bridge.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    root: String,
}

impl Api {
    /// A client; nothing is asked yet.
    pub(crate) fn of(address: &Address) -> Result<Self, Failure> {
        let client = Client::builder()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| Failure::new(Class::Network, "make an HTTP client").because(error))?;
        Ok(Self {
            client,
            root: address.api.trim_end_matches('/').to_owned(),
        })
    }

    /// Asks for what is at a path.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.answer(path, self.client.get(self.url(path))).await
    }

    /// Posts a body, or none.
    pub(crate) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let request = self.client.post(self.url(path));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.answer(path, request).await
    }

    /// Changes what a body names.
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.client.patch(self.url(path)).json(body);
        self.answer(path, request).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.root)
    }

    async fn answer(&self, path: &str, request: RequestBuilder) -> Result<Value, Failure> {
        let url = self.url(path);
        let failed = |error: reqwest::Error| {
            Failure::new(Class::Network, format!("ask the bridge at {url}"))
                .because(error.without_url())
                .help("start it (`tideline up`), or say where it is with --api")
        };
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let detail = body["detail"].as_str().unwrap_or_default().to_owned();
        Err(Failure::new(Class::Data, format!("use {url}")).because(format!("{status}: {detail}")))
    }
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
