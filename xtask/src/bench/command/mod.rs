//! How long a command takes to a connected device and back: from the request to the API until the
//! API says that it succeeded, which the database then holds.
//!
//! Real processes, as installed: broker, a bridge on PostgreSQL, agents that are commanded, and
//! beside them simulated devices by the thousand that publish a reading a second each. The
//! reference, taken in turn with the commands, is what cannot be saved: one HTTP request of the
//! same bridge, and one message through the same broker in each direction.

mod reference;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use loadtest::process::{Process, binary};
use loadtest::scratch::Scratch;
use loadtest::stack::{Plan, Stack, device};
use serde_json::{Value, json};
use testkit::port::free_port;

use super::Figure;
use reference::Echo;

/// Devices that publish meanwhile.
const DEVICES: usize = 1_000;

/// Agents that are commanded, in turn.
const AGENTS: usize = 4;

/// Commands that are measured, after a few that are not.
const COMMANDS: usize = 1_000;
const WARM_UP: usize = 50;

/// How often a command is looked at: it cannot be seen to be quicker.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// How long one command may take before the measurement is given up.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// How long everything may take to come up: a thousand certificates and handshakes.
const START_TIME_MAX: Duration = Duration::from_secs(180);

/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(250);

/// Measures with a database on the server of `url`.
pub(crate) fn run(url: &str, mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    let samples = runtime.block_on(async {
        let scratch = Scratch::create(url).await.map_err(failed)?;
        let samples = measure(scratch.url()).await;
        // Whatever came of the measurement, the server goes with the process that started it.
        let _ = scratch.drop_it().await;
        samples
    })?;
    let Samples {
        mut commands,
        mut http,
        mut echoes,
        mut references,
        readings_per_second,
    } = samples;
    let beside = format!("HTTP + MQTT there and back, {DEVICES} devices");
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        emit(Figure::beside(
            format!("command/{name}"),
            quantile(&mut commands, share),
            "ms",
            beside.clone(),
            quantile(&mut references, share),
        ));
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let of = |what: &str| format!("command/reference/{what}/{name}");
        emit(Figure::alone(of("http"), quantile(&mut http, share), "ms"));
        let mqtt = quantile(&mut echoes, share);
        emit(Figure::alone(of("mqtt"), mqtt, "ms"));
    }
    emit(Figure::alone(
        "command/readings_meanwhile",
        readings_per_second,
        "rows/s",
    ));
    Ok(())
}

/// Milliseconds each.
#[derive(Debug, Default)]
struct Samples {
    commands: Vec<f64>,
    http: Vec<f64>,
    echoes: Vec<f64>,
    /// Both together, as they were taken one after the other.
    references: Vec<f64>,
    readings_per_second: f64,
}

async fn measure(database: &str) -> Result<Samples, Failure> {
    let folder = tempfile::tempdir().map_err(failed)?;
    let port = free_port();
    let plan = Plan {
        agents: AGENTS,
        bridges: 1,
        database: Some(database.to_owned()),
    };
    let mut stack = Stack::prepare(folder.path(), &plan, port, |_| port).map_err(failed)?;
    stack.start().map_err(failed)?;
    let api = Api {
        client: reqwest::Client::new(),
        root: stack.api(0).map_err(failed)?,
    };
    tell(&format!("{AGENTS} agents come online"));
    until("the agents are online", async || {
        api.online("device-").await == Some(AGENTS)
    })
    .await?;
    tell(&format!(
        "{DEVICES} devices get certificates and come online"
    ));
    let _load = load(folder.path(), &stack.broker_addr().to_string())?;
    until("the simulated devices are online", async || {
        api.online("load-").await == Some(DEVICES)
    })
    .await?;
    let mut echo = Echo::connect(folder.path(), port).await?;

    let mut samples = Samples::default();
    let (mut began, mut before) = (Instant::now(), 0);
    for number in 0..WARM_UP + COMMANDS {
        if number == WARM_UP {
            (began, before) = (Instant::now(), api.committed().await?);
        }
        if number % 100 == 0 {
            tell(&format!("commands {number} of {}", WARM_UP + COMMANDS));
        }
        let command = api.command(number % AGENTS).await?;
        let http = api.nothing().await?;
        let mqtt = echo.round_trip().await?;
        if number >= WARM_UP {
            samples.commands.push(millis(command));
            samples.http.push(millis(http));
            samples.echoes.push(millis(mqtt));
            samples.references.push(millis(http + mqtt));
        }
    }
    let rows = api.committed().await?.saturating_sub(before);
    samples.readings_per_second = rows as f64 / began.elapsed().as_secs_f64();
    Ok(samples)
}

/// Starts the simulated devices.
fn load(folder: &Path, broker: &str) -> Result<Process, Failure> {
    let mut command = Command::new(binary("loadtest").map_err(failed)?);
    command
        .args(["run", "--json", "--broker", broker, "--certs"])
        .arg(folder.join("certs"))
        .args(["--devices", &DEVICES.to_string()])
        .args(["--rate", "1", "--sensors", "1", "--connect-rate", "250"])
        // Ended before, by being dropped.
        .args(["--for", "1h"]);
    Process::start("loadtest", &mut command, &folder.join("loadtest.log")).map_err(failed)
}

/// The bridge's API.
struct Api {
    client: reqwest::Client,
    root: String,
}

impl Api {
    /// How many devices whose names begin so are online; `None` while nobody answers.
    async fn online(&self, prefix: &str) -> Option<usize> {
        let mut count = 0;
        let mut after = String::new();
        loop {
            let url = format!("{}/api/v1/devices?limit=1000{after}", self.root);
            let answer: Value = self.client.get(url).send().await.ok()?.json().await.ok()?;
            for device in answer["devices"].as_array()? {
                let is_ours = device["device"].as_str()?.starts_with(prefix);
                count += usize::from(is_ours && device["online"] == true);
            }
            match answer["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Some(count),
            }
        }
    }

    /// Readings in the database, by the fleet's ledger.
    async fn committed(&self) -> Result<u64, Failure> {
        let ledger = self.get("/api/v1/ledger").await?;
        ledger["committed"]
            .as_u64()
            .ok_or_else(|| failed(format!("the ledger is {ledger}")))
    }

    /// Has an agent answer a ping, and waits until the API says that it did.
    async fn command(&self, agent: usize) -> Result<Duration, Failure> {
        let list = format!("/api/v1/devices/{}/commands", device(agent));
        let began = Instant::now();
        let request = self
            .client
            .post(format!("{}{list}", self.root))
            .json(&json!({"name": "ping"}));
        let mut answer: Value = request
            .send()
            .await
            .map_err(failed)?
            .json()
            .await
            .map_err(failed)?;
        let Some(id) = answer["id"].as_str().map(str::to_owned) else {
            return Err(failed(format!("the bridge answers {answer}")));
        };
        let path = format!("{list}/{id}");
        while answer["ended"] != true {
            if began.elapsed() > COMMAND_TIME_MAX {
                return Err(failed(format!("a command has no end: {answer}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
            answer = self.get(&path).await?;
        }
        match answer["state"] == "succeeded" {
            true => Ok(began.elapsed()),
            false => Err(failed(format!("a command did not succeed: {answer}"))),
        }
    }

    /// A request that asks the bridge for nothing.
    async fn nothing(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let url = format!("{}/healthz", self.root);
        let answer = self.client.get(url).send().await.map_err(failed)?;
        answer.bytes().await.map_err(failed)?;
        Ok(began.elapsed())
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.root);
        let answer = self.client.get(url).send().await.map_err(failed)?;
        answer.json().await.map_err(failed)
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + START_TIME_MAX;
    while !holds().await {
        if Instant::now() >= deadline {
            return Err(failed(format!("not within {START_TIME_MAX:?}: {what}")));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The sample that this share of all does not exceed.
fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (share * samples.len() as f64).ceil() as usize;
    let at = rank.clamp(1, samples.len().max(1)) - 1;
    samples.get(at).copied().unwrap_or(f64::NAN)
}

fn millis(duration: Duration) -> f64 {
    1_000.0 * duration.as_secs_f64()
}

fn tell(line: &str) {
    eprintln!("command: {line}");
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Class::Network, "measure commands").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let mut samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut samples, 0.5), 50.0);
        assert_eq!(quantile(&mut samples, 0.99), 99.0);
        assert_eq!(quantile(&mut samples, 1.0), 100.0);
        assert_eq!(quantile(&mut [7.0], 0.99), 7.0);
        assert!(quantile(&mut [], 0.5).is_nan());
    }
}
