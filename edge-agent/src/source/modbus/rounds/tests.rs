//! Rounds on a bus of memory: devices that have some registers, refuse others, or say nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::decode::{Encoding, Kind, Order};
use super::super::plan::{BITS_MAX, REGISTERS_MAX};
use super::*;

const LIMITS: Limits = Limits {
    gap_max: 8,
    registers_max: REGISTERS_MAX,
    bits_max: BITS_MAX,
};

const PAUSES: Pauses = Pauses {
    first: Duration::from_secs(1),
    max: Duration::from_secs(30),
};

const INTERVAL: Duration = Duration::from_secs(10);

fn point(unit_id: u8, address: u16) -> Point {
    Point {
        sensor: format!("{unit_id}/{address}").parse().unwrap(),
        unit_id,
        table: Table::Holding,
        address,
        encoding: Some(Encoding {
            kind: Kind::U16,
            order: Order::Big,
            scale: None,
            exact: false,
        }),
        interval: INTERVAL,
        unit: None,
    }
}

/// A bus whose devices hold, at each address, a hundred times their unit and the address.
#[derive(Debug, Default)]
struct Bus {
    missing: BTreeSet<(u8, u16)>,
    silent: BTreeSet<u8>,
    down: bool,
    /// Instead of a value: a failure in this unit's answer.
    instead: BTreeMap<u8, Answer>,
    asked: Vec<Request>,
}

impl Bus {
    fn answer(&mut self, request: Request) -> Answer {
        self.asked.push(request);
        let Request {
            unit_id,
            address,
            count,
            ..
        } = request;
        if self.down {
            return Answer::Unreachable("connection refused".to_owned());
        }
        if self.silent.contains(&unit_id) {
            return Answer::Silent;
        }
        if let Some(answer) = self.instead.get(&unit_id) {
            return answer.clone();
        }
        let addresses = || address..address + count;
        if addresses().any(|at| self.missing.contains(&(unit_id, at))) {
            return Answer::Exception(2);
        }
        let value = |at: u16| u16::from(unit_id) * 100 + at;
        Answer::Registers(addresses().map(value).collect())
    }
}

struct Trial {
    rounds: Rounds,
    bus: Bus,
    begun: Instant,
    now: Instant,
}

impl Trial {
    fn new(points: Vec<Point>) -> Self {
        let begun = Instant::now();
        Self {
            rounds: Rounds::new(points, LIMITS, PAUSES, begun),
            bus: Bus::default(),
            begun,
            now: begun,
        }
    }

    /// The next round, when it is due; its readings as sensor, value, and quality.
    fn round(&mut self) -> Vec<(String, i64, Quality)> {
        self.now = self.now.max(self.rounds.next_due().unwrap());
        self.round_now()
    }

    fn round_now(&mut self) -> Vec<(String, i64, Quality)> {
        self.bus.asked.clear();
        self.rounds.begin(self.now);
        let moment = Moment {
            monotonic: self.now,
            wall_micros: 5_000_999,
        };
        while let Some(request) = self.rounds.next(moment) {
            let answer = self.bus.answer(request);
            self.rounds.take(answer, moment, 1.0);
        }
        let readings = self.rounds.found().readings.into_iter();
        readings
            .map(|reading| {
                assert_eq!(reading.observed_at, ObservedAt::from_millis(5_000));
                let Value::I64(value) = reading.value else {
                    panic!("{reading:?}")
                };
                (reading.sensor.as_str().to_owned(), value, reading.quality)
            })
            .collect()
    }

    fn requests(&self) -> Vec<(u8, u16, u16)> {
        let asked = self.bus.asked.iter();
        asked
            .map(|one| (one.unit_id, one.address, one.count))
            .collect()
    }
}

fn good(unit_id: u8, address: u16) -> (String, i64, Quality) {
    let value = i64::from(unit_id) * 100 + i64::from(address);
    (format!("{unit_id}/{address}"), value, Quality::Good)
}

fn bad(unit_id: u8, address: u16) -> (String, i64, Quality) {
    let (sensor, value, _) = good(unit_id, address);
    (sensor, value, Quality::Bad)
}

#[test]
fn one_request_reads_neighbours() {
    let mut trial = Trial::new(vec![point(1, 0), point(1, 1), point(1, 5)]);
    assert_eq!(trial.round(), [good(1, 0), good(1, 1), good(1, 5)]);
    assert_eq!(trial.requests(), [(1, 0, 6)]);
    assert_eq!(trial.rounds.trouble(), None);
}

#[test]
fn a_missing_register_does_not_hide_its_neighbours_and_is_found_once() {
    let mut trial = Trial::new((0..8).map(|at| point(1, at)).collect());
    trial.bus.missing.insert((1, 5));
    let all_but_one: Vec<_> = (0..8).filter(|at| *at != 5).map(|at| good(1, at)).collect();
    assert_eq!(trial.round(), all_but_one);
    // 0–7, 0–3, 4–7, 4–5, 4, 5, 6–7.
    assert_eq!(trial.requests().len(), 7);
    let trouble = trial.rounds.trouble().unwrap();
    assert!(
        trouble.starts_with("1 of 8 points are bad; 1/5 (unit 1, holding 5): exception 2"),
        "{trouble}"
    );
    trial.round();
    let expected = [(1, 0, 4), (1, 4, 1), (1, 5, 1), (1, 6, 2)];
    let mut requests = trial.requests();
    requests.sort_unstable();
    assert_eq!(requests, expected);
    // It appears later, after a change to the device.
    trial.bus.missing.clear();
    assert!(trial.round().contains(&good(1, 5)));
    assert_eq!(trial.rounds.trouble(), None);
}

#[test]
fn a_gap_that_the_device_does_not_have_is_left_out() {
    let mut trial = Trial::new(vec![point(1, 0), point(1, 1), point(1, 6)]);
    trial.bus.missing.insert((1, 3));
    assert_eq!(trial.round(), [good(1, 0), good(1, 1), good(1, 6)]);
    assert_eq!(trial.requests(), [(1, 0, 7), (1, 0, 2), (1, 6, 1)]);
    trial.round();
    assert_eq!(trial.requests(), [(1, 0, 2), (1, 6, 1)]);
}

#[test]
fn what_fails_is_said_once_with_the_last_value_and_then_now_and_then() {
    let mut trial = Trial::new(vec![point(1, 7)]);
    trial.bus.instead.insert(1, Answer::Exception(4));
    assert_eq!(trial.round(), [], "there is no value yet");
    assert!(trial.rounds.trouble().is_some());
    trial.bus.instead.clear();
    assert_eq!(trial.round(), [good(1, 7)]);
    trial.bus.instead.insert(1, Answer::Exception(4));
    assert_eq!(trial.round(), [bad(1, 7)]);
    let said = trial.now;
    let again = std::iter::from_fn(|| Some(trial.round())).position(|found| !found.is_empty());
    assert_eq!(again, Some(59));
    assert_eq!(trial.now - said, BAD_EVERY);
    trial.bus.instead.clear();
    assert_eq!(trial.round(), [good(1, 7)]);
    trial.bus.instead.insert(1, Answer::Exception(4));
    assert_eq!(trial.round(), [bad(1, 7)], "it failed anew");
}

#[test]
fn a_silent_unit_is_left_alone_and_others_are_read() {
    let mut trial = Trial::new(vec![point(1, 0), point(1, 50), point(2, 0)]);
    trial.round();
    trial.bus.silent.insert(1);
    assert_eq!(trial.round(), [bad(1, 0), bad(1, 50), good(2, 0)]);
    // Once more, as a frame may be lost; then no request of it that would time out too.
    assert_eq!(trial.requests(), [(1, 0, 1), (1, 0, 1), (2, 0, 1)]);
    // 1, 2, 4, 8, 16, 30 s: rounds of 10 s ask again each time until the pause is longer.
    let attempts = |trial: &mut Trial| {
        assert_eq!(trial.round(), [good(2, 0)]);
        trial.requests().iter().filter(|one| one.0 == 1).count()
    };
    let seen: Vec<usize> = (0..10).map(|_| attempts(&mut trial)).collect();
    assert_eq!(seen, [2, 2, 2, 2, 0, 2, 0, 0, 2, 0]);
    trial.bus.silent.clear();
    trial.now += Duration::from_secs(30);
    assert_eq!(trial.round_now(), [good(1, 0), good(1, 50), good(2, 0)]);
    assert_eq!(trial.rounds.trouble(), None);
}

#[test]
fn a_frame_that_is_lost_once_is_no_failure() {
    for answer in [
        Answer::Silent,
        Answer::Garbled("wrong checksum".to_owned()),
        Answer::Broken("connection reset".to_owned()),
    ] {
        let mut trial = Trial::new(vec![point(1, 0)]);
        let moment = Moment {
            monotonic: trial.now,
            wall_micros: 0,
        };
        trial.rounds.begin(trial.now);
        let request = trial.rounds.next(moment).unwrap();
        trial.rounds.take(answer, moment, 1.0);
        assert_eq!(trial.rounds.next(moment), Some(request));
        trial.rounds.take(Answer::Registers(vec![5]), moment, 1.0);
        assert_eq!(trial.rounds.next(moment), None);
        assert_eq!(trial.rounds.found().readings.len(), 1);
        assert_eq!(trial.rounds.trouble(), None);
    }
}

#[test]
fn a_gateways_word_for_a_silent_unit_is_taken_at_once() {
    for code in [0x0A, 0x0B] {
        let mut trial = Trial::new(vec![point(1, 0), point(1, 50), point(2, 0)]);
        trial.bus.instead.insert(1, Answer::Exception(code));
        assert_eq!(trial.round(), [good(2, 0)]);
        assert_eq!(trial.requests(), [(1, 0, 1), (2, 0, 1)]);
    }
}

#[test]
fn without_a_connection_nothing_is_asked_for_a_while() {
    let mut trial = Trial::new(vec![point(1, 0), point(1, 50), point(2, 0)]);
    trial.round();
    trial.bus.down = true;
    assert_eq!(trial.round(), [bad(1, 0), bad(1, 50), bad(2, 0)]);
    assert_eq!(trial.requests().len(), 1);
    trial.round_now();
    assert_eq!(trial.requests(), []);
    trial.bus.down = false;
    trial.now += Duration::from_secs(2);
    assert_eq!(trial.round().len(), 3);
    assert!(trial.rounds.trouble().is_none());
}

#[test]
fn a_broken_answer_fails_its_points_alone() {
    for answer in [
        Answer::Garbled("nonsense".to_owned()),
        Answer::Broken("closed".to_owned()),
        Answer::Registers(vec![]),
        Answer::Bits(vec![]),
        Answer::Exception(77),
    ] {
        let mut trial = Trial::new(vec![point(1, 0), point(2, 0)]);
        trial.bus.instead.insert(1, answer.clone());
        if let Answer::Bits(_) = answer {
            trial.rounds.points[0].encoding = None;
        }
        assert_eq!(trial.round(), [good(2, 0)], "{answer:?}");
        assert!(trial.rounds.trouble().unwrap().starts_with("1 of 2 "));
    }
}

#[test]
fn a_value_that_cannot_be_kept_is_counted_each_time_and_said_as_bad() {
    let mut one = point(1, 0);
    if let Some(encoding) = &mut one.encoding {
        encoding.kind = Kind::F32;
    }
    let mut trial = Trial::new(vec![one]);
    let nan = Answer::Registers(vec![0x7FC0, 0]);
    let moment = |trial: &Trial| Moment {
        monotonic: trial.now,
        wall_micros: 0,
    };
    let read = |trial: &mut Trial, answer| {
        trial.now = trial.rounds.next_due().unwrap();
        trial.rounds.begin(trial.now);
        trial.rounds.next(moment(trial)).unwrap();
        trial.rounds.take(answer, moment(trial), 0.5);
        let Yield { readings, refused } = trial.rounds.found();
        let qualities: Vec<_> = readings.iter().map(|one| one.quality).collect();
        (qualities, refused)
    };
    assert_eq!(read(&mut trial, nan.clone()), (vec![], vec!["not_finite"]));
    let five = Answer::Registers(vec![0x40A0, 0]);
    assert_eq!(read(&mut trial, five), (vec![Quality::Good], vec![]));
    assert_eq!(
        read(&mut trial, nan.clone()),
        (vec![Quality::Bad], vec!["not_finite"])
    );
    assert_eq!(read(&mut trial, nan), (vec![], vec!["not_finite"]));
}

#[test]
fn each_group_has_its_interval_and_what_was_missed_is_left_out() {
    let mut fast = point(1, 100);
    fast.interval = Duration::from_secs(1);
    let mut trial = Trial::new(vec![point(1, 0), fast]);
    assert_eq!(trial.round().len(), 2);
    for second in 1..=9 {
        assert_eq!(trial.round(), [good(1, 100)]);
        assert_eq!(trial.now - trial.begun, Duration::from_secs(second));
    }
    assert_eq!(trial.round().len(), 2);
    assert_eq!(trial.rounds.missed(), 0);
    // A round that took 3.5 s: the beat is kept, and what it covered is counted.
    trial.now += Duration::from_millis(4_500);
    trial.round_now();
    assert_eq!(trial.rounds.missed(), 3);
    assert_eq!(
        trial.rounds.next_due().unwrap() - trial.begun,
        Duration::from_secs(15)
    );
}

proptest! {
    #[test]
    fn whatever_is_missing_the_rest_is_read(
        addresses in prop::collection::btree_set(0u16..300, 1..60),
        missing in prop::collection::btree_set(0u16..300, 0..60),
    ) {
        let mut trial = Trial::new(addresses.iter().map(|at| point(1, *at)).collect());
        trial.bus.missing = missing.iter().map(|at| (1, *at)).collect();
        let there: BTreeSet<_> = addresses.difference(&missing).map(|at| good(1, *at)).map(|one| one.0).collect();
        let first: BTreeSet<_> = trial.round().into_iter().map(|one| one.0).collect();
        prop_assert_eq!(&first, &there);
        prop_assert!(trial.requests().len() < 4 * addresses.len());
        // Learned: from then on a request fails only for a register that is missing itself.
        let second: BTreeSet<_> = trial.round().into_iter().map(|one| one.0).collect();
        prop_assert_eq!(&second, &there);
        let wanted = addresses.len() - there.len();
        let fails = trial.bus.asked.iter().filter(|one| {
            (one.address..one.address + one.count).any(|at| missing.contains(&at))
        });
        prop_assert_eq!(fails.count(), wanted);
    }

    #[test]
    fn no_sequence_of_answers_panics_and_memory_is_bounded(
        codes in prop::collection::vec((any::<u8>(), any::<u8>()), 0..200),
    ) {
        let mut trial = Trial::new((0..40).map(|at| point(at % 3, u16::from(at) * 3)).collect());
        let mut codes = codes.into_iter();
        for _ in 0..20 {
            trial.now = trial.now.max(trial.rounds.next_due().unwrap());
            trial.rounds.begin(trial.now);
            let moment = Moment { monotonic: trial.now, wall_micros: i64::MIN };
            while let Some(request) = trial.rounds.next(moment) {
                let answer = match codes.next() {
                    Some((0..60, code)) => Answer::Exception(code),
                    Some((60..100, count)) => Answer::Registers(vec![7; count.into()]),
                    Some((100..130, count)) => Answer::Bits(vec![true; count.into()]),
                    Some((130..160, _)) => Answer::Silent,
                    Some((160..190, _)) => Answer::Garbled("x".to_owned()),
                    Some((190..220, _)) => Answer::Broken("x".to_owned()),
                    Some(_) => Answer::Unreachable("x".to_owned()),
                    None => trial.bus.answer(request),
                };
                trial.rounds.take(answer, moment, 0.5);
            }
            prop_assert!(trial.rounds.groups.len() <= trial.rounds.points.len());
            prop_assert!(trial.rounds.queue.is_empty());
            prop_assert!(trial.rounds.found().readings.len() <= 2 * trial.rounds.points.len());
        }
    }
}
