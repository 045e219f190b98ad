//! The audit: who changed what, and who was turned away. Written beside the requests, in groups; a
//! queue that is full, or a database that is away, loses entries and counts them: a request never
//! waits for its own record.

use std::sync::Arc;

use daemon::{Failure, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use store::Store;
pub(crate) use store::access::AuditEntry;

/// Entries that wait to be written.
const QUEUE: usize = 1_024;

/// Entries of one write.
const GROUP: usize = 128;

/// The way in.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    entries: mpsc::Sender<AuditEntry>,
    lost: Counter,
}

/// The task that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    store: Arc<dyn Store>,
    stop: CancellationToken,
    entries: mpsc::Receiver<AuditEntry>,
    lost: Counter,
}

/// An audit, and the task that writes it down; its metric is registered.
pub(crate) fn audit(
    store: Arc<dyn Store>,
    stop: CancellationToken,
    registry: &mut Registry,
) -> (Audit, Writer) {
    let lost: Counter = registered(
        registry,
        "tideline_bridge_audit_lost",
        "Audit entries that could not be kept",
    );
    let (entries, waiting) = mpsc::channel(QUEUE);
    let audit = Audit {
        entries,
        lost: lost.clone(),
    };
    let writer = Writer {
        store,
        stop,
        entries: waiting,
        lost,
    };
    (audit, writer)
}

impl Audit {
    /// Notes one entry.
    pub(crate) fn note(&self, entry: AuditEntry) {
        if self.entries.try_send(entry).is_err() {
            self.lost.inc();
        }
    }
}

impl Writer {
    /// Writes until stopped, and then what is left.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let mut group = Vec::with_capacity(GROUP);
        loop {
            tokio::select! {
                biased;
                count = self.entries.recv_many(&mut group, GROUP) => {
                    if count == 0 {
                        // Everybody who could note something is gone.
                        self.stop.cancelled().await;
                        return Ok(());
                    }
                    self.write(&mut group).await;
                }
                () = self.stop.cancelled() => {
                    while let Ok(entry) = self.entries.try_recv() {
                        group.push(entry);
                    }
                    self.write(&mut group).await;
                    return Ok(());
                }
            }
        }
    }

    async fn write(&self, group: &mut Vec<AuditEntry>) {
        if group.is_empty() {
            return;
        }
        if let Err(error) = self.store.audit(group).await {
            warn!(%error, entries = group.len(), "audit entries are lost");
            self.lost.inc_by(group.len() as u64);
        }
        group.clear();
    }
}
