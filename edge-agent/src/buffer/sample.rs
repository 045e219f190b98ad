//! What is in quarantine for one reason, offered again without a request: a few rows of it, or all.

use schema::message::RejectReason;
use schema::{RangeSet, SeqRange};

use super::error::BufferError;
use super::handle::Buffer;

impl Buffer {
    /// Offers rows again that are in quarantine for this reason, at most `rows_max`; which ones depends on
    /// `chance`. Not those that wait to be offered anyway, and none of a start whose clock is shown wrong:
    /// no bridge mends that, and it may be one that would take them. Returns the rows.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn offer_sample(
        &self,
        reason: RejectReason,
        rows_max: u64,
        chance: u64,
    ) -> Result<RangeSet, BufferError> {
        self.run(async move |writer| {
            let mut rows = writer.state.epochs.in_quarantine(Some(&[reason]));
            rows.subtract(&writer.state.epochs.shown_wrong());
            rows.subtract(&writer.state.epochs.again);
            let rows = sample(&rows, rows_max, chance);
            writer.requeue_rows(&rows).await;
            Ok(rows)
        })
        .await
    }
}

/// At most so many numbers of a set, evenly over all of it.
fn sample(set: &RangeSet, most: u64, chance: u64) -> RangeSet {
    let count = set.count();
    if count <= most {
        return set.clone();
    }
    let apart = count / most.max(1);
    let places = (0..most).map(|n| (chance % count + n * apart) % count);
    places.filter_map(|place| nth(set, place)).collect()
}

/// The number at a place of a set, by size, from 0.
fn nth(set: &RangeSet, place: u64) -> Option<SeqRange> {
    let mut before = 0;
    for range in set.iter() {
        if place < before + range.count() {
            return SeqRange::one(range.first() + (place - before));
        }
        before += range.count();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_turn_and_a_sample_is_spread_over_all() {
        let set: RangeSet = [(3, 5), (9, 9), (20, 30)]
            .into_iter()
            .filter_map(|(first, last)| SeqRange::new(first, last))
            .collect();
        let mut seen = RangeSet::new();
        for chance in 0..15 {
            let few = sample(&set, 4, chance);
            assert_eq!(few.count(), 4, "{few:?}");
            assert_eq!(few.intersection(&set), few);
            let thirds = few.iter().map(|range| range.count()).max();
            assert_eq!(thirds, Some(1), "{few:?}");
            seen.merge(&few);
        }
        assert_eq!(seen, set);
        for most in [15, 16, u64::MAX] {
            assert_eq!(sample(&set, most, 7), set);
        }
        assert_eq!(sample(&set, 1, u64::MAX).count(), 1);
        assert!(sample(&set, 0, 7).is_empty());
        assert!(sample(&RangeSet::new(), 4, 7).is_empty());
    }
}
