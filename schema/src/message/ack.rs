//! `down/ack`: what the database has, as the bridge says. The only message that frees a reading
//! on the edge, or lets it forget what it said of a command.

use serde::{Deserialize, Serialize};

use super::{Noted, NotedSensor};
use crate::{Epoch, SeqRange};

/// What the bridge says on `down/ack`. Append only: readers pass over what is newer than they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Downlink {
    /// Ranges that are settled, or asked for again.
    Ack(Ack),
    /// A payload that could not be read at all, so that no sequence is known.
    Refused(Refusal),
    /// Words on commands that need not be repeated; at most
    /// [`NOTED_MAX`](crate::limits::NOTED_MAX).
    Noted(Vec<Noted>),
    /// Which bridge answers, and what time it is. Since 0.2, to agents that said that they are at
    /// least as new.
    Hello(Hello),
    /// What became of declarations of sensors; at most
    /// [`SENSORS_MESSAGE_MAX`](crate::limits::SENSORS_MESSAGE_MAX). Only to devices that declared them.
    Sensors(Vec<NotedSensor>),
}

/// The answer to a birth, and to a [`TimeRequest`](super::TimeRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The birth's session, or the request's nonce.
    pub nonce: u64,
    /// The database's time, milliseconds since the Unix epoch.
    pub bridge_time_ms: i64,
    /// What the bridge understands: [`PROTOCOL`](super::PROTOCOL) of its build.
    pub protocol: u16,
}

/// Ranges of one epoch. Sent after the commit that they speak of; repeated for a retransmission
/// without a second write. Losing one costs a retransmission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The bridge's wall clock, milliseconds since the Unix epoch.
    pub bridge_time_ms: i64,
    /// The epoch whose sequences follow.
    pub epoch: Epoch,
    /// In the database.
    pub committed: Vec<SeqRange>,
    /// Given up by the device and reported, as evicted or as discarded, and in the ledger as such.
    pub evicted: Vec<SeqRange>,
    /// Refused for now, and in the ledger as quarantined. A device keeps the rows, and may offer
    /// them again; one of 0.1 frees them.
    pub rejected: Vec<Rejection>,
    /// Neither of the three and overdue: the device sends again what it has, and reports the rest.
    pub resync: Vec<SeqRange>,
}

/// Readings refused for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Which readings.
    pub range: SeqRange,
    /// Why they are refused.
    pub reason: RejectReason,
}

/// Why a reading is refused. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RejectReason {
    /// NaN or an infinity.
    NotFinite,
    /// Text over 1 KiB, or with NUL.
    BadText,
    /// Observed further in the past than the bridge takes.
    TooOld,
    /// Observed, or stamped, further in the future than the bridge takes.
    TooNew,
    /// A number that no store can hold: sequence 0, or over 63 bits.
    OutOfRange,
    /// The payload as a whole could not be read, even alone.
    Undecodable,
    /// The sequence is committed with other content: two buffers share one epoch.
    EpochReuse,
    /// The database refused this reading, alone and for good.
    Unstorable,
}

/// A payload that could not be read. The device finds it by its digest among those in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// [`payload_digest`] of the whole payload.
    pub payload_digest: u64,
    /// What the reader said, for the device's log.
    pub reason: String,
}

impl RejectReason {
    /// All reasons, in the order of their numbers on the wire.
    pub const ALL: [Self; 8] = [
        Self::NotFinite,
        Self::BadText,
        Self::TooOld,
        Self::TooNew,
        Self::OutOfRange,
        Self::Undecodable,
        Self::EpochReuse,
        Self::Unstorable,
    ];

    /// The reason of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The reason as it stands in tables, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::BadText => "bad_text",
            Self::TooOld => "too_old",
            Self::TooNew => "too_new",
            Self::OutOfRange => "out_of_range",
            Self::Undecodable => "undecodable",
            Self::EpochReuse => "epoch_reuse",
            Self::Unstorable => "unstorable",
        }
    }
}

/// XXH3 over the payload, 64 bits. It tells payloads in flight apart; it is no protection against
/// a forger, whom mutual TLS keeps out.
#[must_use]
pub fn payload_digest(payload: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(payload)
}
