use proptest::prelude::*;
use schema::Reading;

use super::*;
use crate::buffer::Timing;

impl Shaper {
    /// One sample of an append that is committed at once.
    fn take(&mut self, sample: Sample, now: Instant, whole: bool, out: &mut Vec<Sample>) -> Fate {
        let sensors = [sample.reading.sensor.clone()];
        let fate = self.take_of(0, sample, now, whole, out);
        self.confirm(0, &sensors, true, out);
        fate
    }
}

fn sample(sensor: &str, at_ms: i64, value: Value) -> Sample {
    Sample {
        reading: Reading {
            sensor: sensor.parse().unwrap(),
            observed_at: ObservedAt::from_millis(at_ms),
            value,
            quality: Quality::Good,
        },
        timing: Timing::Given,
    }
}

fn rule(sensor: &str) -> Rule {
    Rule::of(sensor.parse().unwrap())
}

fn with_rules(rules: Vec<Rule>) -> Shaper {
    Shaper::of(Shaping {
        rules,
        ..Shaping::default()
    })
}

fn banded(width: f64) -> Shaper {
    Shaper::of(Shaping {
        dead_band: Some(width),
        ..Shaping::default()
    })
}

/// What becomes of a sample, and whether it is out.
fn take(shaper: &mut Shaper, sample: Sample) -> Fate {
    let mut out = Vec::new();
    let fate = shaper.take(sample, Instant::now(), false, &mut out);
    assert_eq!(fate == Fate::Passed, out.len() == 1);
    fate
}

fn is_news(shaper: &mut Shaper, at_ms: i64, value: Value) -> bool {
    take(shaper, sample("s", at_ms, value)) == Fate::Passed
}

fn heartbeat_ms() -> i64 {
    i64::try_from(HEARTBEAT.as_millis()).unwrap()
}

#[test]
fn what_changes_nothing_is_no_stage() {
    assert!(Shaper::new(Shaping::default()).is_none());
    let prefix = Shaping {
        prefix: "a/".to_owned(),
        ..Shaping::default()
    };
    assert!(Shaper::new(prefix).is_some());
}

#[test]
fn what_stays_within_the_band_is_no_news() {
    for (value, expected) in [
        (10.0, false),
        (10.5, false),
        (9.5, false),
        (10.51, true),
        (9.49, true),
    ] {
        let mut shaper = banded(0.5);
        assert!(is_news(&mut shaper, 0, Value::F64(10.0)));
        assert_eq!(
            is_news(&mut shaper, 1, Value::F64(value)),
            expected,
            "{value}"
        );
    }
    // A drift is measured from what was sent.
    let mut shaper = banded(0.5);
    let drift = [10.0, 10.4, 10.8, 11.2].map(|value| is_news(&mut shaper, 1, Value::F64(value)));
    assert_eq!(drift, [true, false, true, false]);
    assert_eq!(
        take(&mut shaper, sample("other", 1, Value::F64(10.8))),
        Fate::Passed
    );
}

#[test]
fn a_change_of_quality_is_news_whatever_the_value() {
    let mut shaper = banded(1e18);
    let mut is_news = |quality| {
        let mut sample = sample("s", 1, Value::I64(7));
        sample.reading.quality = quality;
        take(&mut shaper, sample) == Fate::Passed
    };
    let (good, bad) = (Quality::Good, Quality::Bad);
    let news = [good, good, bad, bad, good, good].map(&mut is_news);
    assert_eq!(news, [true, false, true, false, true, false]);
}

#[test]
fn a_band_of_nothing_leaves_out_equal_values_of_every_kind() {
    for value in [
        Value::F64(0.1),
        Value::I64(i64::MAX),
        Value::Bool(true),
        Value::Text("on".into()),
    ] {
        let mut shaper = banded(0.0);
        assert!(is_news(&mut shaper, 0, value.clone()));
        assert!(!is_news(&mut shaper, 1, value.clone()), "{value:?}");
        assert!(is_news(&mut shaper, 1, Value::Text("x".into())));
    }
    let mut shaper = banded(0.0);
    assert!(is_news(&mut shaper, 0, Value::I64(i64::MAX)));
    assert!(
        is_news(&mut shaper, 0, Value::I64(i64::MAX - 1)),
        "exact beyond a double"
    );
    let mut shaper = banded(0.5);
    let mixed = [
        Value::F64(19.5),
        Value::I64(20),
        Value::I64(21),
        Value::F64(21.6),
    ];
    let sent = mixed.map(|value| is_news(&mut shaper, 0, value));
    assert_eq!(
        sent,
        [true, false, true, true],
        "a number is one however it is written"
    );
    let mut shaper = banded(1e18);
    assert!(is_news(&mut shaper, 0, Value::I64(i64::MAX)));
    assert!(is_news(&mut shaper, 0, Value::I64(i64::MIN)));
}

#[test]
fn a_flat_sensor_is_sent_now_and_then() {
    for (at, expected) in [
        (0, false),
        (heartbeat_ms() - 1, false),
        (heartbeat_ms(), true),
        (heartbeat_ms() + 1, true),
        (-1, true),
    ] {
        let mut shaper = banded(5.0);
        assert!(is_news(&mut shaper, 0, Value::I64(1)));
        assert_eq!(is_news(&mut shaper, at, Value::I64(1)), expected, "{at}");
    }
    let mut own = rule("s");
    own.dead_band = Some(5.0);
    own.heartbeat = Some(Duration::from_secs(2));
    let mut shaper = with_rules(vec![own]);
    let sent = [0, 1_999, 2_000, 3_999, 4_000].map(|at| is_news(&mut shaper, at, Value::I64(1)));
    assert_eq!(sent, [true, false, true, false, true]);
}

#[test]
fn what_was_not_accepted_is_news_again() {
    let mut shaper = Shaper::of(Shaping {
        prefix: "p/".to_owned(),
        dead_band: Some(1.0),
        ..Shaping::default()
    });
    assert!(shaper.compares());
    assert!(is_news(&mut shaper, 0, Value::I64(1)));
    assert!(!is_news(&mut shaper, 1, Value::I64(1)));
    shaper.not_accepted(&"s".parse().unwrap());
    assert!(
        !is_news(&mut shaper, 1, Value::I64(1)),
        "it was sent as p/s"
    );
    shaper.not_accepted(&"p/s".parse().unwrap());
    assert!(is_news(&mut shaper, 1, Value::I64(1)));
}

#[test]
fn memory_is_bounded() {
    let mut shaper = banded(0.0);
    for at in 0..SENSORS_MAX + 2 {
        let one = sample(&format!("s{at}"), 0, Value::I64(1));
        assert_eq!(take(&mut shaper, one), Fate::Passed);
    }
    assert_eq!(shaper.sensors.len(), SENSORS_MAX);
    // One without a memory is taken each time.
    let one_more = || sample("one more", 1, Value::I64(1));
    assert_eq!(take(&mut shaper, one_more()), Fate::Passed);
    assert_eq!(take(&mut shaper, one_more()), Fate::Passed);
    // Long after, room is made.
    take(
        &mut shaper,
        sample("late", heartbeat_ms() + 1, Value::I64(1)),
    );
    assert_eq!(shaper.sensors.len(), 1);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let mut dropping = rule("raw/secret*");
    dropping.drop = true;
    let mut renaming = rule("raw/*/t*");
    renaming.rename = Some(Rename::parse("plant/*/celsius", &renaming.sensor).unwrap());
    let mut shaper = Shaper::of(Shaping {
        prefix: "hall/".to_owned(),
        rules: vec![dropping, renaming],
        ..Shaping::default()
    });
    let mut out = Vec::new();
    for (sensor, fate) in [
        ("raw/secret/t1", Fate::Unwanted),
        ("raw/press/t1", Fate::Passed),
        ("other", Fate::Passed),
    ] {
        let one = sample(sensor, 0, Value::I64(1));
        assert_eq!(shaper.take(one, Instant::now(), false, &mut out), fate);
    }
    let names: Vec<&str> = out.iter().map(|one| one.reading.sensor.as_str()).collect();
    assert_eq!(names, ["hall/plant/press/celsius", "hall/other"]);
}

#[test]
fn a_new_name_that_is_none_is_refused() {
    let mut shaper = Shaper::of(Shaping {
        prefix: "p".repeat(64),
        ..Shaping::default()
    });
    for (length, is_name) in [(63, true), (64, true), (65, false)] {
        let fate = take(&mut shaper, sample(&"n".repeat(length), 0, Value::I64(1)));
        assert_eq!(fate == Fate::Passed, is_name, "{length}: {fate:?}");
    }
    let pattern = "a*b*".parse().unwrap();
    assert!(Rename::parse("", &pattern).is_err());
    assert!(Rename::parse("x**", &pattern).is_ok());
    let error = Rename::parse("***", &pattern).unwrap_err();
    assert!(error.to_string().contains("has 3 stars"), "{error}");
}

#[test]
fn a_range_judges_numbers_at_its_ends() {
    for outside in [Outside::Bad, Outside::Uncertain, Outside::Refuse] {
        let range = Range {
            min: -40.0,
            max: 125.0,
            outside,
        };
        let mut judging = rule("*");
        judging.range = Some(range);
        let mut shaper = with_rules(vec![judging]);
        for (value, is_within) in [
            (Value::F64(-40.0), true),
            (Value::F64(-40.1), false),
            (Value::I64(125), true),
            (Value::I64(126), false),
            (Value::Text("hot".into()), true),
            (Value::Bool(true), true),
        ] {
            let mut out = Vec::new();
            let one = sample("t", 0, value.clone());
            let fate = shaper.take(one, Instant::now(), false, &mut out);
            let quality = out.first().map(|one| one.reading.quality);
            let expected = match (is_within, outside) {
                (true, _) => (Fate::Passed, Some(Quality::Good)),
                (false, Outside::Bad) => (Fate::Passed, Some(Quality::Bad)),
                (false, Outside::Uncertain) => (Fate::Passed, Some(Quality::Uncertain)),
                (false, Outside::Refuse) => (Fate::OutOfRange(range), None),
            };
            assert_eq!((fate, quality), expected, "{value:?} {outside:?}");
        }
    }
    // A quality is never made better.
    let mut judging = rule("*");
    judging.range = Some(Range {
        min: 0.0,
        max: 1.0,
        outside: Outside::Uncertain,
    });
    let mut bad = sample("t", 0, Value::I64(7));
    bad.reading.quality = Quality::Bad;
    let mut out = Vec::new();
    with_rules(vec![judging]).take(bad, Instant::now(), false, &mut out);
    assert_eq!(out[0].reading.quality, Quality::Bad);
}

fn windowed(aggregate: Aggregate, length: Duration) -> Shaper {
    let mut windowed = rule("*");
    windowed.window = Some(WindowRule { length, aggregate });
    with_rules(vec![windowed])
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_window_says_one_thing_of_its_readings() {
    let values = [3.0, 1.0, 5.0, 1.0];
    for (aggregate, expected) in [
        (Aggregate::Mean, 2.5),
        (Aggregate::Min, 1.0),
        (Aggregate::Max, 5.0),
        (Aggregate::Last, 1.0),
    ] {
        let mut shaper = windowed(aggregate, SECOND);
        let (now, mut out) = (Instant::now(), Vec::new());
        for (at, value) in (0..).map(|n| 5_000 + n * 200).zip(values) {
            let one = sample("s", at, Value::F64(value));
            assert_eq!(shaper.take(one, now, false, &mut out), Fate::Aggregated);
        }
        assert!(out.is_empty());
        let one = sample("s", 6_000, Value::F64(9.0));
        assert_eq!(shaper.take(one, now, false, &mut out), Fate::Aggregated);
        assert_eq!(out.len(), 1, "a reading of the next window ends it");
        assert_eq!(out[0].reading.observed_at, ObservedAt::from_millis(5_600));
        let Value::F64(found) = out[0].reading.value else {
            panic!("{:?}", out[0]);
        };
        assert!((found - expected).abs() < 1e-12, "{aggregate:?} {found}");
    }
}

#[test]
fn a_window_ends_by_the_time_and_at_the_end() {
    let mut shaper = windowed(Aggregate::Last, SECOND);
    let (begun, mut out) = (Instant::now(), Vec::new());
    let ms = Duration::from_millis;
    assert_eq!(shaper.next_wakeup(), None);
    shaper.take(sample("a", 5_600, Value::I64(1)), begun, false, &mut out);
    assert_eq!(shaper.next_wakeup(), Some(begun + ms(400)));
    // One that comes late has its window for as long.
    shaper.take(sample("b", 100, Value::I64(2)), begun, false, &mut out);
    assert_eq!(shaper.next_wakeup(), Some(begun + ms(400)));
    shaper.wake(begun + ms(399), &mut out);
    assert!(out.is_empty());
    shaper.wake(begun + ms(400), &mut out);
    assert_eq!(out.len(), 1);
    assert_eq!(shaper.next_wakeup(), Some(begun + ms(900)));
    shaper.finish(&mut out);
    assert_eq!((out.len(), shaper.next_wakeup()), (2, None));
    // What is requested is not held in a window.
    let requested = sample("a", 6_000, Value::I64(3));
    assert_eq!(shaper.take(requested, begun, true, &mut out), Fate::Passed);
}

#[test]
fn a_bad_reading_does_not_spoil_a_mean() {
    let mut shaper = windowed(Aggregate::Mean, SECOND);
    let (now, mut out) = (Instant::now(), Vec::new());
    for (at, value, quality) in [
        (1, 1e9, Quality::Bad),
        (2, 2.0, Quality::Good),
        (3, -1e9, Quality::Uncertain),
        (4, 4.0, Quality::Good),
        (5, 1e9, Quality::Bad),
    ] {
        let mut one = sample("s", at, Value::F64(value));
        one.reading.quality = quality;
        shaper.take(one, now, false, &mut out);
    }
    shaper.finish(&mut out);
    let said = &out[0].reading;
    assert_eq!(
        (&said.value, said.quality),
        (&Value::F64(3.0), Quality::Good)
    );
    assert_eq!(said.observed_at, ObservedAt::from_millis(5));
}

#[test]
fn texts_and_whole_numbers_are_aggregated_as_what_they_are() {
    for (aggregate, values, expected) in [
        (
            Aggregate::Max,
            vec![Value::I64(1), Value::I64(i64::MAX)],
            Value::I64(i64::MAX),
        ),
        (
            Aggregate::Mean,
            vec![Value::I64(1), Value::I64(2)],
            Value::F64(1.5),
        ),
        (
            Aggregate::Mean,
            vec![Value::F64(f64::MAX), Value::F64(f64::MAX)],
            Value::F64(f64::MAX),
        ),
        (
            Aggregate::Mean,
            vec![Value::Text("a".into()), Value::Text("b".into())],
            Value::Text("b".into()),
        ),
        (
            Aggregate::Min,
            vec![Value::Bool(false), Value::Bool(true)],
            Value::Bool(true),
        ),
        (Aggregate::Mean, vec![Value::I64(7)], Value::I64(7)),
    ] {
        let mut shaper = windowed(aggregate, SECOND);
        let mut out = Vec::new();
        for value in values {
            shaper.take(sample("s", 5, value), Instant::now(), false, &mut out);
        }
        shaper.finish(&mut out);
        assert_eq!(out[0].reading.value, expected);
    }
}

/// What a dead band lets through, naively: compared with the last one that it let through.
fn naive_band(readings: &[(i64, i64)], width: f64, heartbeat_ms: i64) -> Vec<usize> {
    let mut sent: Vec<usize> = Vec::new();
    for (at, (time, value)) in readings.iter().enumerate() {
        let is_news = sent.last().is_none_or(|last| {
            let (before, last) = readings[*last];
            let silence = time - before;
            silence < 0 || silence >= heartbeat_ms || (value - last).abs() as f64 > width
        });
        if is_news {
            sent.push(at);
        }
    }
    sent
}

proptest! {
    #[test]
    fn a_dead_band_does_what_it_says(
        readings in prop::collection::vec((0..20_000i64, -20..20i64), 0..60),
        width in 0..10u32,
        heartbeat in 1..10u64,
    ) {
        let mut shaper = Shaper::of(Shaping {
            dead_band: Some(f64::from(width)),
            heartbeat: Duration::from_secs(heartbeat),
            ..Shaping::default()
        });
        let mut found = Vec::new();
        for (at, (time, value)) in readings.iter().enumerate() {
            if is_news(&mut shaper, *time, Value::I64(*value)) {
                found.push(at);
            }
        }
        let heartbeat_ms = i64::try_from(heartbeat * 1_000).unwrap();
        prop_assert_eq!(found, naive_band(&readings, f64::from(width), heartbeat_ms));
    }

    /// Each reading counts in exactly one aggregate: that of the run of readings of its window in which it came.
    #[test]
    fn windows_count_each_reading_once(
        readings in prop::collection::vec((0..5_000i64, -100..100i64), 1..60),
        wakes in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut shaper = windowed(Aggregate::Max, SECOND);
        let now = Instant::now();
        let (mut out, mut expected): (Vec<Sample>, Vec<(i64, i64, i64)>) = (Vec::new(), Vec::new());
        let mut open = None;
        for ((time, value), wakes) in readings.iter().zip(wakes) {
            let bucket = time / 1_000;
            if open != Some(bucket) {
                expected.push((bucket, i64::MIN, i64::MIN));
                open = Some(bucket);
            }
            let last = expected.last_mut().unwrap();
            (last.1, last.2) = (last.1.max(*time), last.2.max(*value));
            shaper.take(sample("s", *time, Value::I64(*value)), now, false, &mut out);
            let due = shaper.next_wakeup().unwrap();
            prop_assert!(due <= now + SECOND);
            if wakes {
                // The first may be that of a window which a reading has ended.
                while let Some(due) = shaper.next_wakeup() {
                    shaper.wake(due, &mut out);
                }
                open = None;
            }
        }
        shaper.finish(&mut out);
        let found: Vec<(i64, i64, i64)> = out
            .iter()
            .map(|one| {
                let Value::I64(value) = one.reading.value else { panic!("{one:?}") };
                let ms = one.reading.observed_at.micros() / 1_000;
                (ms / 1_000, ms, value)
            })
            .collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_star_stands_for_the_same_in_both_names(
        parts in prop::collection::vec("[a-c]{1,3}", 2..4),
        between in prop::collection::vec("[x-z]{0,3}", 3),
    ) {
        let pattern: crate::buffer::SensorPattern = parts.join("*").parse().unwrap();
        let stars = parts.len() - 1;
        let mut name = parts[0].clone();
        let mut expected = String::from("n");
        for (part, between) in parts[1..].iter().zip(&between) {
            name.push_str(between);
            name.push_str(part);
            expected.push_str(between);
            expected.push('n');
        }
        prop_assert!(pattern.matches(&name));
        let new = vec!["n"; stars + 1].join("*");
        let rename = Rename::parse(&new, &pattern).unwrap();
        prop_assert_eq!(rename.apply(&pattern, &name), expected);
    }

    #[test]
    fn a_pattern_that_matches_has_a_part_for_each_star(pattern in "[ab*]{1,8}", name in "[ab]{0,8}") {
        let pattern: crate::buffer::SensorPattern = pattern.parse().unwrap();
        let captures = pattern.captures(&name);
        prop_assert_eq!(captures.is_some(), pattern.matches(&name));
        if let Some(captures) = captures {
            prop_assert_eq!(captures.len(), pattern.stars());
        }
    }
}

/// Takes a sample in as a part of an append that is not committed yet.
fn hold(shaper: &mut Shaper, append: u64, at_ms: i64, value: f64) -> Vec<Sample> {
    let mut out = Vec::new();
    let fate = shaper.take_of(
        append,
        sample("s", at_ms, Value::F64(value)),
        Instant::now(),
        false,
        &mut out,
    );
    assert_eq!(fate, Fate::Aggregated);
    out
}

fn confirm(shaper: &mut Shaper, append: u64, is_taken: bool) -> Vec<Value> {
    let mut out = Vec::new();
    shaper.confirm(append, &["s".parse().unwrap()], is_taken, &mut out);
    out.into_iter().map(|sample| sample.reading.value).collect()
}

#[test]
fn what_was_not_committed_counts_in_no_window_until_it_comes_again() {
    let mut shaper = windowed(Aggregate::Mean, Duration::from_secs(1));
    assert_eq!(hold(&mut shaper, 1, 100, 10.0), []);
    assert_eq!(confirm(&mut shaper, 1, true), []);
    hold(&mut shaper, 2, 200, 20.0);
    assert_eq!(confirm(&mut shaper, 2, false), []);
    hold(&mut shaper, 3, 200, 20.0);
    // The window is over, and waits for what it holds.
    assert_eq!(hold(&mut shaper, 4, 1_100, 1.0), []);
    assert_eq!(confirm(&mut shaper, 3, true), [Value::F64(15.0)]);
    // Nothing is left of one of which nothing was taken.
    assert_eq!(confirm(&mut shaper, 4, false), []);
    let mut out = Vec::new();
    shaper.finish(&mut out);
    assert_eq!(out, []);
}

#[test]
fn a_window_that_is_over_waits_for_its_append_and_keeps_nobody_awake() {
    let mut shaper = windowed(Aggregate::Max, Duration::from_secs(1));
    hold(&mut shaper, 1, 100, 10.0);
    let ends_at = shaper.next_wakeup().unwrap();
    let mut out = Vec::new();
    shaper.wake(ends_at, &mut out);
    assert_eq!(out, []);
    assert_eq!(shaper.next_wakeup(), None);
    // One that comes late is of it still.
    assert_eq!(hold(&mut shaper, 2, 900, 30.0), []);
    assert_eq!(confirm(&mut shaper, 1, true), []);
    assert_eq!(confirm(&mut shaper, 2, true), [Value::F64(30.0)]);
}
