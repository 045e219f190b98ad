//! What goes into the session and what comes out of it.

use std::time::Duration;

use schema::message::{Ack, Rejection};
use schema::{Epoch, RangeSet, SeqRange};

use super::Tuning;

/// One batch, numbered within this run of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// The session's inputs.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// The link is up, with nothing in flight.
    Connected,
    /// The link is down; whatever was in flight may or may not have arrived.
    Disconnected,
    /// Rows were accepted: on disk.
    Appended(SeqRange),
    /// Rows were accepted of which some go before all others, and some with the history.
    Ranked {
        /// All of them.
        range: SeqRange,
        /// Those of alarms; rows outside of the range are of no account.
        alarms: &'a RangeSet,
        /// Those that can wait.
        history: &'a RangeSet,
    },
    /// The buffer dropped rows by its policy.
    Evicted(&'a RangeSet),
    /// Rows that the bridge had refused are to be offered to it again.
    Requeued(&'a RangeSet),
    /// The batch of [`Effect::Send`] was handed to the link.
    Prepared(Prepared),
    /// The batch of [`Effect::Send`] could not be handed to the link.
    NotSent(BatchId),
    /// An acknowledgement came, by row numbers under the session's epoch.
    Acked(&'a Ack),
    /// The bridge could not read the payload with this digest.
    Refused(u64),
    /// Send nothing until [`Self::Resume`] or [`Self::AlarmsOnly`]; acknowledgements still count.
    Pause,
    /// Send alarms alone until [`Self::Resume`] or [`Self::Pause`], again where they were lost; acknowledgements still count.
    AlarmsOnly,
    /// Send everything.
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
    /// The batch of the request.
    pub batch: BatchId,
    /// The rows in its payload, of those requested. Empty when none was found: nothing was sent.
    pub sent: RangeSet,
    /// Requested sequences that the buffer does not hold any more.
    pub gone: RangeSet,
    /// The payload's digest, as a refusal names it; 0 without a payload.
    pub digest: u64,
    /// The payload's size in bytes.
    pub bytes: usize,
}

/// What the session wants to have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read rows, encode and publish them, and answer with [`Input::Prepared`] or
    /// [`Input::NotSent`]. There is one at a time.
    Send(BatchRequest),
    /// A batch is in flight.
    Sent {
        /// The batch that was sent.
        batch: BatchId,
        /// Its number of rows.
        rows: u64,
        /// Its payload's size in bytes.
        bytes: usize,
        /// Whether one of its rows was sent before.
        retransmission: bool,
    },
    /// The fate of these rows is known, as far as the bridge decides it.
    Settle(Settle),
    /// A batch is settled as a whole.
    Completed {
        /// The batch that is settled.
        batch: BatchId,
        /// From publish to acknowledgement.
        latency: Duration,
    },
    /// A payload was refused by the bridge.
    Refused {
        /// The batch that was refused.
        batch: BatchId,
        /// The rows in it.
        rows: u64,
    },
    /// Publish the device's side of the ledger.
    Report,
}

/// What the driver is to make a batch of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRequest {
    /// The batch's id, to answer with.
    pub batch: BatchId,
    /// Candidate sequences, to be taken in ascending order; they may be more than fit.
    pub ranges: RangeSet,
    /// The most rows in the batch.
    pub rows_max: usize,
    /// The most bytes of its payload; a single row always fits.
    pub bytes_max: usize,
}

/// Rows whose fate is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// With the session's own epoch, what follows are row numbers; with another, sequences of that epoch.
    pub epoch: Epoch,
    /// Rows that the database has committed.
    pub committed: RangeSet,
    /// Rows that the bridge refused for now: not to be sent until they are offered again.
    pub rejected: Vec<Rejection>,
    /// Rows evicted or discarded, which the ledger now knows of.
    pub evicted: RangeSet,
}

/// Counts of what is in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlightCounts {
    /// Number of unacknowledged batches.
    pub batches: usize,
    /// Their rows that are not acknowledged.
    pub rows: u64,
    /// Their payloads' bytes.
    pub bytes: usize,
}

/// Counts of rows that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitingCounts {
    /// Rows accepted since the connection came up.
    pub fresh: u64,
    /// Rows left over from an outage, or lost on the way.
    pub history: u64,
    /// Rows of refused payloads, kept apart.
    pub suspect: u64,
    /// Rows that go before all others.
    pub alarm: u64,
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
