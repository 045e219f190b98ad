//! The twin's side on the device: desired settings are kept in the buffer's file, applied while the
//! agent runs, and what came of that is told after each change and each connect.
//!
//! Per key the later clock wins, in whatever order documents arrive; `null` takes a setting back to
//! what the settings file says.

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::Failure;
use schema::message::{ConfigEntry, DesiredConfig, Event, FailedKey, ReportedConfig};
use schema::setting::Setting;
use schema::{Channel, envelope, limits};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::buffer::{Buffer, BufferError};
use crate::link::LinkState;

/// What can be changed while the agent runs, each with what the settings file says.
#[derive(Debug)]
pub(crate) struct Knobs {
    pub(crate) host_interval: Knob<Duration>,
    pub(crate) commands_parallel: Knob<usize>,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Knob<T> {
    from_file: T,
    now: watch::Sender<T>,
}

/// What the task needs.
pub(crate) struct Twin {
    pub(crate) buffer: Buffer,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) documents: mpsc::Receiver<DesiredConfig>,
    pub(crate) knobs: Knobs,
    pub(crate) stop: CancellationToken,
}

struct Running {
    parts: Twin,
    known: BTreeMap<String, ConfigEntry>,
    failed: BTreeMap<String, String>,
}

impl<T: Copy + PartialEq> Knob<T> {
    pub(crate) fn new(from_file: T) -> Self {
        Self {
            from_file,
            now: watch::channel(from_file).0,
        }
    }

    /// Hears of changes.
    pub(crate) fn heard(&self) -> watch::Receiver<T> {
        self.now.subscribe()
    }

    /// Sets it, or takes it back.
    fn set(&self, value: Option<T>) {
        let value = value.unwrap_or(self.from_file);
        self.now.send_if_modified(|now| {
            let changed = *now != value;
            *now = value;
            changed
        });
    }
}

impl Twin {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let kept = self.buffer.config().await.map_err(|error| {
            Failure::new(error.class(), "read the configuration of the buffer").because(error)
        })?;
        let mut running = Running {
            parts: self,
            known: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        for entry in kept {
            running.apply(entry);
        }
        running.report();
        loop {
            tokio::select! {
                biased;
                () = running.parts.stop.cancelled() => return Ok(()),
                Some(document) = running.parts.documents.recv() => running.take(document).await,
                Ok(()) = running.parts.link.changed() => {
                    running.parts.link.borrow_and_update();
                    running.report();
                }
            }
        }
    }
}

impl Running {
    async fn take(&mut self, document: DesiredConfig) {
        for entry in document.entries.into_iter().take(limits::CONFIG_KEYS_MAX) {
            let sound = entry.key.len() <= limits::KEY_BYTES_MAX
                && entry.value.len() <= limits::CONFIG_VALUE_BYTES_MAX;
            let is_newer = self
                .known
                .get(&entry.key)
                .is_none_or(|known| known.hlc < entry.hlc);
            if !sound || !is_newer {
                continue;
            }
            match self.parts.buffer.keep_config(entry.clone()).await {
                Ok(()) => self.apply(entry),
                Err(BufferError::Closed) => return,
                // The bridge says it again while it hears no report of it.
                Err(error) => warn!(key = entry.key, %error, "a setting was not kept"),
            }
        }
        self.report();
    }

    fn apply(&mut self, entry: ConfigEntry) {
        let ConfigEntry { key, value, .. } = &entry;
        match self.parts.knobs.set(key, value) {
            Ok(()) => {
                info!(key, value, "setting in force");
                self.failed.remove(key);
            }
            Err(reason) => {
                warn!(key, value, reason, "setting not in force");
                self.failed.insert(key.clone(), reason);
            }
        }
        self.known.insert(key.clone(), entry);
    }

    fn report(&self) {
        let LinkState::Up(uplink) = &*self.parts.link.borrow() else {
            return;
        };
        if self.known.is_empty() {
            return;
        }
        let failed = self.failed.iter().map(|(key, reason)| FailedKey {
            key: key.clone(),
            reason: reason.clone(),
        });
        let report = Event::Config(ReportedConfig {
            entries: self.known.values().cloned().collect(),
            failed: failed.collect(),
        });
        match envelope::encode(&report) {
            // What the link does not take is told after the next connect.
            Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
            Err(error) => warn!(%error, "the configuration cannot be told"),
        }
    }
}

impl Knobs {
    /// Sets a key to the JSON text of a value; `null` takes it back.
    fn set(&self, key: &str, json: &str) -> Result<(), String> {
        if json.trim() == "null" {
            // One that this agent does not know was never in force.
            self.take_back(key);
            return Ok(());
        }
        match Setting::parse(key, json).map_err(|error| error.to_string())? {
            Setting::HostInterval(interval) => self.host_interval.set(Some(interval)),
            Setting::CommandsParallel(parallel) => {
                self.commands_parallel.set(Some(usize::from(parallel)));
            }
        }
        Ok(())
    }

    fn take_back(&self, key: &str) {
        match key {
            Setting::HOST_INTERVAL => self.host_interval.set(None),
            Setting::COMMANDS_PARALLEL => self.commands_parallel.set(None),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_and_taken_back() {
        let knobs = Knobs {
            host_interval: Knob::new(Duration::from_secs(10)),
            commands_parallel: Knob::new(1),
        };
        let (interval, parallel) = (knobs.host_interval.heard(), knobs.commands_parallel.heard());
        knobs.set(Setting::HOST_INTERVAL, "2.5").unwrap();
        knobs.set(Setting::COMMANDS_PARALLEL, "3").unwrap();
        assert_eq!(*interval.borrow(), Duration::from_millis(2_500));
        assert_eq!(*parallel.borrow(), 3);
        assert!(knobs.set(Setting::HOST_INTERVAL, "0").is_err());
        assert!(knobs.set("unknown", "1").is_err());
        assert_eq!(*interval.borrow(), Duration::from_millis(2_500));
        knobs.set(Setting::HOST_INTERVAL, "null").unwrap();
        knobs.set(Setting::COMMANDS_PARALLEL, " null ").unwrap();
        knobs.set("unknown", "null").unwrap();
        assert_eq!(*interval.borrow(), Duration::from_secs(10));
        assert_eq!(*parallel.borrow(), 1);
    }
}
