//! The queue of readings between the task that polls the broker and the loop that writes: bounded in messages
//! and in bytes, and never waited for. What is not readings goes its own way ([`crate::ingest::Sides`]), because nobody
//! would send it again.
//!
//! ```text
//! fits        → queued; acknowledged to the broker after its commit
//! does not    → dropped; its receipt is kept until there is room again
//! ```
//!
//! A receipt that is kept holds a place in the broker's window for us: when all are held, the
//! broker stops sending, and the devices' windows close. A dropped message is sent again by its
//! device, which frees nothing because the broker took it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use daemon::lock;
use tokio::sync::mpsc;

use super::Message;
use super::mqtt::Receipt;

/// Messages in the queue. More than the broker's window for one client, a hundred for each of its
/// routers, so that bytes are what fills it.
const QUEUE_MESSAGES: usize = 2_048;

/// Bytes of payload in the queue.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Receipts kept of dropped messages. A broker whose window is larger is acknowledged at once beyond it.
const RECEIPTS_MAX: usize = 4_096;

/// The end that takes messages out.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
}

/// The end that puts messages in.
#[derive(Debug, Clone)]
pub struct Outbox {
    messages: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    dropped: Mutex<Vec<Receipt>>,
}

/// Both ends of an empty queue.
#[must_use]
pub fn inbox() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
    let shared = Arc::new(Shared::default());
    let outbox = Outbox {
        messages: sender,
        shared: Arc::clone(&shared),
    };
    let inbox = Inbox {
        messages: receiver,
        shared,
    };
    (outbox, inbox)
}

impl Outbox {
    /// Queues a message; says whether it fitted.
    pub fn offer(&self, message: Message) -> bool {
        let bytes = message.payload.len();
        let queued = self.shared.bytes.fetch_add(bytes, Ordering::AcqRel);
        let refused = if queued + bytes > QUEUE_BYTES {
            message
        } else {
            match self.messages.try_send(message) {
                Ok(()) => return true,
                Err(refused) => refused.into_inner(),
            }
        };
        self.shared.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let mut dropped = lock(&self.shared.dropped);
        if dropped.len() < RECEIPTS_MAX {
            dropped.push(refused.receipt.without_payload());
        } else {
            refused.receipt.acknowledge();
        }
        false
    }
}

impl Inbox {
    /// The next message; `None` when there will be none any more.
    pub async fn recv(&mut self) -> Option<Message> {
        let message = self.messages.recv().await?;
        let bytes = message.payload.len();
        self.shared.bytes.fetch_sub(bytes, Ordering::AcqRel);
        Some(message)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// There is room again: the broker may go on where messages were dropped.
    pub fn release_dropped(&self) {
        let receipts = std::mem::take(&mut *lock(&self.shared.dropped));
        for receipt in receipts {
            receipt.acknowledge();
        }
    }
}
