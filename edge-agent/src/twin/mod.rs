//! The twin's side on the device: settings are kept in the buffer's file, applied while the agent
//! runs, and the outcome is reported after each change and each connect.
//!
//! They come from the bridge, and from people on the device itself ([`local`]). Which one counts is
//! decided by [`document`], which is pure; here is the task that keeps, applies and reports them.

pub mod document;
pub(crate) mod http;
pub(crate) mod knobs;
pub mod local;

use std::collections::BTreeMap;
use std::sync::Arc;

use daemon::{Clock, Failure};
use schema::message::{ConfigEntry, DesiredConfig, Event};
use schema::{Channel, envelope};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::buffer::{Buffer, BufferError, Origin};
use crate::link::LinkState;
use document::{Document, EditError};
use knobs::{FromFile, Knobs};
use local::LocalConfig;

/// Requests of this machine that may wait.
pub(crate) const REQUESTS_QUEUE: usize = 8;

/// Requests of others on this machine.
#[derive(Debug)]
pub(crate) enum Request {
    /// Sets keys to the JSON texts of values.
    Change {
        changes: BTreeMap<String, String>,
        reply: oneshot::Sender<Result<LocalConfig, ChangeError>>,
    },
    /// Answers with what is set, and whether it is in force.
    Show(oneshot::Sender<LocalConfig>),
    /// Reports to the bridge again; answers how many keys the report has.
    Report(oneshot::Sender<usize>),
    /// The settings file says something else now. Answers whether that of the log holds.
    FromFile {
        from_file: FromFile,
        log_level: Option<String>,
        reply: oneshot::Sender<Result<bool, String>>,
    },
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

/// What the task is made of.
pub(crate) struct Twin {
    pub(crate) buffer: Buffer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) documents: mpsc::Receiver<DesiredConfig>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) knobs: Knobs,
    pub(crate) stop: CancellationToken,
}

struct TwinTask {
    parts: Twin,
    document: Document,
}

impl Twin {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let kept = self.buffer.config().await.map_err(|error| {
            Failure::new(error.class(), "read the configuration of the buffer").because(error)
        })?;
        let mut task = TwinTask {
            parts: self,
            document: Document::restore(kept),
        };
        let kept: Vec<ConfigEntry> = task.document.keys().map(|key| key.entry.clone()).collect();
        for entry in &kept {
            task.apply(entry);
        }
        task.report();
        loop {
            tokio::select! {
                biased;
                () = task.parts.stop.cancelled() => return Ok(()),
                Some(request) = task.parts.requests.recv() => task.answer(request).await,
                Some(document) = task.parts.documents.recv() => task.receive(&document).await,
                Ok(()) = task.parts.link.changed() => {
                    task.parts.link.borrow_and_update();
                    task.report();
                }
            }
        }
    }
}

impl TwinTask {
    async fn receive(&mut self, desired: &DesiredConfig) {
        let news = self.document.news(desired);
        match self.take(news, Origin::Bridge).await {
            Ok(()) | Err(BufferError::Closed) => {}
            // The bridge sends it again until a report has it.
            Err(error) => warn!(%error, "settings were not kept"),
        }
        // Also when nothing is new: the bridge sent it because it lacks the report.
        self.report();
    }

    async fn answer(&mut self, request: Request) {
        // A caller that went away needs no answer.
        match request {
            Request::Change { changes, reply } => {
                let changed = self.change(&changes).await;
                let changed = changed.map(|()| LocalConfig::of(&self.document, true));
                let _ = reply.send(changed);
            }
            Request::Show(reply) => {
                let _ = reply.send(LocalConfig::of(&self.document, true));
            }
            Request::FromFile {
                from_file,
                log_level,
                reply,
            } => {
                let is_set = |key: &str| self.document.is_in_force(key);
                self.parts.knobs.rebase(from_file, is_set);
                let outcome = match log_level {
                    Some(level) => self.parts.knobs.log_level.set_usual(&level),
                    None => Ok(true),
                };
                let _ = reply.send(outcome);
            }
            Request::Report(reply) => {
                self.report();
                let _ = reply.send(self.document.keys().count());
            }
        }
    }

    async fn change(&mut self, changes: &BTreeMap<String, String>) -> Result<(), ChangeError> {
        let made = self.document.edit(changes, self.parts.clock.now_ms())?;
        self.take(made, Origin::Device).await?;
        self.report();
        Ok(())
    }

    /// Keeps the entries, then applies them: what is in force is always on the disk.
    async fn take(&mut self, news: Vec<ConfigEntry>, origin: Origin) -> Result<(), BufferError> {
        if news.is_empty() {
            return Ok(());
        }
        self.parts.buffer.keep_config(news.clone(), origin).await?;
        for entry in news {
            if self.document.take(entry.clone(), origin) {
                self.apply(&entry);
            }
        }
        Ok(())
    }

    fn apply(&mut self, entry: &ConfigEntry) {
        let ConfigEntry { key, value, .. } = entry;
        let outcome = self.parts.knobs.set(key, value);
        match &outcome {
            Ok(()) => info!(key, value, "setting in force"),
            Err(reason) => warn!(key, value, reason, "setting not in force"),
        }
        self.document.note(key, outcome);
    }

    fn report(&self) {
        let LinkState::Up(uplink) = &*self.parts.link.borrow() else {
            return;
        };
        let Some(report) = self.document.report() else {
            return;
        };
        match envelope::encode(&Event::Config(report)) {
            // What the link does not take is reported after the next connect.
            Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
            Err(error) => warn!(%error, "the configuration cannot be reported"),
        }
    }
}
