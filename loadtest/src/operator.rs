//! Somebody who sends commands and changes settings through the bridges' APIs while everything
//! breaks, and what must have come of it: nothing ran twice, every command has an outcome that
//! agrees with what ran, and what is desired is in force.
//!
//! Each run of the program `mark` leaves its command's id in a file. A request without an answer
//! may have been heard; the commands that the database has are judged, not those that were asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use api::commands::{
    CancelCommand, CommandBody, Commands, ListCommands, NewCommand, OfDevicesCommand, SendCommand,
};
use api::config::{ChangeDeviceConfig, ConfigBody, ShowDeviceConfig, Wanted};
use api::{Endpoint, Limit, OfDevice, Page, Request};
use daemon::{Class, Failure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use schema::message::CommandId;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant as Timer, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::stack::{Stack, StackError, device};

/// The setting that is changed.
const KEY: &str = "commands.parallel";

/// A bridge that is stopped does not answer: then another one is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause between two requests, at least and at most, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 50..500;

/// How long after it was asked for a command is withdrawn, in milliseconds.
const WITHDRAWN_MS: std::ops::Range<u64> = 0..2_000;

/// Commands of one device that one look returns; an hour of chaos asks for fewer.
const COMMANDS_MAX: usize = 10_000;

/// Somebody at work.
#[derive(Debug)]
pub struct Operator {
    stop: CancellationToken,
    task: JoinHandle<Book>,
}

/// What was asked for.
#[derive(Debug, Default)]
pub struct Book {
    /// Commands whose request was answered, each behind its agent.
    commands: BTreeSet<(usize, String)>,
    /// By agent: the last value, while every request for one was answered.
    settings: BTreeMap<usize, Option<u64>>,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Outcomes {
    /// Commands by their last state.
    pub commands: BTreeMap<String, u64>,
    /// Commands that ran more than once.
    pub ran_twice: u64,
    /// Commands that were asked for and are unknown, or have not ended.
    pub without_outcome: u64,
    /// Outcomes that what ran does not agree with.
    pub disagreeing: u64,
    /// Devices that have another setting than is desired, or where another one is desired than was
    /// asked for last.
    pub settings_astray: u64,
}

impl Operator {
    /// Begins, with as many agents, and bridges at these URLs.
    #[must_use]
    pub fn start(agents: usize, apis: Vec<String>, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut desk = Desk {
                client: client(),
                apis,
                rng: SmallRng::seed_from_u64(seed),
                book: Book::default(),
                withdrawals: BTreeMap::new(),
            };
            stopped.run_until_cancelled(desk.work(agents)).await;
            desk.book
        });
        Self { stop, task }
    }

    /// Stops, and returns what was asked for.
    pub async fn finish(self) -> Book {
        self.stop.cancel();
        self.task.await.unwrap_or_default()
    }
}

struct Desk {
    client: Client,
    apis: Vec<String>,
    rng: SmallRng,
    book: Book,
    /// What is withdrawn when.
    withdrawals: BTreeMap<Timer, Request<CancelCommand>>,
}

impl Desk {
    async fn work(&mut self, agents: usize) {
        loop {
            let next = Timer::now() + Duration::from_millis(self.rng.random_range(PAUSE_MS));
            while let Some((at, cancel)) = self.withdrawals.pop_first() {
                if at > next {
                    self.withdrawals.insert(at, cancel);
                    break;
                }
                sleep_until(at).await;
                // Heard or not: its outcome is judged.
                let _ = self.ask(&cancel).await;
            }
            sleep_until(next).await;
            let agent = self.rng.random_range(0..agents);
            if self.rng.random_bool(0.2) {
                self.set(agent).await;
            } else {
                self.command(agent).await;
            }
        }
    }

    async fn command(&mut self, agent: usize) {
        let ttl_seconds = match self.rng.random_bool(0.2) {
            true => self.rng.random_range(1..=3),
            false => 3_600,
        };
        let send = SendCommand::at(of(agent)).body(NewCommand {
            name: "exec".to_owned(),
            arguments: json!({"name": "mark"}),
            ttl_seconds: Some(ttl_seconds),
            priority: self.rng.random_range(0..3),
        });
        let Some(CommandBody { id, .. }) = self.ask(&send).await else {
            return;
        };
        if self.rng.random_bool(0.2)
            && let Ok(command) = id.parse::<CommandId>()
        {
            let after = Duration::from_millis(self.rng.random_range(WITHDRAWN_MS));
            let device = device(agent);
            let cancel = CancelCommand::at(OfDevicesCommand { device, command });
            self.withdrawals.insert(Timer::now() + after, cancel);
        }
        self.book.commands.insert((agent, id));
    }

    async fn set(&mut self, agent: usize) {
        let value = self.rng.random_range(1..=4u64);
        // Until it is answered, nobody knows which value is the last.
        let known = self.book.settings.insert(agent, None);
        let wanted = Wanted(BTreeMap::from([(KEY.to_owned(), value.into())]));
        let change = ChangeDeviceConfig::at(of(agent)).body(wanted);
        // One that was not answered may still be written after this one.
        if self.ask(&change).await.is_some() && known != Some(None) {
            self.book.settings.insert(agent, Some(value));
        }
    }

    async fn ask<E: Endpoint>(&mut self, request: &Request<E>) -> Option<E::Answer> {
        let api = self.api();
        ask(&self.client, &api, request).await.ok()
    }

    fn api(&mut self) -> String {
        self.apis[self.rng.random_range(0..self.apis.len())].clone()
    }
}

/// Asks an endpoint of the bridge at a URL.
pub(crate) async fn ask<E: Endpoint>(
    client: &Client,
    api: &str,
    request: &Request<E>,
) -> Result<E::Answer, Failure> {
    let failed = |class| Failure::new(class, format!("ask {api} to {}", E::NAME));
    let target = request
        .target()
        .map_err(|error| failed(Class::Data).because(error))?;
    let mut asked = client.request(E::METHOD, format!("{api}{target}"));
    if let Some(body) = &request.body {
        asked = asked.json(body);
    }
    let broken = |error: reqwest::Error| failed(Class::Network).because(error);
    let answer = asked.send().await.map_err(broken)?;
    let answer = answer.error_for_status().map_err(broken)?;
    answer.json().await.map_err(broken)
}

/// A client that gives up on a bridge that does not answer.
fn client() -> Client {
    let client = Client::builder().timeout(ANSWER_TIMEOUT);
    client.build().unwrap_or_default()
}

/// Waits until every command has ended and every setting is in force, or the deadline; then says
/// what came of all that was asked for.
///
/// # Errors
/// When a bridge does not answer.
pub async fn judge(stack: &Stack, book: &Book, deadline: Instant) -> Result<Outcomes, Failure> {
    let read = |error: StackError| Failure::new(Class::Storage, "read settings").because(error);
    let api = stack.api(0).map_err(read)?;
    let client = client();
    let mut outcomes = Outcomes::default();
    for agent in 0..stack.agents.len() {
        let list = ListCommands::at(of(agent)).query(Page {
            limit: Some(Limit::clamped(COMMANDS_MAX)),
            ..Page::default()
        });
        let ended = |found: &Commands| found.commands.iter().all(|known| known.ended);
        let found = until(&client, &api, &list, deadline, ended).await?;
        let marks = fs::read_to_string(stack.marks(agent)).unwrap_or_default();
        outcomes.add(agent, &found.commands, &marks, book);

        let Some(last) = book.settings.get(&agent) else {
            continue;
        };
        let show = ShowDeviceConfig::at(of(agent));
        let settled = |found: &ConfigBody| found.keys.get(KEY).is_some_and(|key| key.in_force);
        let found = until(&client, &api, &show, deadline, settled).await?;
        let desired = found.keys.get(KEY).and_then(|key| key.desired.as_u64());
        // None was written when no request for one was ever heard.
        let in_force = settled(&found) || (desired.is_none() && last.is_none());
        let is_last = last.is_none_or(|last| desired == Some(last));
        outcomes.settings_astray += u64::from(!(in_force && is_last));
    }
    Ok(outcomes)
}

impl Outcomes {
    /// Whether all is as promised.
    #[must_use]
    pub fn are_good(&self) -> bool {
        self.ran_twice == 0
            && self.without_outcome == 0
            && self.disagreeing == 0
            && self.settings_astray == 0
    }

    fn add(&mut self, agent: usize, found: &[CommandBody], marks: &str, book: &Book) {
        let mut ran: BTreeMap<&str, u64> = BTreeMap::new();
        for id in marks.lines() {
            *ran.entry(id).or_default() += 1;
        }
        self.ran_twice += ran.values().filter(|times| **times > 1).count() as u64;
        let mut known = BTreeSet::new();
        for command in found {
            let times = ran.remove(command.id.as_str()).unwrap_or(0);
            let agrees = match command.state.as_str() {
                "succeeded" => times == 1,
                "expired" => times == 0,
                "cancelled" if command.output.contains("while it ran") => true,
                "cancelled" => times == 0,
                // A program that could not be started, or was broken off.
                "failed" | "unknown" => true,
                _ => {
                    self.without_outcome += 1;
                    true
                }
            };
            if !agrees {
                eprintln!("{command:?} ran {times} times");
                self.disagreeing += 1;
            }
            *self.commands.entry(command.state.clone()).or_default() += 1;
            known.insert(&command.id);
        }
        // What ran without being asked for.
        self.disagreeing += ran.len() as u64;
        let asked = book.commands.iter().filter(|(of, _)| *of == agent);
        self.without_outcome += asked.filter(|(_, id)| !known.contains(id)).count() as u64;
    }
}

/// Asks until it holds, or the deadline; returns the last answer.
async fn until<E: Endpoint>(
    client: &Client,
    api: &str,
    request: &Request<E>,
    deadline: Instant,
    holds: impl Fn(&E::Answer) -> bool,
) -> Result<E::Answer, Failure> {
    loop {
        let found = ask(client, api, request).await;
        let late = Instant::now() > deadline;
        if late || found.as_ref().is_ok_and(&holds) {
            return found;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// An agent's device, in a path.
fn of(agent: usize) -> OfDevice {
    OfDevice {
        device: device(agent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(state: &str, output: &str, marks: &str) -> Outcomes {
        let found = CommandBody {
            id: "a".to_owned(),
            state: state.to_owned(),
            output: output.to_owned(),
            ..CommandBody::default()
        };
        let mut outcomes = Outcomes::default();
        outcomes.add(0, &[found], marks, &Book::default());
        outcomes
    }

    #[test]
    fn outcomes_are_held_against_what_ran() {
        for (state, output, marks) in [
            ("succeeded", "", "a\n"),
            ("failed", "", ""),
            ("expired", "", ""),
            ("cancelled", "", ""),
            ("cancelled", "withdrawn while it ran; it was stopped", "a\n"),
            ("unknown", "", "a\n"),
        ] {
            let good = judged(state, output, marks);
            assert!(good.are_good(), "{state} {marks:?}: {good:?}");
        }
        for (state, marks) in [
            ("succeeded", ""),
            ("succeeded", "a\na\n"),
            ("unknown", "a\na\n"),
            ("expired", "a\n"),
            ("cancelled", "a\n"),
            ("running", "a\n"),
            ("unknown", "b\n"),
        ] {
            let bad = judged(state, "", marks);
            assert!(!bad.are_good(), "{state} {marks:?}: {bad:?}");
        }
    }

    #[test]
    fn a_command_that_was_asked_for_and_is_gone_is_noticed() {
        let mut book = Book::default();
        book.commands.insert((1, "a".to_owned()));
        let mut outcomes = Outcomes::default();
        outcomes.add(0, &[], "", &book);
        assert!(outcomes.are_good());
        outcomes.add(1, &[], "", &book);
        assert_eq!(outcomes.without_outcome, 1);
    }
}
