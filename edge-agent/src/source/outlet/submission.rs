//! What was handed over and waits for its commit, and what that means for the source and its windows.

use daemon::{Fault, lock};
use schema::SensorName;

use super::{Outlet, Waiting};
use crate::buffer::{Appended, ReadingError};
use crate::ingest::{self, IngestError};
use crate::source::verdict::{Outcome, Place};

/// Samples that were handed over and wait for their commit.
#[derive(Debug)]
pub struct Submission {
    pub(super) outlet: Outlet,
    pub(super) handed: Handed,
    /// Of each sample; `None` when all were handed over as they are.
    pub(super) places: Option<Vec<Place>>,
    /// Names of those handed over, when it matters whether they are accepted.
    pub(super) names: Vec<SensorName>,
    pub(super) windowed: Option<Windowed>,
    pub(super) has_position: bool,
}

/// What windows took in of an append: if that is not committed, it comes again. An append whose source does not wait for its
/// end is taken for committed.
#[derive(Debug)]
pub(super) struct Windowed {
    pub(super) outlet: Outlet,
    pub(super) append: u64,
    pub(super) sensors: Vec<SensorName>,
    pub(super) is_taken: bool,
}

#[derive(Debug)]
pub(super) enum Handed {
    Nothing,
    Buffer(ingest::Handed, Waiting),
    Shown(Appended),
}

impl Drop for Windowed {
    fn drop(&mut self) {
        let Some(shaper) = &self.outlet.0.shaper else {
            return;
        };
        let mut said = Vec::new();
        lock(shaper).confirm(self.append, &self.sensors, self.is_taken, &mut said);
        self.outlet.say(said);
    }
}

impl Submission {
    /// Waits for the commit.
    ///
    /// # Errors
    /// As [`Outlet::append`].
    pub async fn done(self) -> Result<Outcome, IngestError> {
        let Self {
            outlet,
            handed,
            places,
            names,
            mut windowed,
            has_position,
        } = self;
        let shared = &outlet.0;
        let (outcome, readings, is_again) = match handed {
            Handed::Nothing => (Ok(Appended::default()), 0, false),
            Handed::Shown(appended) => (Ok(appended), 0, false),
            Handed::Buffer(handed, _waiting) => {
                let (readings, is_again) = (handed.readings(), handed.is_again());
                (handed.done().await, readings, is_again)
            }
        };
        if let Some(windowed) = &mut windowed {
            windowed.is_taken = outcome.as_ref().is_ok_and(|appended| {
                // With a position, all of it comes again when any of it does.
                !has_position || !appended.is_full()
            });
        }
        drop(windowed);
        let forget = |name: &SensorName| {
            if let Some(shaper) = &shared.shaper {
                lock(shaper).not_accepted(name);
            }
        };
        match outcome {
            Ok(appended) => {
                let accepted = appended.range.map_or(0, |range| range.count());
                shared.report.accepted(accepted, outlet.now_micros() / 1000);
                let refused = appended.refused.iter();
                let news = refused
                    .clone()
                    .filter(|(_, error)| !is_again || *error != ReadingError::BufferFull);
                shared.report.refused(news.count() as u64);
                refused
                    .filter_map(|(at, _)| names.get(*at))
                    .for_each(forget);
                outlet.working();
                Ok(Outcome { appended, places })
            }
            Err(error) => {
                if !is_again || error.fault() != Fault::Retry {
                    shared.report.refused(readings);
                }
                names.iter().for_each(forget);
                Err(error)
            }
        }
    }
}
