//! Nodes that may answer with what was true a moment ago, and how long ago that may be.
//!
//! A bridge that reads from replicas touches one row of the primary now and then. What a replica
//! shows of that row bounds the age of everything else that it shows: a replica that saw a beat
//! made at noon knows all that was committed until noon. It is used until that is `stale_max` ago,
//! and asked again when half of that is over. A replica that falls behind, or is gone, is passed
//! over: the primary answers.
//!
//! The bound compares the clocks of two servers of one cluster, and is as exact as they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

/// What every bridge writes on the primary.
pub(super) const BEAT: &str = "INSERT INTO replica_heartbeat (id, beat_at) \
     VALUES (1, clock_timestamp()) \
     ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at \
     WHERE replica_heartbeat.beat_at < excluded.beat_at";

/// How old the beat is that this server shows, in milliseconds.
const AGE: &str = "SELECT CAST(1000 * extract(epoch FROM clock_timestamp() - beat_at) AS INT8) \
     FROM replica_heartbeat WHERE id = 1";

/// How old answers may be, and when the row was touched last.
#[derive(Debug)]
pub(super) struct Staleness {
    max_ms: u64,
    /// When the next beat is due, in the cluster's milliseconds.
    beat_due_ms: AtomicU64,
}

/// Until when one replica may be used, in the cluster's milliseconds.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    until_ms: AtomicU64,
}

impl Staleness {
    pub(super) fn new(max: Duration) -> Self {
        Self {
            max_ms: u64::try_from(max.as_millis()).unwrap_or(u64::MAX),
            beat_due_ms: AtomicU64::new(0),
        }
    }

    /// Whether the caller is the one who is to beat now.
    pub(super) fn is_beat_due(&self, now_ms: u64) -> bool {
        let due = self.beat_due_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(self.max_ms / 4);
        now_ms >= due
            && self
                .beat_due_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Freshness {
    /// Whether it is time to look again.
    pub(super) fn is_doubtful(&self, staleness: &Staleness, now_ms: u64) -> bool {
        self.until_ms.load(Ordering::Relaxed) < now_ms.saturating_add(staleness.max_ms / 2)
    }

    pub(super) fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// The replica showed a beat of this age, or none.
    pub(super) fn saw(&self, age_ms: Option<u64>, staleness: &Staleness, now_ms: u64) {
        let left = age_ms.map_or(0, |age| staleness.max_ms.saturating_sub(age));
        let until = if left == 0 {
            0
        } else {
            now_ms.saturating_add(left)
        };
        self.until_ms.store(until, Ordering::Relaxed);
    }
}

/// The age of the last beat that this connection's server shows, in milliseconds.
pub(super) async fn age(connection: &mut PgConnection) -> Result<Option<u64>, sqlx::Error> {
    let Some(row) = connection.fetch_optional(sqlx::query(AGE)).await? else {
        return Ok(None);
    };
    // A replica whose clock is behind the primary's shows a beat from the future.
    let age: i64 = row.try_get(0)?;
    Ok(Some(age.max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_used_until_its_beat_is_too_old() {
        let staleness = Staleness::new(Duration::from_secs(10));
        let replica = Freshness::default();
        assert!(replica.is_doubtful(&staleness, 0) && !replica.holds(0));
        replica.saw(Some(4_000), &staleness, 1_000);
        assert!(replica.holds(6_999) && !replica.holds(7_000));
        // Half of ten seconds before the end.
        assert!(!replica.is_doubtful(&staleness, 2_000));
        assert!(replica.is_doubtful(&staleness, 2_001));
        for too_old in [Some(10_000), Some(u64::MAX), None] {
            replica.saw(too_old, &staleness, 1_000);
            assert!(!replica.holds(1_000), "{too_old:?}");
        }
        replica.saw(Some(9_999), &staleness, 1_000);
        assert!(replica.holds(1_000));
    }

    #[test]
    fn one_beats_in_a_quarter_of_the_bound() {
        let staleness = Staleness::new(Duration::from_secs(8));
        assert!(staleness.is_beat_due(0));
        assert!(!staleness.is_beat_due(0));
        assert!(!staleness.is_beat_due(1_999));
        assert!(staleness.is_beat_due(2_000));
    }
}
