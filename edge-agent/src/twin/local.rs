//! Settings changed on the device itself, by whoever may write its files or is on this machine:
//! through the agent when it runs, in the buffer's file when it does not.
//!
//! The buffer's lock decides which: a file that can be opened belongs to no agent.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use daemon::{Class, Clock, Failure, SystemClock};
use schema::setting::Setting;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::document::{Document, Key};
use crate::Settings;
use crate::buffer::{Buffer, BufferError, Origin};

/// How long an agent may take to answer, and how long one that starts or stops is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before another request to an agent that has the file and does not listen yet.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The settings of this device that somebody has set, by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalConfig {
    /// Each key that is set. For the others the settings file holds.
    pub keys: BTreeMap<String, LocalKey>,
}

/// A key that is set on this device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalKey {
    /// The value; `null` when the settings file's holds.
    pub value: Value,
    /// Where it was set: `bridge` or `device`.
    pub set_by: Origin,
    /// When it was set, by the clock of whoever set it, RFC 3339.
    pub set_at: String,
    /// Whether it is in force; not known while no agent runs.
    pub in_force: Option<bool>,
    /// Why it is not in force.
    pub failure: Option<String>,
}

impl LocalConfig {
    /// The settings of a document; `applied` when an agent has applied it.
    pub(crate) fn of(document: &Document, applied: bool) -> Self {
        let keys = document.keys().map(|key| {
            let Key {
                entry,
                origin,
                failure,
            } = key;
            let shown = LocalKey {
                value: serde_json::from_str(&entry.value).unwrap_or_default(),
                set_by: *origin,
                set_at: rfc3339(entry.hlc.millis()),
                in_force: applied.then_some(failure.is_none()),
                failure: failure.clone(),
            };
            (entry.key.clone(), shown)
        });
        Self {
            keys: keys.collect(),
        }
    }
}

/// Every key that agents know, and others that somebody has set.
impl fmt::Display for LocalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<34} {:<12} {:<8} SET AT", "KEY", "VALUE", "SET BY")?;
        let others = self.keys.keys().map(String::as_str);
        let all: std::collections::BTreeSet<&str> = others.chain(Setting::KEYS).collect();
        for name in all {
            let Some(key) = self.keys.get(name) else {
                writeln!(f, "{name:<34} {:<12} file", "-")?;
                continue;
            };
            let by = match key.set_by {
                Origin::Bridge => "bridge",
                Origin::Device => "device",
            };
            let value = key.value.to_string();
            write!(f, "{name:<34} {value:<12} {by:<8} {}", key.set_at)?;
            match (&key.failure, key.in_force) {
                (Some(failure), _) => writeln!(f, "  not in force: {failure}")?,
                (None, None) => writeln!(f, "  in force when the agent starts")?,
                (None, Some(_)) => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Sets keys, and returns what holds then. `null` takes a key back.
///
/// # Errors
/// A [`Failure`]: of class configuration when a key or value is wrong.
pub async fn change(
    settings: &Settings,
    changes: &BTreeMap<String, Value>,
) -> Result<LocalConfig, Failure> {
    for (key, value) in changes {
        Setting::check(key, &value.to_string()).map_err(|error| {
            Failure::new(Class::Configuration, format!("set {key}"))
                .because(format!("it {error}"))
                .help("edge-agent config keys lists the keys and what they may be")
        })?;
    }
    with(settings, async |place| match place {
        Place::File(buffer) => change_file(settings, &buffer, changes).await,
        Place::Agent => ask(settings, Some(changes)).await,
    })
    .await
}

/// Returns what is set.
///
/// # Errors
/// A [`Failure`].
pub async fn show(settings: &Settings) -> Result<LocalConfig, Failure> {
    if !settings.agent.buffer.path.exists() {
        return Ok(LocalConfig::default());
    }
    with(settings, async |place| match place {
        Place::File(buffer) => {
            let kept = buffer.config().await.map_err(in_file)?;
            Ok(LocalConfig::of(&Document::restore(kept), false))
        }
        Place::Agent => ask(settings, None).await,
    })
    .await
}

/// Where the settings can be read and changed.
enum Place {
    /// In the buffer's file, which no agent has open.
    File(Buffer),
    /// Through the agent that has the file open.
    Agent,
}

/// Runs `act` on the file or through the agent, whichever can be reached, and closes the file.
async fn with(
    settings: &Settings,
    act: impl AsyncFn(Place) -> Result<LocalConfig, Failure>,
) -> Result<LocalConfig, Failure> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        match Buffer::open(settings.agent.buffer.clone(), clock(settings)).await {
            Ok(opened) => {
                let done = act(Place::File(opened.buffer.clone())).await;
                opened.buffer.close().await;
                return done;
            }
            Err(BufferError::InUse { .. }) => match act(Place::Agent).await {
                // It may be about to start or to stop.
                Err(failure) if failure.class() == Class::Network && Instant::now() < deadline => {
                    sleep(ASK_AGAIN).await;
                }
                answered => return answered,
            },
            Err(error) => return Err(in_file(error)),
        }
    }
}

async fn change_file(
    settings: &Settings,
    buffer: &Buffer,
    changes: &BTreeMap<String, Value>,
) -> Result<LocalConfig, Failure> {
    let mut document = Document::restore(buffer.config().await.map_err(in_file)?);
    let made = document
        .edit(&texts(changes), clock(settings).now_ms())
        .map_err(|error| Failure::new(Class::Data, "change settings").because(error))?;
    let kept = buffer.keep_config(made.clone(), Origin::Device).await;
    kept.map_err(in_file)?;
    for entry in made {
        document.take(entry, Origin::Device);
    }
    Ok(LocalConfig::of(&document, false))
}

/// Requests a change from the agent that runs, or what is set.
async fn ask(
    settings: &Settings,
    changes: Option<&BTreeMap<String, Value>>,
) -> Result<LocalConfig, Failure> {
    let address = settings.admin;
    let request = async {
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .no_proxy()
            .build()?;
        let url = format!("http://{address}/config");
        let request = match changes {
            Some(changes) => client.post(url).json(changes),
            None => client.get(url),
        };
        let answer = request.send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.bytes().await?))
    };
    let (status, body) = request.await.map_err(|error| {
        Failure::new(Class::Network, format!("ask the agent at {address}"))
            .because(error)
            .help("the agent has the buffer; is this its [admin] http address?")
    })?;
    if !status.is_success() {
        let why = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(Failure::new(
            Class::Data,
            format!("change settings through the agent at {address}"),
        )
        .because(why));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Failure::new(Class::Data, "read the agent's answer").because(error))
}

/// The values as JSON texts, as they are kept.
pub(super) fn texts(changes: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let text = |(key, value): (&String, &Value)| (key.clone(), value.to_string());
    changes.iter().map(text).collect()
}

fn clock(settings: &Settings) -> std::sync::Arc<dyn Clock> {
    std::sync::Arc::new(SystemClock::with_offset_ms(settings.agent.clock.offset_ms))
}

fn in_file(error: BufferError) -> Failure {
    Failure::new(error.class(), "read or change the settings in the buffer").because(error)
}

pub(crate) fn rfc3339(ms: u64) -> String {
    let nanos = i128::from(ms) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    let text = at.and_then(|at| at.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{ms} ms after 1970"))
}
