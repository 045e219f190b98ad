//! What commands do, by their names: [`KnownCommand::ALL`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schema::message::{CommandId, KnownCommand, RejectReason};
use schema::setting::LogLevel;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

pub use super::exec::Program;
use super::exec::{self, Progress};
use super::restart::Restart;
use crate::buffer::Buffer;
use crate::log_level::LogLevels;
use crate::source::Scans;
use crate::twin;

/// How long a flush may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a flush looks whether everything has arrived.
const FLUSH_LOOK: Duration = Duration::from_millis(50);

/// Longest time for which a command may change what is logged; beyond it a setting is meant.
const LOG_LEVEL_TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How a command ended, and its output.
pub(crate) type Outcome = Result<String, String>;

/// Requests of commands, and of a stop of the agent, to whatever sends the readings.
#[derive(Debug)]
pub(crate) enum SendRequest {
    /// Whether to send everything without linger and pace.
    Flush(bool),
    /// Send again what is not acknowledged, and report anew.
    Resync(oneshot::Sender<Resynced>),
    /// Answer, as a sign of life.
    Alive(oneshot::Sender<()>),
}

/// What a resync sends again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resynced {
    /// Rows that were in flight.
    pub(crate) again: u64,
    /// Rows that wait beside them.
    pub(crate) waiting: u64,
}

/// What the work of commands needs.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) buffer: Buffer,
    pub(crate) sending: mpsc::Sender<SendRequest>,
    pub(crate) programs: Arc<BTreeMap<String, Program>>,
    pub(crate) tools: Tools,
}

/// What commands need beyond that; not every agent has all of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    /// To the host source.
    pub(crate) scans: Scans,
    pub(crate) twin: Option<mpsc::Sender<twin::Request>>,
    pub(crate) log_levels: Option<LogLevels>,
    /// When the process is the agent's own.
    pub(crate) restart: Option<Restart>,
    /// The command for which the process was started again.
    pub(crate) restarted_for: Option<CommandId>,
    /// Receives how far a command is, in percent.
    pub(crate) progress: Option<mpsc::Sender<(CommandId, u8)>>,
    /// Programs whose commands were withdrawn, until nothing of them is left.
    pub(crate) endings: TaskTracker,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quarantined {
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLogLevel {
    level: String,
    #[serde(default, rename = "for", with = "humantime_serde")]
    time: Option<Duration>,
}

/// A flush, which ends when this is dropped: also when its command is withdrawn.
struct Flushing<'a>(&'a mpsc::Sender<SendRequest>);

impl<'a> Flushing<'a> {
    async fn begin(sending: &'a mpsc::Sender<SendRequest>) -> Result<Self, String> {
        let begun = sending.send(SendRequest::Flush(true)).await;
        begun.map_err(|_| stopping())?;
        Ok(Self(sending))
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        // Nothing is flushed any more once the receiver is gone.
        let _ = self.0.try_send(SendRequest::Flush(false));
    }
}

impl Workshop {
    /// Does the work of a command. Dropping it stops what it started.
    pub(crate) fn perform(
        &self,
        id: CommandId,
        name: String,
        arguments: String,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let shop = self.clone();
        async move {
            match name.as_str() {
                "collect" => shop.collect().await,
                "discard" => shop.discard(&arguments).await,
                "exec" => shop.exec(id, &arguments).await,
                "flush" => shop.flush().await,
                "ping" => Ok("pong".to_owned()),
                "requeue" => shop.requeue(&arguments).await,
                "restart" => shop.restart(id).await,
                "resync" => shop.resync().await,
                "set-log-level" => shop.set_log_level(&arguments),
                other => Err(format!(
                    "this agent knows no command {other:?}; it knows {}",
                    KnownCommand::names()
                )),
            }
        }
    }

    /// Scans the host source now, and takes all of it.
    async fn collect(&self) -> Outcome {
        let Some(scans) = self.tools.scans.get() else {
            return Err("this device has no [source.host]".to_owned());
        };
        let accepted = ask(&scans, |reply| reply).await?;
        let accepted = accepted.map_err(|error| error.to_string())?;
        Ok(format!("{accepted} readings accepted"))
    }

    /// Sends all there is, without linger and pace.
    async fn flush(&self) -> Outcome {
        let flushing = Flushing::begin(&self.sending).await?;
        let arrived = timeout(FLUSH_TIMEOUT, async {
            while self.buffer.balance().pending > 0 {
                sleep(FLUSH_LOOK).await;
            }
        });
        let arrived = arrived.await.is_ok();
        drop(flushing);
        let pending = self.buffer.balance().pending;
        match arrived {
            true => Ok("everything is in the database".to_owned()),
            false => Err(format!("{pending} readings are still pending")),
        }
    }

    async fn exec(&self, id: CommandId, arguments: &str) -> Outcome {
        let Exec { name } = serde_json::from_str(arguments)
            .map_err(|error| format!("arguments are not of the form {{\"name\": …}}: {error}"))?;
        let Some(allowed) = self.programs.get(&name) else {
            let known: Vec<&str> = self.programs.keys().map(String::as_str).collect();
            return Err(format!(
                "{name:?} is not in this device's [commands.exec] list, which has {known:?}"
            ));
        };
        let progress = Progress::new(id, self.tools.progress.clone());
        exec::run(allowed, progress, &self.tools.endings).await
    }

    async fn restart(&self, id: CommandId) -> Outcome {
        let Some(restart) = &self.tools.restart else {
            return Err("the agent runs inside another program, which is not its own".to_owned());
        };
        match restart.begin(id).await {}
    }

    /// What is not acknowledged is sent again, and ledger and configuration are reported again.
    async fn resync(&self) -> Outcome {
        let Resynced { again, waiting } = ask(&self.sending, SendRequest::Resync).await?;
        let keys = match &self.tools.twin {
            Some(twin) => ask(twin, twin::Request::Report).await?,
            None => 0,
        };
        Ok(format!(
            "{again} readings in flight are sent again, {waiting} wait; \
             the ledger and {keys} settings are reported"
        ))
    }

    /// Offers readings in quarantine again.
    async fn requeue(&self, arguments: &str) -> Outcome {
        let (reasons, of) = reasons(arguments)?;
        let requeued = self.buffer.requeue(reasons).await;
        let count = requeued.map_err(|error| error.to_string())?;
        Ok(format!(
            "{count} readings in quarantine{of} are offered again"
        ))
    }

    /// Gives up readings in quarantine.
    async fn discard(&self, arguments: &str) -> Outcome {
        let (reasons, of) = reasons(arguments)?;
        let discarded = self.buffer.discard(reasons).await;
        let count = discarded.map_err(|error| error.to_string())?;
        Ok(format!("{count} readings in quarantine{of} are discarded"))
    }

    fn set_log_level(&self, arguments: &str) -> Outcome {
        let SetLogLevel { level, time } = serde_json::from_str(arguments).map_err(|error| {
            format!("arguments are not of the form {{\"level\": …, \"for\": \"10m\"}}: {error}")
        })?;
        let Some(level) = LogLevel::named(&level) else {
            let known = LogLevel::ALL.map(LogLevel::as_str).join(", ");
            return Err(format!("level is none of {known}"));
        };
        if time.is_some_and(|time| time.is_zero() || time > LOG_LEVEL_TIME_MAX) {
            return Err("for must be more than nothing and at most 7days".to_owned());
        }
        let Some(levels) = &self.tools.log_levels else {
            return Err("the agent's log cannot be changed".to_owned());
        };
        levels.set_until(level, time.map(|time| Instant::now() + time))?;
        let level = level.as_str();
        Ok(match time {
            Some(time) => format!("{level} for {time:?}"),
            None => format!("{level} until the agent starts again"),
        })
    }
}

/// The reason that the arguments name, if they do, and the words for it in the output.
fn reasons(arguments: &str) -> Result<(Option<Vec<RejectReason>>, String), String> {
    let Quarantined { reason } = serde_json::from_str(arguments)
        .map_err(|error| format!("arguments are not of the form {{\"reason\": …}}: {error}"))?;
    let Some(name) = reason else {
        return Ok((None, String::new()));
    };
    let Some(reason) = RejectReason::named(&name) else {
        let known = RejectReason::ALL.map(RejectReason::as_str).join(", ");
        return Err(format!("reason is none of {known}"));
    };
    Ok((Some(vec![reason]), format!(" for {name}")))
}

/// Sends a request to another part of the agent, and waits for its answer.
async fn ask<T, R>(
    of: &mpsc::Sender<R>,
    request: impl FnOnce(oneshot::Sender<T>) -> R,
) -> Result<T, String> {
    let (reply, answer) = oneshot::channel();
    let sent = of.send(request(reply)).await;
    sent.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

fn stopping() -> String {
    "the agent is stopping".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferSettings;
    use daemon::SystemClock;

    /// Commands of an agent that has nothing but its buffer.
    async fn shop(
        folder: &std::path::Path,
        tools: Tools,
    ) -> (Workshop, mpsc::Receiver<SendRequest>) {
        let settings = BufferSettings::new(folder.join("buffer.db"));
        let opened = Buffer::open(settings, Arc::new(SystemClock::default())).await;
        let (sending, requests) = mpsc::channel(2);
        let shop = Workshop {
            buffer: opened.unwrap().buffer,
            sending,
            programs: Arc::default(),
            tools,
        };
        (shop, requests)
    }

    async fn perform(shop: &Workshop, name: &str, arguments: &str) -> Outcome {
        let id = CommandId::from_bits(1);
        let work = shop.perform(id, name.to_owned(), arguments.to_owned());
        timeout(Duration::from_secs(10), work).await.unwrap()
    }

    #[tokio::test]
    async fn a_flush_that_is_withdrawn_ends() {
        let (sending, mut requests) = mpsc::channel(2);
        let flushing = Flushing::begin(&sending).await.unwrap();
        assert!(matches!(
            requests.recv().await,
            Some(SendRequest::Flush(true))
        ));
        drop(flushing);
        assert!(matches!(
            requests.recv().await,
            Some(SendRequest::Flush(false))
        ));
    }

    /// The list that help and documents print is what is known here.
    #[tokio::test]
    async fn every_listed_command_is_known_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (shop, requests) = shop(folder.path(), Tools::default()).await;
        drop(requests);
        for known in KnownCommand::ALL {
            let outcome = perform(&shop, known.name, "{}").await;
            let is_unknown = outcome.is_err_and(|error| error.contains("knows no command"));
            assert!(!is_unknown, "{known:?}");
        }
        let unknown = perform(&shop, "format-disk", "{}").await.unwrap_err();
        assert!(unknown.ends_with(&KnownCommand::names()), "{unknown}");
    }

    #[tokio::test]
    async fn a_command_on_the_quarantine_names_a_reason_that_there_is_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let (shop, _requests) = shop(folder.path(), Tools::default()).await;
        for name in ["requeue", "discard"] {
            for good in ["{}", r#"{"reason":null}"#, r#"{"reason":"too_new"}"#] {
                let said = perform(&shop, name, good).await.unwrap();
                assert!(said.starts_with("0 readings in quarantine"), "{said}");
            }
            for bad in ["[]", r#"{"reason":"new"}"#, r#"{"reasons":"too_new"}"#] {
                let refused = perform(&shop, name, bad).await;
                assert!(refused.is_err(), "{name} {bad}: {refused:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_resync_says_what_is_sent_again() {
        let folder = tempfile::tempdir().unwrap();
        let (twin, mut twin_requests) = mpsc::channel(1);
        let tools = Tools {
            twin: Some(twin),
            ..Tools::default()
        };
        let (shop, mut requests) = shop(folder.path(), tools).await;
        let answering = async {
            let Some(SendRequest::Resync(reply)) = requests.recv().await else {
                panic!("a resync is requested");
            };
            let resynced = Resynced {
                again: 3,
                waiting: 5,
            };
            reply.send(resynced).unwrap();
            let Some(twin::Request::Report(reply)) = twin_requests.recv().await else {
                panic!("a report is requested");
            };
            reply.send(2).unwrap();
        };
        let (outcome, ()) = tokio::join!(perform(&shop, "resync", "{}"), answering);
        let said = outcome.unwrap();
        assert!(
            said.starts_with("3 readings")
                && said.contains("5 wait")
                && said.contains("2 settings"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn log_levels_have_their_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let levels = daemon::logs::start(daemon::logs::Format::Text, "error").unwrap();
        let tools = Tools {
            log_levels: Some(LogLevels::new(Some(levels))),
            ..Tools::default()
        };
        let (shop, _requests) = shop(folder.path(), tools).await;
        for good in [
            r#"{"level":"warn"}"#,
            r#"{"level":"warn","for":"1ms"}"#,
            r#"{"level":"trace","for":"7days"}"#,
        ] {
            let outcome = perform(&shop, "set-log-level", good).await;
            assert!(outcome.is_ok(), "{good}: {outcome:?}");
        }
        for bad in [
            "{}",
            "[]",
            r#"{"level":"loud"}"#,
            r#"{"level":"warn","for":"0s"}"#,
            r#"{"level":"warn","for":"7days 1ms"}"#,
            r#"{"level":"warn","until":"10m"}"#,
        ] {
            let outcome = perform(&shop, "set-log-level", bad).await;
            assert!(outcome.is_err(), "{bad}: {outcome:?}");
        }
    }
}
