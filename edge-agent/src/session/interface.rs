//! What goes into the session and what comes out of it.

use std::time::Duration;

use schema::message::{Ack, Rejection};
use schema::{Epoch, RangeSet, SeqRange};

use super::Tuning;

/// One batch, numbered within this run of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// What happens to the session.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// The link is up, with nothing in flight.
    Connected,
    /// The link is down; whatever was in flight may or may not have arrived.
    Disconnected,
    /// Rows were accepted: on disk.
    Appended(SeqRange),
    /// The buffer dropped rows by its policy.
    Evicted(&'a RangeSet),
    /// Rows that the bridge had refused are to be offered to it again.
    Requeued(&'a RangeSet),
    /// The batch of [`Effect::Send`] was handed to the link.
    Prepared(Prepared),
    /// The batch of [`Effect::Send`] could not be handed to the link.
    NotSent(BatchId),
    /// The bridge's word.
    Acked(&'a Ack),
    /// The bridge could not read the payload with this digest.
    Refused(u64),
    /// Send nothing until told otherwise; acknowledgements still count.
    Pause,
    /// Send again.
    Resume,
    /// Whether to send everything as fast as the window allows, without linger and pace.
    Flush(bool),
    /// These limits hold from now on.
    Tune(Tuning),
    /// Give up on the acknowledgements that are awaited: send all of it again, and report anew.
    Resync,
    /// The time that [`super::Session::next_wakeup`] named has come.
    Timer,
}

/// How a batch was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Which one.
    pub batch: BatchId,
    /// The rows in its payload, of those asked for. Empty when none was found: nothing was sent.
    pub sent: RangeSet,
    /// Sequences asked for that the buffer does not hold any more.
    pub gone: RangeSet,
    /// The payload's digest.
    pub digest: u64,
    /// The payload's size.
    pub bytes: usize,
}

/// What the session wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read rows, encode and publish them, and answer with [`Input::Prepared`] or
    /// [`Input::NotSent`]. There is one at a time.
    Send(BatchRequest),
    /// A batch is in flight.
    Sent {
        /// Which one.
        batch: BatchId,
        /// Its rows.
        rows: u64,
        /// Its payload's size.
        bytes: usize,
        /// Whether one of its rows was sent before.
        retransmission: bool,
    },
    /// The fate of these rows is known, as far as the bridge has a word in it.
    Settle(Settle),
    /// A batch is settled as a whole.
    Completed {
        /// Which one.
        batch: BatchId,
        /// From publish to acknowledgement.
        latency: Duration,
    },
    /// A payload was refused by the bridge.
    Refused {
        /// Which one.
        batch: BatchId,
        /// Rows in it.
        rows: u64,
    },
    /// Publish the device's side of the ledger.
    Report,
}

/// From which sequences to fill a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRequest {
    /// Its name.
    pub batch: BatchId,
    /// Candidates, to be taken in ascending order; they may be more than fit.
    pub ranges: RangeSet,
    /// Most rows.
    pub rows_max: usize,
    /// Most bytes of payload; a single row always fits.
    pub bytes_max: usize,
}

/// Rows whose fate is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// The session's own: what follows are rows. Another: sequences of that epoch.
    pub epoch: Epoch,
    /// In the database.
    pub committed: RangeSet,
    /// Refused for now: not to be sent until they are offered again.
    pub rejected: Vec<Rejection>,
    /// Evicted or discarded, and now known to the ledger.
    pub evicted: RangeSet,
}

/// What is in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlightCounts {
    /// Batches.
    pub batches: usize,
    /// Their unacknowledged rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: usize,
}

/// What waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitingCounts {
    /// Accepted since the connection came up.
    pub fresh: u64,
    /// Left over from an outage or lost.
    pub history: u64,
    /// Rows of refused payloads, kept apart.
    pub suspect: u64,
}

impl Settle {
    /// The effect, unless there is nothing to settle.
    pub(super) fn effect(
        epoch: Epoch,
        committed: RangeSet,
        rejected: Vec<Rejection>,
        evicted: RangeSet,
    ) -> Option<Effect> {
        if committed.is_empty() && rejected.is_empty() && evicted.is_empty() {
            return None;
        }
        Some(Effect::Settle(Self {
            epoch,
            committed,
            rejected,
            evicted,
        }))
    }
}
