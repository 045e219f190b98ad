//! Settings that change while the agent runs: what can be applied is, the rest is named.
//!
//! What is applied is what [`APPLIED`] says; whatever else differs from the settings of the start waits for a restart. So
//! a new section needs nothing here to be named.

use std::fmt;
use std::sync::Arc;

use daemon::settings::{Effective, is_below};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::buffer::Buffer;
use crate::clock::AgentClock;
use crate::config::Settings;
use crate::source::{Changes, Running, SourceName};
use crate::status::Status;
use crate::twin;
use crate::twin::knobs::FromFile;

/// The keys, or what they begin with, that are applied while the agent runs.
const APPLIED: [&str; 17] = [
    "source",
    "buffer.rows_max",
    "buffer.bytes_max",
    "buffer.quarantine_rows_max",
    "buffer.quarantine_bytes_max",
    "buffer.linger",
    "buffer.settle_linger",
    "buffer.when_full",
    "buffer.age_max",
    "buffer.warn_at",
    "buffer.rule",
    "session.batch_rows_max",
    "session.linger",
    "session.history_rows_per_second",
    "session.bytes_per_second",
    "commands.parallel",
    "clock.synchronised_file",
];

/// The key of the log's level, which `RUST_LOG` may overrule.
const LOG_LEVEL: &str = "log.level";

/// How the settings of a running agent fare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsStatus {
    /// When those in force were read, in milliseconds since the Unix epoch.
    pub read_at_ms: u64,
    /// How often they were read again since the start, and taken.
    pub reloads: u64,
    /// Keys that are set otherwise than at the start, and need a restart.
    pub needs_restart: Vec<String>,
    /// Why the last attempt changed nothing; `None` when it was taken.
    pub refused: Option<String>,
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys and sources that are as the settings say now.
    pub applied: Vec<String>,
    /// Keys that need a restart.
    pub needs_restart: Vec<String>,
}

/// What is in force.
#[derive(Default)]
pub(crate) struct InForce {
    /// What was last applied whole; `None` while that is what the agent was started with.
    whole: Option<Effective>,
    /// Something was applied in part since.
    is_mixed: bool,
}

/// What is needed to apply settings.
pub(crate) struct Reloading {
    pub(crate) running: Arc<Running>,
    pub(crate) buffer: Buffer,
    pub(crate) clock: AgentClock,
    pub(crate) twin: mpsc::Sender<twin::Request>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) now: Mutex<InForce>,
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").finish_non_exhaustive()
    }
}

impl Reloading {
    /// Applies what can be applied; `at_start` is what the agent was started with.
    pub(crate) async fn apply(&self, at_start: &Effective, new: Settings) -> Reloaded {
        let mut now = self.now.lock().await;
        let before = now.whole.as_ref().unwrap_or(at_start);
        let is_mixed = now.is_mixed;
        let differs = before.differences(&new.effective);
        let mut outcome = Reloaded {
            applied: Vec::new(),
            needs_restart: at_start
                .differences(&new.effective)
                .into_iter()
                .filter(|key| !is_applied(key))
                .collect(),
        };
        let has = |section: &str| is_mixed || differs.iter().any(|key| is_below(key, section));
        let agent = new.agent;
        let mut room = Some((agent.buffer.rows_max, agent.buffer.bytes_max));
        let mut is_whole = true;
        if has("buffer") {
            match self.buffer.change_limits(agent.buffer).await {
                Ok(()) => outcome.applied.extend(taken(&differs, "buffer")),
                Err(error) => {
                    (room, is_whole) = (None, false);
                    warn!(%error, "the limits of the buffer are not changed");
                }
            }
        }
        if has("clock.synchronised_file") {
            self.clock
                .synchronised_by(agent.clock.synchronised_file.clone());
            outcome.applied.extend(taken(&differs, "clock"));
        }
        // Before the sources: one that is new begins with its interval.
        let (reply, answer) = oneshot::channel();
        let from_file = FromFile::of(&agent.sources, &agent.session, agent.commands.parallel);
        let request = twin::Request::FromFile {
            from_file,
            log_level: has(LOG_LEVEL).then(|| new.log.level.clone()),
            reply,
        };
        // A twin that is gone has ended with the agent.
        let _ = self.twin.send(request).await;
        match answer.await {
            Ok(Ok(is_usual)) => {
                for section in ["session", "commands"] {
                    outcome.applied.extend(taken(&differs, section));
                }
                match is_usual {
                    true if has(LOG_LEVEL) => outcome.applied.push(LOG_LEVEL.to_owned()),
                    false => warn!("log.level is not changed: RUST_LOG of the environment wins"),
                    true => {}
                }
            }
            Ok(Err(reason)) => {
                is_whole = false;
                warn!(reason, "log.level is not changed");
            }
            Err(_) => {}
        }
        let changes = self.running.become_these(agent.sources).await;
        outcome.applied.extend(named(changes));
        self.status.send_modify(|status| {
            if let (Some(shown), Some(room)) = (&mut status.room, room) {
                (shown.rows_max, shown.bytes_max) = room;
            }
            let settings = status.settings.get_or_insert_default();
            settings.read_at_ms = millis(self.clock.wall_ms());
            settings.reloads += 1;
            settings.refused = None;
            settings.needs_restart.clone_from(&outcome.needs_restart);
        });
        // What failed is still to be applied, and what did not may be put back: the next reload applies all.
        now.is_mixed = !is_whole;
        if is_whole {
            now.whole = Some(new.effective);
        }
        info!(
            applied = outcome.applied.join(", "),
            "settings were read again"
        );
        if !outcome.needs_restart.is_empty() {
            warn!(
                keys = outcome.needs_restart.join(", "),
                help = "restart the agent for these to be in force",
                "settings need a restart"
            );
        }
        outcome
    }

    /// Notes that settings cannot be used: nothing is changed.
    pub(crate) fn refuse(&self, reason: &str) {
        error!(
            error = reason,
            help = "mend them and send SIGHUP again; `edge-agent check` says what is wrong",
            "settings are not taken; those before stay in force"
        );
        self.status.send_modify(|status| {
            let settings = status.settings.get_or_insert_default();
            settings.refused = Some(reason.to_owned());
        });
    }
}

fn is_applied(key: &str) -> bool {
    key == LOG_LEVEL || APPLIED.iter().any(|applied| is_below(key, applied))
}

/// The keys of a section that differ and are applied.
fn taken(differs: &[String], section: &str) -> Vec<String> {
    let taken = differs
        .iter()
        .filter(|key| is_below(key, section) && is_applied(key));
    taken.cloned().collect()
}

/// Sources, each with what was done.
fn named(changes: Changes) -> Vec<String> {
    let Changes {
        added,
        removed,
        changed,
    } = changes;
    let say = |names: Vec<SourceName>, what: &'static str| {
        names
            .into_iter()
            .map(move |name| format!("source.{name} {what}"))
    };
    say(added, "added")
        .chain(say(removed, "removed"))
        .chain(say(changed, "changed"))
        .collect()
}

pub(crate) fn millis(wall_ms: i64) -> u64 {
    u64::try_from(wall_ms).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_applied_needs_a_restart() {
        for key in [
            "source.press.interval",
            "buffer.rule",
            "log.level",
            "session.linger",
            "clock.synchronised_file",
        ] {
            assert!(is_applied(key), "{key}");
        }
        for key in [
            "device",
            "mqtt.address",
            "buffer.path",
            "buffer.rules",
            "session.window_batches",
            "log.format",
            "sources",
            "clock.offset_ms",
            "whatever.comes.next",
        ] {
            assert!(!is_applied(key), "{key}");
        }
        let differs = ["buffer.rule".to_owned(), "buffer.path".to_owned()];
        assert_eq!(taken(&differs, "buffer"), ["buffer.rule"]);
    }
}
