//! The clocks of the file's starts: whose rows are held until the time is known, and by how much the
//! others are moved when they leave.
//!
//! Rows stand in the file with the stamps that they got, on the axis of their start. What is known of
//! that axis later is one number beside the epoch, the shift, written in one commit before the first of
//! its rows is offered; it is added where rows become those of a batch. So mending is one small write
//! however many rows there are, nothing is half mended after a crash, and a row that has been in a batch
//! never changes.

use std::sync::PoisonError;

use schema::message::RejectReason;
use schema::{Epoch, Hlc, HlcClock, ObservedAt, Quality, RangeSet};
use tracing::warn;

use crate::clock::core::{HeldStart, Release, StartClock};

use super::commit::Settle;
use super::error::BufferError;
use super::handle::Buffer;
use super::open;
use super::row::Key;

/// What is known of the clocks of earlier starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starts {
    /// Those whose rows are held, oldest first.
    pub held: Vec<(Epoch, HeldStart)>,
    /// The first row that is held; all behind it are, too.
    pub held_from: Option<u64>,
    /// The boot of the last one that is not held, and until when it lasted, in its right time.
    pub before: Option<(u64, i64)>,
    /// The newest start that knew the time.
    pub newest: Option<StartClock>,
}

/// Quarantined because of their times: a clock that is known now may mend that.
const OF_TIMES: [RejectReason; 2] = [RejectReason::TooNew, RejectReason::TooOld];

/// A row's stamps and quality as they leave.
pub(super) fn leaving(
    clock: Option<&StartClock>,
    key: &Key,
    quality: Quality,
) -> (Hlc, ObservedAt, Quality) {
    let (shift, quality) = match clock.map(|clock| clock.release) {
        None | Some(Release::Held) => (0, quality),
        Some(Release::Shifted(shift)) => (shift, quality),
        Some(Release::Uncertain(shift)) => (shift, quality.max(Quality::Uncertain)),
        Some(Release::Quarantined(_)) => (0, quality.max(Quality::Uncertain)),
    };
    let observed_at = match key.is_given {
        true => key.observed_at,
        false => ObservedAt::from_micros(key.observed_at.micros().saturating_add(shift)),
    };
    (shifted(key.hlc, shift), observed_at, quality)
}

/// All stamps of an epoch move by the same whole milliseconds: their order stays. Those that would
/// come to stand before 1970 keep it by their counter alone.
fn shifted(hlc: Hlc, shift: i64) -> Hlc {
    let by = shift.div_euclid(1000).saturating_mul(1 << 16);
    let bits = hlc.bits().cast_signed().saturating_add(by).max(0);
    Hlc::from_bits(bits.unsigned_abs())
}

impl Buffer {
    /// Decides what becomes of the rows of starts that were held, in one commit that is on disk when
    /// this returns, and keeps what is known of this start's clock. With news of the time, what was
    /// refused because of its time is offered again.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub async fn release(
        &self,
        verdicts: Vec<(Epoch, Release)>,
        current: StartClock,
        is_news: bool,
    ) -> Result<(), BufferError> {
        self.run(async move |writer| {
            let before = writer.state.epochs.clocks();
            let set_aside = writer.state.epochs.set_clocks(&verdicts, current);
            // The clock of an epoch without rows is written with its first.
            if !verdicts.is_empty() || writer.state.epochs.current().account.last_seq() > 0 {
                let now_ms = writer.clock.now_ms();
                // A full disk has the reserve for this.
                let kept = writer.commit_with_reserve(&[], Settle::Rows, now_ms).await;
                if let Err(error) = kept {
                    writer.state.epochs.restore_clocks(&before);
                    writer.state.epochs.requeue(&set_aside);
                    writer.has_trouble(&error);
                    return Err(error);
                }
            }
            if !set_aside.is_empty() {
                let none = RangeSet::new();
                writer.settled(none.clone(), none, set_aside).await;
            }
            if is_news {
                let mut rows = writer.state.epochs.in_quarantine(Some(&OF_TIMES));
                rows.subtract(&writer.state.epochs.shown_wrong());
                writer.requeue_rows(&rows).await;
            }
            writer.publish_progress();
            Ok(())
        })
        .await
    }

    /// Begins a new epoch while running: readings that come from now on are in an order of their own,
    /// which `start` knows the clock of. One that has no rows is used anew. Nothing is written before the
    /// first of its rows.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn begin_again(&self, start: StartClock) -> Result<(), BufferError> {
        let begun = self.run(async move |writer| {
            // What was handed over before stays in the epoch that ends.
            writer.commit_waiting().await;
            let epochs = &mut writer.state.epochs;
            let begun = epochs.begin_again(open::new_epoch(), start, &mut writer.state.ids);
            if epochs.current().account.last_seq() == 0 {
                // Its order depends on nothing that was before it.
                writer.state.clock = HlcClock::default();
            } else {
                warn!(
                    "this epoch goes on, and its order with the latest stamp: too many wait to be settled, or its clock is not kept yet"
                );
            }
            writer.publish_progress();
            Ok(begun)
        });
        if let Some([ended, begun]) = begun.await? {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            let before = runs.iter_mut().find(|run| run.epoch == ended.epoch);
            before.into_iter().for_each(|run| *run = ended);
            runs.push(begun);
            drop(runs);
            self.epoch.send_replace(begun.epoch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn key(is_given: bool) -> Key {
        Key {
            seq: 1,
            hlc: Hlc::new(1_000_000_000, 7),
            observed_at: ObservedAt::from_micros(1_000_000_000_123),
            sensor: 1,
            is_given,
            has_position: false,
        }
    }

    fn clock(release: Release) -> StartClock {
        StartClock {
            boot: 1,
            began: 0,
            axis: 0,
            wall: 0,
            known: None,
            release,
        }
    }

    #[test]
    fn stamps_move_and_times_of_producers_stay() {
        let start = clock(Release::Shifted(DAY + 999));
        let (hlc, observed_at, quality) = leaving(Some(&start), &key(false), Quality::Good);
        assert_eq!(hlc, Hlc::new(1_000_000_000 + 86_400_000, 7));
        assert_eq!(observed_at.micros(), 1_000_000_000_123 + DAY + 999);
        assert_eq!(quality, Quality::Good);
        let (hlc, observed_at, quality) = leaving(Some(&start), &key(true), Quality::Bad);
        assert_eq!(hlc.millis(), 1_000_000_000 + 86_400_000);
        assert_eq!(observed_at, key(true).observed_at);
        assert_eq!(quality, Quality::Bad);
        let uncertain = clock(Release::Uncertain(-DAY));
        let (hlc, _, quality) = leaving(Some(&uncertain), &key(false), Quality::Good);
        assert_eq!(hlc.millis(), 1_000_000_000 - 86_400_000);
        assert_eq!(quality, Quality::Uncertain);
        let (hlc, observed_at, quality) = leaving(None, &key(false), Quality::Good);
        assert_eq!((hlc, observed_at), (key(false).hlc, key(false).observed_at));
        assert_eq!(quality, Quality::Good);
        // No number of a damaged file is too large.
        for shift in [i64::MIN, i64::MAX] {
            leaving(
                Some(&clock(Release::Shifted(shift))),
                &key(false),
                Quality::Good,
            );
        }
    }
}
