//! What was observed, as it is asked for: pages of readings, and aggregates by time bucket. The
//! arithmetic is here, pure and the same for both databases; they bring the rows.
//!
//! ```text
//! page        readings by (time, sensor), behind a cursor that names the last one of the page before
//! aggregates  first reading at or after `from` ─► a window of `limit` buckets from there ─► the
//!             buckets of it that hold readings ─► `next`: the bucket of the first reading behind it
//! ```
//!
//! An answer costs what its window holds, however long the history and however large its holes.

use async_trait::async_trait;
use schema::{DeviceId, ObservedAt, Quality, SensorName};

use super::ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
use super::{Order, StoreError, StoredReading, TelemetryQuery};

/// Most buckets of one answer.
pub const BUCKETS_MAX: usize = 10_000;

/// Queries over what was observed.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// Readings of one device by time.
    async fn telemetry(&self, query: &TelemetryQuery) -> Result<Vec<StoredReading>, StoreError> {
        self.telemetry_page(query, None).await
    }

    /// Readings of one device by time and then by sensor, behind one of them.
    async fn telemetry_page(
        &self,
        query: &TelemetryQuery,
        after: Option<&Cursor>,
    ) -> Result<Vec<StoredReading>, StoreError>;

    /// Numbers of one sensor by time bucket, oldest first.
    async fn aggregates(&self, query: &AggregateQuery) -> Result<Aggregates, StoreError>;
}

/// Names one reading of a device: the last of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// When it was observed.
    pub observed_at: ObservedAt,
    /// The sensor that it is of.
    pub sensor: SensorName,
}

/// How long a bucket is: whole seconds, from one to 366 days. Buckets begin at multiples of it
/// since the Unix epoch, before 1970 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketWidth(u32);

/// Which aggregates to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateQuery {
    /// The device that it is of.
    pub device: DeviceId,
    /// The sensor that it is of.
    pub sensor: SensorName,
    /// Observed at or after. Of a bucket that begins earlier, only the rest counts.
    pub from: ObservedAt,
    /// Observed before.
    pub to: ObservedAt,
    /// How long a bucket is.
    pub bucket: BucketWidth,
    /// At most so many, capped at [`BUCKETS_MAX`].
    pub limit: usize,
    /// The worst quality that counts.
    pub worst: Quality,
}

/// Buckets, and where to go on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aggregates {
    /// Those that hold a number, by time.
    pub buckets: Vec<Bucket>,
    /// Where the next answer begins, when there are more readings. There may be some although
    /// this answer is empty: of a text, or of a quality that does not count.
    pub next: Option<ObservedAt>,
}

/// What a sensor's numbers were within one bucket. A whole number counts as the nearest f64, false
/// as 0 and true as 1; texts do not count. No store holds NaN or infinities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// When it begins.
    pub start: ObservedAt,
    /// Readings that hold a number.
    pub count: u64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// Their mean, rounded as sums of f64 are.
    pub mean: f64,
    /// The earliest.
    pub first: f64,
    /// The latest.
    pub last: f64,
}

impl BucketWidth {
    /// The longest, in seconds: 366 days.
    pub const SECONDS_MAX: u64 = 366 * 86_400;

    /// From seconds; `None` for 0, and for more than 366 days.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Option<Self> {
        let narrow = u32::try_from(seconds).ok()?;
        (1..=Self::SECONDS_MAX)
            .contains(&seconds)
            .then_some(Self(narrow))
    }

    /// The width in seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        i64::from(self.0)
    }

    /// The width in microseconds.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.seconds() * 1_000_000
    }

    /// The beginning of the bucket that a time is in.
    #[must_use]
    pub fn start_of(self, at: ObservedAt) -> ObservedAt {
        let micros = at.clamp(OBSERVED_AT_MIN, OBSERVED_AT_MAX).micros();
        // Clamped, a multiple below it is far from the end of the range.
        ObservedAt::from_micros(micros.div_euclid(self.micros()) * self.micros())
    }
}

/// Where the window of one answer ends, whose first reading was observed at `first`.
pub(crate) fn window_end(first: ObservedAt, query: &AggregateQuery) -> ObservedAt {
    let limit = i64::try_from(query.limit.min(BUCKETS_MAX)).unwrap_or(i64::MAX);
    let span = query.bucket.micros().saturating_mul(limit);
    let end = query.bucket.start_of(first).micros().saturating_add(span);
    ObservedAt::from_micros(end).min(query.to)
}

/// What a database adds up for one mean. Finite numbers may have a sum that is not, and PostgreSQL
/// makes an error of that: very large ones are summed apart, divided by 2^40.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sums {
    pub(crate) count: u64,
    pub(crate) small: f64,
    pub(crate) big: f64,
}

/// From here on numbers are big; as it stands in SQL.
macro_rules! big {
    () => {
        "1e290"
    };
}
pub(crate) use big;

/// 2^-40, exactly; as it stands in SQL.
macro_rules! scale {
    () => {
        "9.094947017729282379150390625e-13"
    };
}
pub(crate) use scale;

impl Sums {
    /// The mean of numbers between `min` and `max`: never outside of them, however it is rounded.
    pub(crate) fn mean(self, min: f64, max: f64) -> f64 {
        let count = self.count as f64;
        let mean = self.small / count + self.big / count * (1u64 << 40) as f64;
        // Written so that NaN, which no row holds, does not panic as it would in `clamp`.
        mean.max(min).min(max)
    }
}

/// For each sensor where its part of a page begins, oldest first, or ends, newest first: what the
/// cursor's reading and those before it leave.
pub(crate) fn bound_of(name: &str, query: &TelemetryQuery, after: Option<&Cursor>) -> ObservedAt {
    let Some(Cursor {
        observed_at,
        sensor,
    }) = after
    else {
        return match query.order {
            Order::OldestFirst => query.from,
            Order::NewestFirst => query.to,
        };
    };
    let behind = ObservedAt::from_micros(observed_at.micros().saturating_add(1));
    match query.order {
        Order::OldestFirst if name <= sensor.as_str() => query.from.max(behind),
        Order::OldestFirst => query.from.max(*observed_at),
        Order::NewestFirst if name >= sensor.as_str() => query.to.min(*observed_at),
        Order::NewestFirst => query.to.min(behind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn width(seconds: u64) -> BucketWidth {
        BucketWidth::from_seconds(seconds).unwrap()
    }

    #[test]
    fn a_bucket_has_from_a_second_to_366_days() {
        let fits = |seconds| BucketWidth::from_seconds(seconds).is_some();
        assert!(!fits(0) && fits(1) && fits(2));
        let most = 366 * 86_400;
        assert!(fits(most - 1) && fits(most) && !fits(most + 1) && !fits(u64::MAX));
    }

    #[test]
    fn buckets_are_aligned_to_the_unix_epoch_before_it_too() {
        let start = |micros| width(60).start_of(ObservedAt::from_micros(micros)).micros();
        for (micros, expected) in [
            (0, 0),
            (59_999_999, 0),
            (60_000_000, 60_000_000),
            (-1, -60_000_000),
            (-60_000_000, -60_000_000),
            (-60_000_001, -120_000_000),
        ] {
            assert_eq!(start(micros), expected, "{micros}");
        }
    }

    #[test]
    fn means_of_the_largest_numbers_are_finite() {
        let sums = |numbers: &[f64]| {
            let big: f64 = big!().parse().unwrap();
            let scale: f64 = scale!().parse().unwrap();
            assert_eq!(scale * (1u64 << 40) as f64, 1.0);
            let (large, small): (Vec<f64>, Vec<f64>) =
                numbers.iter().partition(|number| number.abs() >= big);
            Sums {
                count: numbers.len() as u64,
                small: small.iter().sum(),
                big: large.iter().map(|number| number * scale).sum(),
            }
        };
        let max = f64::MAX;
        assert_eq!(sums(&[max, max, max]).mean(max, max), max);
        assert_eq!(sums(&[max, -max]).mean(-max, max), 0.0);
        assert_eq!(sums(&[5e-324, 5e-324]).mean(5e-324, 5e-324), 5e-324);
        assert_eq!(sums(&[1.0, 2.0, 6.0]).mean(1.0, 6.0), 3.0);
    }

    proptest! {
        #[test]
        fn a_time_is_in_its_bucket(micros in any::<i64>(), seconds in 1..=BucketWidth::SECONDS_MAX) {
            let at = ObservedAt::from_micros(micros).clamp(OBSERVED_AT_MIN, OBSERVED_AT_MAX);
            let width = width(seconds);
            let start = width.start_of(at).micros();
            prop_assert_eq!(start.rem_euclid(width.micros()), 0);
            prop_assert!(start <= at.micros() && at.micros() - start < width.micros());
        }

        /// Readings at few times and of few sensors, so that pages cut within an instant.
        #[test]
        fn bounds_leave_exactly_what_is_behind_the_cursor(
            time in -3..3i64, name in 0..4usize, from in -3..3i64, to in -3..4i64, newest in any::<bool>(),
        ) {
            const NAMES: [&str; 4] = ["a", "b", "c", "d"];
            let order = if newest { Order::NewestFirst } else { Order::OldestFirst };
            let query = TelemetryQuery {
                device: "d".parse().unwrap(),
                sensor: None,
                from: ObservedAt::from_micros(from),
                to: ObservedAt::from_micros(to),
                limit: 1,
                order,
            };
            let cursor = Cursor {
                observed_at: ObservedAt::from_micros(time),
                sensor: NAMES[name].parse().unwrap(),
            };
            for of in NAMES {
                let bound = bound_of(of, &query, Some(&cursor)).micros();
                for at in -4..4i64 {
                    let kept = if newest { at >= from && at < bound } else { at >= bound && at < to };
                    let is_behind = if newest { (at, of) < (time, NAMES[name]) } else { (at, of) > (time, NAMES[name]) };
                    prop_assert_eq!(kept, is_behind && at >= from && at < to);
                }
            }
        }
    }
}
