//! A page of readings over many sensors: which parts of which sensors are read for it. Pure, the same for both databases.
//!
//! The key is (device, sensor, time), so readings of all sensors by time are merged. Reading a whole page of each would
//! cost sensors × limit rows. So each is asked for its share first, and only those go on that may have something in
//! front of the last reading of the page, as it is known so far:
//!
//! ```text
//! sensor a  ■■■■│            its share was all that is before ┊: done
//! sensor b  ■ ■ ■ ■ ┊        ends behind ┊: done
//! sensor c  ■■■■→   ┊        has more before ┊, the last reading of the page: asked again, up to there
//! ```
//!
//! What was found tells how dense a sensor's readings are. So a round asks up to a time before which there is about what the
//! page still lacks, and never beyond ┊, which only comes nearer. So a page reads a few times its own length and once each
//! sensor, however many there are and however their readings are spread.

use std::collections::HashMap;

use schema::ObservedAt;

use super::history::{Cursor, bound_of};
use super::ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
use super::{Order, StoredReading, TelemetryQuery};

/// Rounds after which each sensor is asked for all that the page lacks, and so for the last time.
const ROUNDS_MAX: u32 = 8;

/// A page under way.
#[derive(Debug)]
pub(crate) struct Page {
    order: Order,
    limit: usize,
    sensors: Vec<Sensor>,
    /// In the order of the page, as many as it may have.
    found: Vec<StoredReading>,
    /// The last rank that is of interest.
    last: i64,
    rounds: u32,
}

/// What is still to be read of a sensor.
#[derive(Debug)]
struct Sensor {
    name: String,
    /// Its readings before this rank are found.
    from: i64,
    /// The rank of the first one that was found, and how many were.
    first: Option<i64>,
    rows: usize,
}

/// What is to be read next: of each of some sensors, from its own bound to a common end, the first rows of each in the
/// order of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) names: Vec<String>,
    /// Oldest first: observed at or after. Newest first: observed before.
    pub(crate) bounds: Vec<ObservedAt>,
    /// Oldest first: observed before. Newest first: observed at or after.
    pub(crate) end: ObservedAt,
    /// So many rows of each.
    pub(crate) rows: usize,
}

impl Page {
    /// Of sensors by name, behind a cursor.
    pub(crate) fn new(query: &TelemetryQuery, after: Option<&Cursor>, names: Vec<String>) -> Self {
        let order = query.order;
        let sensors = names.into_iter().map(|name| Sensor {
            from: first_rank(order, bound_of(&name, query, after)),
            name,
            first: None,
            rows: 0,
        });
        Self {
            order,
            limit: super::sql::limited(query.limit),
            sensors: sensors.collect(),
            found: Vec::new(),
            last: match order {
                Order::OldestFirst => storable(query.to) - 1,
                Order::NewestFirst => -storable(query.from),
            },
            rounds: 0,
        }
    }

    /// What is to be read next, for [`Self::take`]; `None` when the page is whole.
    pub(crate) fn next(&mut self) -> Option<Ask> {
        let order = self.order;
        let mut open: Vec<&Sensor> = self.sensors.iter().collect();
        open.retain(|of| of.from <= self.last);
        let begin = open.iter().map(|of| of.from).min()?;
        let found = &self.found;
        let whole = found.partition_point(|of| rank(order, of.observed_at) < begin);
        let lacks = self.limit.saturating_sub(whole);
        if lacks == 0 {
            return None;
        }
        let mut end_of_all = self.last + 1;
        if (1..ROUNDS_MAX).contains(&self.rounds) {
            let wanted = lacks.saturating_mul(1 << self.rounds) as f64 * 0.6;
            end_of_all = window(&open, wanted).clamp(begin + 1, end_of_all);
            open.retain(|of| of.from < end_of_all);
        }
        let share = match self.rounds {
            0 => lacks.div_ceil(open.len()),
            // What is denser than it seemed is cut, and goes on in the next round.
            1..ROUNDS_MAX => (4 * lacks).div_ceil(open.len()),
            _ => lacks,
        };
        self.rounds += 1;
        Some(Ask {
            names: open.iter().map(|of| of.name.clone()).collect(),
            bounds: open.iter().map(|of| bound(order, of.from)).collect(),
            end: end(order, end_of_all - 1),
            rows: share.min(lacks),
        })
    }

    /// Takes what was found.
    pub(crate) fn take(&mut self, ask: &Ask, found: Vec<StoredReading>) {
        let order = self.order;
        let behind = first_behind(order, ask.end);
        let mut each: HashMap<&str, (usize, i64, i64)> = HashMap::new();
        for reading in &found {
            let rank = rank(order, reading.observed_at);
            let of = each.entry(reading.sensor.as_str());
            let (rows, first, last) = of.or_insert((0, rank, rank));
            *rows += 1;
            *first = rank.min(*first);
            *last = rank.max(*last);
        }
        for sensor in &mut self.sensors {
            if ask.names.binary_search(&sensor.name).is_err() {
                continue;
            }
            let found = each.get(sensor.name.as_str());
            if let Some((rows, first, _)) = found {
                sensor.rows += rows;
                sensor.first.get_or_insert(*first);
            }
            sensor.from = match found {
                Some((rows, _, last)) if *rows >= ask.rows => last + 1,
                // Less than was asked for is all until there.
                _ => behind,
            };
        }
        self.found.extend(found);
        self.found.sort_by(|a, b| {
            let of = |a: &StoredReading, b: &StoredReading| {
                (a.observed_at, &a.sensor).cmp(&(b.observed_at, &b.sensor))
            };
            match order {
                Order::OldestFirst => of(a, b),
                Order::NewestFirst => of(b, a),
            }
        });
        if self.found.len() >= self.limit {
            self.found.truncate(self.limit);
            if let Some(last) = self.found.last() {
                self.last = self.last.min(rank(order, last.observed_at));
            }
        }
    }

    /// The readings of the page.
    pub(crate) fn done(self) -> Vec<StoredReading> {
        self.found
    }
}

/// Before which rank there are about so many more readings, if sensors go on as they began.
fn window(open: &[&Sensor], wanted: f64) -> i64 {
    let mut begin: Vec<(i64, f64)> = open.iter().map(|of| (of.from, of.rate())).collect();
    begin.sort_unstable_by_key(|(from, _)| *from);
    let (mut rate, mut expected) = (0.0, 0.0);
    let mut next = begin.iter().skip(1).map(|(from, _)| *from);
    for (from, of) in &begin {
        rate += of;
        let end = next.next().unwrap_or(i64::MAX);
        let within = rate * (end.saturating_sub(*from)) as f64;
        if expected + within >= wanted {
            // Floats saturate as integers.
            return from.saturating_add(((wanted - expected) / rate) as i64 + 1);
        }
        expected += within;
    }
    i64::MAX
}

impl Sensor {
    /// Readings for each step of the rank, as far as they were found. One says nothing.
    fn rate(&self) -> f64 {
        match self.first {
            Some(first) if self.rows > 1 => {
                self.rows as f64 / self.from.saturating_sub(first).max(1) as f64
            }
            _ => 0.0,
        }
    }
}

/// Where a time is in the order of a page.
fn rank(order: Order, at: ObservedAt) -> i64 {
    match order {
        Order::OldestFirst => at.micros(),
        Order::NewestFirst => -at.micros(),
    }
}

/// The first rank within a bound.
fn first_rank(order: Order, bound: ObservedAt) -> i64 {
    match order {
        Order::OldestFirst => storable(bound),
        Order::NewestFirst => 1 - storable(bound),
    }
}

/// The bound whose first rank it is.
fn bound(order: Order, from: i64) -> ObservedAt {
    ObservedAt::from_micros(match order {
        Order::OldestFirst => from,
        Order::NewestFirst => 1 - from,
    })
}

fn end(order: Order, last: i64) -> ObservedAt {
    ObservedAt::from_micros(match order {
        Order::OldestFirst => last + 1,
        Order::NewestFirst => -last,
    })
}

/// The first rank that is not before an end.
fn first_behind(order: Order, end: ObservedAt) -> i64 {
    match order {
        Order::OldestFirst => end.micros(),
        Order::NewestFirst => 1 - end.micros(),
    }
}

/// A time that somebody asks for may be any number.
fn storable(at: ObservedAt) -> i64 {
    let end = ObservedAt::from_micros(OBSERVED_AT_MAX.micros() + 1);
    at.clamp(OBSERVED_AT_MIN, end).micros()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, Quality, Value, Version};

    use super::*;

    /// Times of the readings of each sensor.
    type Rows = BTreeMap<String, Vec<i64>>;

    fn reading(name: &str, at: i64) -> StoredReading {
        StoredReading {
            sensor: name.parse().unwrap(),
            observed_at: ObservedAt::from_micros(at),
            value: Value::Bool(true),
            quality: Quality::Good,
            version: Version {
                hlc: Hlc::from_bits(1),
                epoch: Epoch::from_random(1),
                seq: 1,
            },
            received_at: ReceivedAt::default(),
        }
    }

    /// What a database answers.
    fn answer(rows: &Rows, order: Order, ask: &Ask) -> Vec<StoredReading> {
        let mut found = Vec::new();
        for (name, bound) in ask.names.iter().zip(&ask.bounds) {
            let (from, to) = match order {
                Order::OldestFirst => (bound.micros(), ask.end.micros()),
                Order::NewestFirst => (ask.end.micros(), bound.micros()),
            };
            let within = rows[name].iter().filter(|at| (from..to).contains(at));
            let mut times: Vec<i64> = within.copied().collect();
            times.sort_unstable();
            if order == Order::NewestFirst {
                times.reverse();
            }
            let first = times.iter().take(ask.rows);
            found.extend(first.map(|at| reading(name, *at)));
        }
        found
    }

    /// The page, and how many rows and rounds it took.
    fn read(
        rows: &Rows,
        query: &TelemetryQuery,
        after: Option<&Cursor>,
    ) -> (Vec<(i64, String)>, usize, usize) {
        let mut page = Page::new(query, after, rows.keys().cloned().collect());
        let (mut count, mut rounds) = (0, 0);
        while let Some(ask) = page.next() {
            let found = answer(rows, query.order, &ask);
            count += found.len();
            rounds += 1;
            page.take(&ask, found);
        }
        let named = |of: StoredReading| (of.observed_at.micros(), of.sensor.as_str().to_owned());
        (page.done().into_iter().map(named).collect(), count, rounds)
    }

    fn naive(rows: &Rows, query: &TelemetryQuery, after: Option<&Cursor>) -> Vec<(i64, String)> {
        let each = rows.iter();
        let each = each.flat_map(|(name, times)| times.iter().map(|at| (*at, name.clone())));
        let within = query.from.micros()..query.to.micros();
        let mut all: Vec<(i64, String)> = each.filter(|(at, _)| within.contains(at)).collect();
        all.sort();
        if query.order == Order::NewestFirst {
            all.reverse();
        }
        if let Some(after) = after {
            let after = (after.observed_at.micros(), after.sensor.as_str().to_owned());
            all.retain(|of| match query.order {
                Order::OldestFirst => *of > after,
                Order::NewestFirst => *of < after,
            });
        }
        all.truncate(query.limit);
        all
    }

    fn query(limit: usize, order: Order) -> TelemetryQuery {
        TelemetryQuery {
            device: "d".parse().unwrap(),
            sensor: None,
            from: ObservedAt::from_micros(i64::MIN),
            to: ObservedAt::from_micros(i64::MAX),
            limit,
            order,
        }
    }

    /// 300 sensors and a page of a thousand, in ways in which readings may be spread: rows read, and the naive way's
    /// 300,000 beside them.
    #[test]
    fn a_page_of_many_sensors_costs_what_it_returns() {
        let sensors = 300;
        let of = |spread: &dyn Fn(i64, i64) -> i64| -> Rows {
            let times = |sensor: i64| (0..1_000).map(|at| spread(sensor, at)).collect();
            (0..sensors)
                .map(|sensor| (format!("s{sensor:03}"), times(sensor)))
                .collect()
        };
        for (what, rows) in [
            ("all at once", of(&|_, at| at)),
            ("one after the other", of(&|sensor, at| 1_000 * sensor + at)),
            (
                "each at its own pace",
                of(&|sensor, at| at * (sensor + 1) * 997),
            ),
            (
                "one is quick and the others are slow",
                of(&|sensor, at| match sensor {
                    0 => at,
                    _ => at * 1_000_000 + sensor,
                }),
            ),
            (
                "ten are quick, a hundred slow, the others long gone",
                of(&|sensor, at| match sensor {
                    0..10 => 1_000_000_000 + at * 7 + sensor,
                    10..110 => 1_000_000_000 + at * 100_000 + sensor,
                    _ => at,
                }),
            ),
        ] {
            for order in [Order::OldestFirst, Order::NewestFirst] {
                let query = query(1_000, order);
                let (page, count, rounds) = read(&rows, &query, None);
                assert_eq!(page, naive(&rows, &query, None), "{what}, {order:?}");
                println!(
                    "{what}, {order:?}: {count} rows read in {rounds} rounds for 1000, of 300000 before"
                );
                assert!(count <= 5 * 1_000, "{what}, {order:?}: {count} rows");
                assert!(rounds <= 9, "{what}, {order:?}: {rounds} rounds");
            }
        }
    }

    #[test]
    fn a_page_asks_nothing_when_nothing_is_wanted() {
        let rows = Rows::from([("a".to_owned(), vec![1, 2, 3])]);
        assert_eq!(
            read(&rows, &query(0, Order::OldestFirst), None),
            (vec![], 0, 0)
        );
        let none = Rows::new();
        assert_eq!(
            read(&none, &query(9, Order::NewestFirst), None),
            (vec![], 0, 0)
        );
        let nothing = TelemetryQuery {
            from: ObservedAt::from_micros(3),
            to: ObservedAt::from_micros(3),
            ..query(9, Order::OldestFirst)
        };
        assert_eq!(read(&rows, &nothing, None), (vec![], 0, 0));
    }

    proptest! {
        /// Few times and sensors, so that pages are cut within an instant; page by page until the end.
        #[test]
        fn pages_are_what_a_merge_of_all_is(
            spread in proptest::collection::vec(proptest::collection::btree_set(-30..30i64, 0..40), 0..7),
            from in -35..35i64, to in -35..35i64, limit in 1..30usize, newest in any::<bool>(),
        ) {
            let rows: Rows = spread.into_iter().enumerate()
                .map(|(at, times)| (format!("s{at}"), times.into_iter().collect())).collect();
            let query = TelemetryQuery {
                from: ObservedAt::from_micros(from),
                to: ObservedAt::from_micros(to),
                ..query(limit, if newest { Order::NewestFirst } else { Order::OldestFirst })
            };
            let mut after = None;
            loop {
                let (page, _, rounds) = read(&rows, &query, after.as_ref());
                prop_assert_eq!(&page, &naive(&rows, &query, after.as_ref()));
                prop_assert!(rounds <= 10);
                let Some((at, name)) = page.last() else { break };
                after = Some(Cursor { observed_at: ObservedAt::from_micros(*at), sensor: name.parse().unwrap() });
            }
        }
    }
}
