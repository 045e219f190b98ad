//! What became of what a source handed over: a verdict for each sample.

use std::num::NonZeroU32;

use super::shape::Range;
use crate::buffer::{Appended, ReadingError};

/// What became of one sample of an append.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// On disk, under this row number.
    Accepted(u64),
    /// Left out, as the settings want it.
    Dropped(Dropped),
    /// Not taken; the agent has nothing of it.
    Refused(Refusal),
}

/// Why a sample was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A rule drops its sensor.
    Unwanted,
    /// It is within its sensor's dead band.
    DeadBand,
    /// It counts in the aggregate of its window.
    Aggregated,
}

/// Why a sample was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The buffer takes no such reading.
    #[error(transparent)]
    Reading(ReadingError),
    /// Too many come.
    #[error("more than {0} readings in a second: come again later")]
    Rate(NonZeroU32),
    /// Its value is outside of its range, and that is refused.
    #[error("value is outside of {}..={}", .0.min, .0.max)]
    OutOfRange(Range),
    /// Its new name is none.
    #[error("with its prefix or new name: {0}")]
    Name(String),
}

/// Where a sample went.
#[derive(Debug)]
pub(super) enum Place {
    /// Handed over, as the one of this index.
    Handed(usize),
    Dropped(Dropped),
    Refused(Refusal),
}

/// What became of the samples of an append.
#[derive(Debug)]
pub struct Outcome {
    pub(super) appended: Appended,
    pub(super) places: Option<Vec<Place>>,
}

impl Outcome {
    /// Number of readings that are on disk.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.appended.range.map_or(0, |range| range.count())
    }

    /// What became of each of the `count` samples of the append, in their order.
    pub fn verdicts(self, count: usize) -> impl Iterator<Item = Verdict> {
        let Appended { range, refused } = self.appended;
        let mut refused = refused.into_iter().peekable();
        let mut rows = range
            .into_iter()
            .flat_map(|range| range.first()..=range.last());
        let mut handed = 0;
        // What windows said in between stands before the samples that ended them.
        let mut next = move |at: usize| {
            let mut verdict = None;
            while handed <= at {
                verdict = match refused.next_if(|(refused, _)| *refused == handed) {
                    Some((_, error)) => Some(Verdict::Refused(Refusal::Reading(error))),
                    None => rows.next().map(Verdict::Accepted),
                };
                handed += 1;
            }
            verdict
        };
        let mut places = self.places.map(Vec::into_iter);
        (0..count).filter_map(move |at| match &mut places {
            None => next(at),
            Some(places) => match places.next()? {
                Place::Handed(at) => next(at),
                Place::Dropped(why) => Some(Verdict::Dropped(why)),
                Place::Refused(why) => Some(Verdict::Refused(why)),
            },
        })
    }
}

/// Of samples that were handed over as they are.
impl From<Appended> for Outcome {
    fn from(appended: Appended) -> Self {
        Self {
            appended,
            places: None,
        }
    }
}

impl Dropped {
    /// The reason, for a producer.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unwanted => "rule",
            Self::DeadBand => "dead_band",
            Self::Aggregated => "window",
        }
    }
}
