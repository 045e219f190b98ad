//! Rollups: what the numbers of a sensor were within each hour, and each minute of hours that hold many. Pure, but for the
//! trait; the statements are each database's own.
//!
//! ```text
//!            rolled_from                              rolled_until                 now
//! ───────────────┼────────────────────────────────────────┼─────────────────────────┼──►
//!  readings only │ each hour has its rollups, or a mark    │ readings only
//! ```
//!
//! Invariant: an hour between the two that has no mark is in its rollups exactly as in the readings. Whoever writes a
//! reading there marks the hour in the same commit; whoever computes the hour removes the mark that it began with. So an
//! answer is exact at any moment, whoever is killed, and however far behind the computing is: what has no
//! rollups is added up from the readings ([`pieces`]). [Why so](../../../docs/decisions/0028-rollups.md).

pub(crate) mod part;
pub(crate) mod pieces;

use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, ObservedAt};

use super::StoreError;

/// An hour in microseconds.
pub(crate) const HOUR: i64 = 3_600_000_000;

/// A minute in microseconds.
pub(crate) const MINUTE: i64 = 60_000_000;

/// An hour is over for so long before it is given to rollups: what comes until then needs no mark.
pub const SETTLES: Duration = Duration::from_secs(600);

/// Who was heard of within this time is expected to write again.
pub(crate) const ACTIVE: Duration = Duration::from_secs(3_600);

/// Devices that one call of [`RollupStore::advance_rollups`] looks at.
pub const ADVANCE_DEVICES: usize = 500;

/// The part of a store that keeps rollups.
#[async_trait]
pub trait RollupStore: Send + Sync {
    /// Gives hours that are over to rollups: of the next [`ADVANCE_DEVICES`] devices behind `after`, of each as many as one
    /// transaction may. Safe with several bridges, and when it ends anywhere.
    async fn advance_rollups(
        &self,
        now: ReceivedAt,
        after: Option<&DeviceId>,
    ) -> Result<Advanced, StoreError>;

    /// Computes some of the hours that are marked, and that nobody has marked again for `rest`. Safe with several bridges,
    /// and when it ends anywhere.
    async fn compute_rollups(&self, rest: Duration) -> Result<Computed, StoreError>;

    /// How long the longest waiting hour has been marked; nothing when none is.
    async fn rollup_lag(&self) -> Result<Option<Duration>, StoreError>;
}

/// What one call of [`RollupStore::advance_rollups`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advanced {
    /// Devices of which hours were given to rollups, or that were made ready for it.
    pub devices: u64,
    /// Some of them have more.
    pub has_more: bool,
    /// Behind which device to go on; `None` when all were looked at.
    pub next: Option<DeviceId>,
}

/// What one call of [`RollupStore::compute_rollups`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Computed {
    /// Hours of a sensor that were computed.
    pub hours: u64,
    /// There may be more to compute at once.
    pub has_more: bool,
}

/// The beginning of the hour that a time is in, in microseconds.
pub(crate) const fn hour_of(micros: i64) -> i64 {
    micros.div_euclid(HOUR) * HOUR
}

/// The first hour that begins at a time or later, in microseconds.
pub(crate) const fn hour_from(micros: i64) -> i64 {
    let hour = hour_of(micros);
    match hour == micros {
        true => hour,
        false => hour.saturating_add(HOUR),
    }
}

/// The first hour of which nothing is too old by now.
pub(crate) fn kept_from(now: ReceivedAt, retention: Duration) -> ObservedAt {
    ObservedAt::from_micros(hour_from(now.minus(retention).micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_begin_at_multiples_before_1970_too() {
        for (micros, of, from) in [
            (0, 0, 0),
            (1, 0, HOUR),
            (HOUR - 1, 0, HOUR),
            (HOUR, HOUR, HOUR),
            (-1, -HOUR, 0),
            (-HOUR, -HOUR, -HOUR),
            (-HOUR - 1, -2 * HOUR, -HOUR),
        ] {
            assert_eq!((hour_of(micros), hour_from(micros)), (of, from), "{micros}");
        }
    }
}
