//! `status`: gets the status of the agent that runs on this machine; when none does, says what its buffer holds.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use clap::Args;
use daemon::{Class, Failure, say, stdout};
use schema::message::ClockState;
use serde_json::json;

use super::buffer::described;
use super::{SettingsFrom, for_terminal};
use crate::buffer::{inspect, is_in_use};
use crate::config::Settings;
use crate::source::SourceState;
use crate::status::Status;

/// How long a running agent may take to answer.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to compact its buffer: a large one on a slow card.
pub(super) const COMPACT_TIMEOUT: Duration = Duration::from_secs(600);

// Which agent is asked. (A doc comment would become the help of each command.)
#[derive(Debug, Args)]
pub(super) struct Asked {
    #[command(flatten)]
    from: SettingsFrom,
    /// The agent's admin address, instead of the settings file's
    #[arg(long)]
    http: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    asked: Asked,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Exit with 1 also where the agent runs and something is wrong
    #[arg(long)]
    check: bool,
}

/// What an agent answers.
pub(super) enum Answer {
    Status(Box<Status>),
    /// It has not started yet, for this reason.
    Starting(String),
}

/// Prints the status of the agent at the admin address.
pub(super) async fn status(options: &Options) -> Result<(), Failure> {
    let address = options.asked.address()?;
    let status = match ask(address).await {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::Starting(reason)) => {
            let what = format!("ask the agent at {address}: it has not started yet");
            return Err(Failure::new(Class::Storage, what).because(io::Error::other(reason)));
        }
        Err(failure) => {
            if options.asked.http.is_none() {
                show_buffer(options, &failure).await;
            }
            return Err(failure);
        }
    };
    if options.json {
        let text = serde_json::to_string(&status)
            .map_err(|error| Failure::new(Class::Data, "print the status").because(error))?;
        say!("{text}");
    } else {
        stdout::print_bytes(for_terminal(&status.to_string()).as_bytes());
    }
    let wrong = wrong_with(&status);
    if options.check && !wrong.is_empty() {
        let failure = Failure::new(Class::Network, "find the agent in good health");
        return Err(failure
            .because(io::Error::other(wrong.join("; ")))
            .help("edge-agent doctor looks for the cause"));
    }
    Ok(())
}

impl Asked {
    /// Where the agent answers.
    pub(super) fn address(&self) -> Result<SocketAddr, Failure> {
        match self.http {
            Some(address) => Ok(address),
            None => Settings::load_admin(&self.from.given())
                .map_err(|failure| failure.help("--http says where the agent answers")),
        }
    }
}

/// A client that speaks to this machine.
pub(super) fn client(timeout: Duration) -> reqwest::Client {
    let client = reqwest::Client::builder().timeout(timeout).no_proxy();
    // Without a TLS of its own there is nothing in it that could fail.
    client.build().unwrap_or_default()
}

/// Asks the agent at an admin address.
pub(super) async fn ask(address: SocketAddr) -> Result<Answer, Failure> {
    let request = async {
        let answer = client(STATUS_TIMEOUT)
            .get(format!("http://{address}/status"))
            .send()
            .await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return answer.text().await.map(Answer::Starting);
        }
        let status = answer.error_for_status()?.json::<Status>().await?;
        Ok(Answer::Status(Box::new(status)))
    };
    request.await.map_err(|error: reqwest::Error| {
        let help = match error.is_connect() {
            true => {
                "is the agent running? start it with `edge-agent run`, or give its [admin] http address with --http; \
                 `edge-agent doctor` says what keeps it from starting"
            }
            false => "is this the agent's [admin] http address? another program may have it",
        };
        Failure::new(Class::Network, format!("ask the agent at {address}"))
            .because(error)
            .help(help)
    })
}

/// What is wrong, of which an operator should know.
pub(super) fn wrong_with(status: &Status) -> Vec<String> {
    let mut wrong = Vec::new();
    if !status.connected {
        wrong.push("not connected".to_owned());
    }
    if status.storage.trouble.is_some() {
        wrong.push("the buffer fails".to_owned());
    }
    if status.room.is_some_and(|room| room.is_full()) {
        wrong.push("the buffer is full".to_owned());
    }
    if status.clock.state == ClockState::Unverified {
        wrong.push("the time is not known".to_owned());
    }
    if status.certificate.is_some_and(|own| !own.is_valid) {
        wrong.push("the certificate is not valid".to_owned());
    }
    for (name, source) in &status.sources {
        if matches!(source.state, SourceState::Failing | SourceState::Stalled) {
            wrong.push(format!("source {name} is {}", source.state.as_str()));
        }
    }
    wrong
}

/// Prints what the buffer holds of an agent that does not answer.
async fn show_buffer(options: &Options, failure: &Failure) {
    let Ok(path) = Settings::buffer_path(&options.asked.from.given()) else {
        return;
    };
    let in_use = is_in_use(&path);
    let found = inspect(&path, None).await;
    if options.json {
        let (buffer, error) = match &found {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(error.to_string())),
        };
        say!(
            "{}",
            json!({
                "running": in_use,
                "error": failure.to_string(),
                "buffer": buffer,
                "buffer_error": error,
            })
        );
        return;
    }
    say!(
        "{}",
        match in_use {
            Some(true) => "agent           has its buffer and does not answer at its admin address",
            Some(false) => "agent           does not run",
            None => "agent           does not answer",
        }
    );
    match found {
        Ok(found) => stdout::print_bytes(for_terminal(&described(&found)).as_bytes()),
        Err(error) => say!("buffer          {error}"),
    }
}
