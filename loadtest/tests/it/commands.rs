//! Commands through real processes: every outcome, and P7 while everything is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use loadtest::proxy::{Mode, Proxy};
use loadtest::stack::{Plan, Stack, device};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::port::free_port;
use testkit::wait::{until, until_ok};
use tokio::time::sleep;

/// A broker, a bridge and agents behind links.
pub(crate) struct Fleet {
    pub(crate) stack: Stack,
    pub(crate) links: Vec<Proxy>,
    pub(crate) api: String,
    pub(crate) folder: TempDir,
}

impl Fleet {
    pub(crate) async fn start(agents: usize) -> Self {
        Self::start_on(agents, None).await
    }

    /// With this database instead of a file.
    pub(crate) async fn start_on(agents: usize, database: Option<String>) -> Self {
        Self::start_with(agents, 1, database).await
    }

    pub(crate) async fn start_with(
        agents: usize,
        bridges: usize,
        database: Option<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut links = Vec::new();
        for _ in 0..agents {
            links.push(Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap());
        }
        let plan = Plan {
            agents,
            bridges,
            database,
        };
        let link = |agent: usize| links[agent].address().port();
        let mut stack = Stack::prepare(folder.path(), &plan, port, link).unwrap();
        stack.start().unwrap();
        let fleet = Self {
            api: stack.api(0).unwrap(),
            stack,
            links,
            folder,
        };
        let devices = format!("{}/api/v1/devices", fleet.api);
        until("the bridge answers", async || get(&devices).await.is_some()).await;
        for agent in 0..agents {
            fleet.online(agent).await;
        }
        fleet
    }

    async fn online(&self, agent: usize) {
        let url = format!("{}/api/v1/devices/{}", self.api, device(agent));
        until("the device is online", async || {
            get(&url).await.is_some_and(|found| found["online"] == true)
        })
        .await;
    }

    fn url(&self, agent: usize) -> String {
        format!("{}/api/v1/devices/{}/commands", self.api, device(agent))
    }

    /// Asks for a command, as long as it takes to be heard; returns its URL.
    pub(crate) async fn ask(&self, agent: usize, body: &Value) -> String {
        let client = reqwest::Client::new();
        until_ok("it is asked", async || {
            let sent = client.post(self.url(agent)).json(body).send().await?;
            let path = sent.headers().get("location").cloned();
            assert_eq!(sent.status(), 201, "{:?}", sent.text().await);
            let path = path.unwrap();
            let path = path.to_str().unwrap();
            Ok::<_, reqwest::Error>(format!("{}{path}", self.api))
        })
        .await
    }

    /// Waits for a state.
    pub(crate) async fn state(&self, url: &str, state: &str) -> Value {
        until_ok(state, async || {
            let found = get(url).await.unwrap_or_default();
            match found["state"] == state {
                true => Ok(found),
                false => Err(found),
            }
        })
        .await
    }
}

/// Waits until a command's time to start has passed.
pub(crate) async fn is_over(command: &str) {
    let found = get(command).await.unwrap();
    let expires_at = found["expires_at"].as_str().unwrap().to_owned();
    let expires_at = humantime::parse_rfc3339(&expires_at).unwrap();
    until("its time is over", async || {
        std::time::SystemTime::now() > expires_at
    })
    .await;
}

pub(crate) async fn get(url: &str) -> Option<Value> {
    reqwest::get(url).await.ok()?.json().await.ok()
}

fn mark() -> Value {
    json!({"name": "exec", "arguments": {"name": "mark"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_in_every_way() {
    let mut fleet = Fleet::start(1).await;
    let pinged = fleet.ask(0, &json!({"name": "ping"})).await;
    let pinged = fleet.state(&pinged, "succeeded").await;
    assert_eq!(
        (&pinged["output"], &pinged["percent"]),
        (&json!("pong"), &json!(100))
    );
    let flushed = fleet.ask(0, &json!({"name": "flush"})).await;
    fleet.state(&flushed, "succeeded").await;

    let marked = fleet.ask(0, &mark()).await;
    let marked = fleet.state(&marked, "succeeded").await;
    assert_eq!(marked["output"], "marked");
    let lines = fs::read_to_string(fleet.stack.marks(0)).unwrap();
    assert_eq!(json!(lines.trim()), marked["id"]);

    for wrong in [
        json!({"name": "format-disk"}),
        json!({"name": "exec", "arguments": {"name": "rm"}}),
        json!({"name": "exec", "arguments": [1]}),
    ] {
        let failed = fleet.ask(0, &wrong).await;
        let failed = fleet.state(&failed, "failed").await;
        assert!(!failed["output"].as_str().unwrap().is_empty(), "{failed}");
    }

    // The second waits for the first, and is withdrawn before its turn.
    let first = fleet.ask(0, &mark()).await;
    let second = fleet.ask(0, &mark()).await;
    let client = reqwest::Client::new();
    let cancel = client
        .post(format!("{second}/cancel"))
        .send()
        .await
        .unwrap();
    assert_eq!(cancel.status(), 200);
    fleet.state(&second, "cancelled").await;
    fleet.state(&first, "succeeded").await;

    // A link that is down: withdrawn and expired without a word from the device.
    fleet.links[0].set(Mode::Cut);
    let short = json!({"name": "exec", "arguments": {"name": "mark"}, "ttl_seconds": 1});
    let expired = fleet.ask(0, &short).await;
    let waits = fleet.ask(0, &mark()).await;
    is_over(&expired).await;
    let before = fs::read_to_string(fleet.stack.marks(0)).unwrap();
    fleet.links[0].set(Mode::Pass);
    // The device has the last word: it got it too late, and says so.
    fleet.state(&expired, "expired").await;
    fleet.state(&waits, "succeeded").await;
    let after = fs::read_to_string(fleet.stack.marks(0)).unwrap();
    assert_eq!(after.lines().count(), before.lines().count() + 1);

    // Killed while it runs: what came of it cannot be known, and it does not run again.
    let unlucky = fleet.ask(0, &mark()).await;
    fleet.state(&unlucky, "running").await;
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.agents[0].start().unwrap();
    let unlucky = fleet.state(&unlucky, "unknown").await;
    let id = unlucky["id"].as_str().unwrap();
    let marks = fs::read_to_string(fleet.stack.marks(0)).unwrap();
    assert!(marks.matches(id).count() <= 1, "{marks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_refused_in_other_peoples_names_and_shapes() {
    let fleet = Fleet::start(0).await;
    let client = reqwest::Client::new();
    let url = fleet.url(0);
    let ask = client.post(&url).json(&json!({"name": "ping"}));
    let foreign = ask.header("host", "attacker.example").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
    let form = client
        .post(&url)
        .body("{\"name\":\"ping\"}")
        .send()
        .await
        .unwrap();
    assert_eq!(form.status(), 415);
    let unnamed = client.post(&url).json(&json!({})).send().await.unwrap();
    assert_eq!(unnamed.status(), 400);
    let kind = unnamed.headers()["content-type"].to_str().unwrap();
    assert_eq!(kind, "application/problem+json");
    let nobody = client.post(format!("{url}/1/cancel")).send().await.unwrap();
    assert_eq!(nobody.status(), 400);
    let unknown = format!("{url}/01900000-0000-7000-8000-000000000000");
    assert_eq!(client.get(&unknown).send().await.unwrap().status(), 404);
    let cancel = client
        .post(format!("{unknown}/cancel"))
        .send()
        .await
        .unwrap();
    assert_eq!(cancel.status(), 404);
    let wrong = client.delete(&unknown).send().await.unwrap();
    assert_eq!(wrong.status(), 405);
}

/// P7: whatever is killed, nothing runs twice, and every outcome becomes known.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_twice_whatever_is_killed() {
    let mut fleet = Fleet::start(2).await;
    let mut rng = SmallRng::seed_from_u64(11);
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    let ends = Instant::now() + Duration::from_secs(25);
    while Instant::now() < ends {
        for agent in 0..2 {
            asked.insert(fleet.ask(agent, &mark()).await, agent);
        }
        sleep(Duration::from_millis(rng.random_range(100..600))).await;
        let slot = match rng.random_range(0..5) {
            0 => &mut fleet.stack.broker,
            1 => &mut fleet.stack.bridges[0],
            2 => &mut fleet.stack.agents[0],
            3 => &mut fleet.stack.agents[1],
            _ => {
                let link = &fleet.links[rng.random_range(0..2)];
                link.set(Mode::Cut);
                sleep(Duration::from_millis(rng.random_range(50..1_000))).await;
                link.set(Mode::Pass);
                continue;
            }
        };
        slot.kill().unwrap();
        sleep(Duration::from_millis(rng.random_range(50..500))).await;
        slot.start().unwrap();
    }
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut succeeded = BTreeSet::new();
    for url in asked.keys() {
        let found = until_ok("it ends", async || {
            let found = get(url).await.unwrap_or_default();
            match found["ended"] == true {
                true => Ok(found),
                false => Err(found),
            }
        })
        .await;
        let state = found["state"].as_str().unwrap().to_owned();
        if state == "succeeded" {
            succeeded.insert(found["id"].as_str().unwrap().to_owned());
        }
        *outcomes.entry(state).or_default() += 1;
    }
    eprintln!("{outcomes:?}");
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    for agent in 0..2 {
        let marks = fs::read_to_string(fleet.stack.marks(agent)).unwrap_or_default();
        for id in marks.lines() {
            *ran.entry(id.to_owned()).or_default() += 1;
        }
    }
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
    assert!(succeeded.iter().all(|id| ran.contains_key(id)));
    let known: usize = ["succeeded", "unknown"]
        .iter()
        .filter_map(|state| outcomes.get(*state))
        .sum();
    assert_eq!(known, asked.len(), "{outcomes:?}");
    assert!(succeeded.len() > asked.len() / 4, "{outcomes:?}");
}
