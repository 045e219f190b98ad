//! What a source hands over at once: readings, where the time of each comes from, how long they may wait
//! for others to share their commit, and whether the source keeps what finds no room.
//!
//! A source never makes up a time of its own: a reading whose producer gave none says when it was
//! read, and the commit makes of that a time that no other reading of its sensor has. So a source that is
//! written later cannot forget it.

use std::time::Duration;

use schema::Reading;

/// Longest name of a source that has a position, in bytes.
const SOURCE_BYTES_MAX: usize = 128;

/// Longest place in a position, in bytes: its row fits a page with the name.
const PLACE_BYTES_MAX: usize = 1024;

/// Readings that are handed over together. They share one commit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Append {
    /// The readings, in their order.
    pub samples: Vec<Sample>,
    /// How long they may wait for others.
    pub hold: Hold,
    /// Whether the source keeps a reading that it is refused, and hands it over again. Where older
    /// readings are kept, such a source is refused what finds no room; what other sources hand over
    /// then is accepted and evicted, so that it is accounted for.
    pub can_hold_back: bool,
    /// Where the source has got to with these readings. With one, either all find room or, when the
    /// source can hold back, all are refused; an append without readings keeps the position alone.
    pub position: Option<Position>,
    /// Whether it was handed over before and not taken: it is counted no second time.
    pub is_again: bool,
}

/// Where a source has got to in what it reads, kept in the same commit as the readings before it. A
/// source has one append with a position on its way at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    source: String,
    place: Vec<u8>,
}

/// A reading, and where its time comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The reading.
    pub reading: Reading,
    /// Where its time comes from.
    pub timing: Timing,
}

/// Where the time of a reading comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// From its producer; it stays as it is.
    Given,
    /// From the agent's clock when it was read. The commit stamps it: later than any other of its sensor
    /// that was stamped, see [`schema::stamp`].
    Read,
}

/// How long an append may wait for others to share its commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// As long as [`super::BufferSettings::linger`] says: nobody waits for the answer.
    #[default]
    Linger,
    /// At most this long, and no longer than the linger. Zero commits at once, with what came meanwhile: for
    /// a producer that does nothing until it has its answer.
    AtMost(Duration),
}

impl Position {
    /// A place as the source writes it; `None` when it or the source's name is longer than a row may be.
    #[must_use]
    pub fn new(source: &str, place: Vec<u8>) -> Option<Self> {
        let fits = source.len() <= SOURCE_BYTES_MAX && place.len() <= PLACE_BYTES_MAX;
        fits.then(|| Self {
            source: source.to_owned(),
            place,
        })
    }

    /// Which source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The place.
    #[must_use]
    pub fn place(&self) -> &[u8] {
        &self.place
    }
}

impl Append {
    /// Readings that were read just now, one scan of a source.
    #[must_use]
    pub fn read(readings: Vec<Reading>) -> Self {
        Self::of(readings, Timing::Read)
    }

    fn of(readings: Vec<Reading>, timing: Timing) -> Self {
        let sample = |reading| Sample { reading, timing };
        Self {
            samples: readings.into_iter().map(sample).collect(),
            ..Self::default()
        }
    }
}

impl Hold {
    /// How long to wait, given the buffer's linger.
    pub(super) fn within(self, linger: Duration) -> Duration {
        match self {
            Self::Linger => linger,
            Self::AtMost(hold) => hold.min(linger),
        }
    }
}

/// Readings with the times of their producers.
impl From<Vec<Reading>> for Append {
    fn from(readings: Vec<Reading>) -> Self {
        Self::of(readings, Timing::Given)
    }
}
