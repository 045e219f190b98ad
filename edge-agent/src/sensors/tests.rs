use proptest::prelude::*;
use schema::limits::DECLARED_SENSORS_MAX;
use schema::message::{DeclaredSensor, NotedSensor, SensorNote};
use schema::{Hlc, ObservedAt, Quality, Reading, Value, ValueType};

use super::*;
use crate::buffer::{DeclarationState, ReadingError, Timing};

const NOW: u64 = 1_700_000_000_000;

fn name(text: &str) -> SensorName {
    text.parse().unwrap()
}

fn unit(text: &str) -> SensorDeclaration {
    SensorDeclaration {
        unit: Some(text.to_owned()),
        ..SensorDeclaration::default()
    }
}

fn of_type(value_type: ValueType) -> SensorDeclaration {
    SensorDeclaration {
        value_type: Some(value_type),
        ..SensorDeclaration::default()
    }
}

fn rule(pattern: &str, declaration: SensorDeclaration) -> SensorRule {
    SensorRule {
        sensor: pattern.parse().unwrap(),
        declaration,
    }
}

/// As a disk that takes everything.
fn keep(register: &mut Register) -> Vec<KeptDeclaration> {
    let unkept = register.unkept();
    register.kept(&unkept);
    unkept
}

/// What is sent now.
fn sent(register: &mut Register, now_ms: u64) -> Vec<DeclaredSensor> {
    keep(register);
    register.stamp(now_ms);
    keep(register);
    register.due(&Default::default(), usize::MAX)
}

fn noted(sent: &[DeclaredSensor]) -> Vec<NotedSensor> {
    let note = |of: &DeclaredSensor| NotedSensor {
        sensor: of.sensor.clone(),
        version: of.version,
        note: SensorNote::Kept,
    };
    sent.iter().map(note).collect()
}

/// What a restart finds.
fn kept(register: &Register) -> Vec<KeptDeclaration> {
    register.all()
}

fn sample(sensor: &str, value: Value) -> Sample {
    Sample {
        reading: Reading {
            sensor: name(sensor),
            observed_at: ObservedAt::from_micros(1),
            value,
            quality: Quality::Good,
        },
        timing: Timing::Given,
    }
}

#[test]
fn a_declaration_is_sent_once_and_a_change_once() {
    let mut register = Register::new(Vec::new(), Vec::new());
    assert_eq!(register.declare(&name("a"), unit("K")), Declared::Changed);
    assert_eq!(register.declare(&name("a"), unit("K")), Declared::Known);
    // Not before it is kept with its version.
    register.stamp(NOW);
    assert!(register.due(&Default::default(), 9).is_empty());
    let first = sent(&mut register, NOW);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].declaration, unit("K"));
    // Until it is noted.
    assert_eq!(sent(&mut register, NOW + 1), first);
    assert!(register.waits());
    register.note(&noted(&first));
    assert!(sent(&mut register, NOW + 2).is_empty() && !register.waits());
    assert_eq!(register.declare(&name("a"), unit("Cel")), Declared::Changed);
    let second = sent(&mut register, NOW - 60_000);
    assert!(
        second[0].version > first[0].version,
        "whatever the clock says"
    );
    // A late answer to the first one is none to the second.
    register.note(&noted(&first));
    assert_eq!(sent(&mut register, NOW), second);
    register.note(&noted(&second));
    assert!(sent(&mut register, NOW).is_empty());
}

#[test]
fn a_restart_sends_nothing_again_but_what_changed_or_was_not_noted() {
    let rules = || vec![rule("b", unit("m"))];
    let mut register = Register::new(rules(), Vec::new());
    for sensor in ["a", "b", "c"] {
        register.declare(&name(sensor), unit("K"));
    }
    let all = sent(&mut register, NOW);
    register.note(&noted(&all[..2]));
    keep(&mut register);
    let on_disk = kept(&register);
    let mut again = Register::new(rules(), on_disk.clone());
    let left = sent(&mut again, NOW + 5);
    assert_eq!(left, all[2..], "the same version");
    // What a source does not repeat stays; what the settings say now is now.
    let mut changed = Register::new(vec![rule("a", unit("V"))], on_disk);
    let now = sent(&mut changed, NOW + 5);
    let units: Vec<_> = now
        .iter()
        .map(|of| of.declaration.unit.as_deref().unwrap())
        .collect();
    assert_eq!(units, ["V", "K", "K"]);
    assert!(now[1].version > all[1].version && now[2] == all[2]);
}

#[test]
fn the_first_rule_that_matches_wins_over_the_source_key_by_key() {
    let rules = vec![
        rule("oil/*", unit("Cel")),
        rule(
            "*",
            SensorDeclaration {
                description: Some("all".to_owned()),
                ..SensorDeclaration::default()
            },
        ),
    ];
    let sensors = Sensors::new(rules, Vec::new());
    let said = SensorDeclaration {
        description: Some("temperature".to_owned()),
        ..unit("K")
    };
    sensors.declare(&name("oil/1"), said.clone());
    let oil = sensors.of(&name("oil/1")).unwrap();
    assert_eq!(oil.unit.as_deref(), Some("Cel"));
    assert_eq!(oil.description.as_deref(), Some("temperature"));
    sensors.declare(&name("x"), said);
    let x = sensors.of(&name("x")).unwrap();
    assert_eq!(
        (x.unit.as_deref(), x.description.as_deref()),
        (Some("K"), Some("all"))
    );
    // A line that speaks of less takes nothing back.
    sensors.declare_more(&name("x"), of_type(ValueType::Float));
    let x = sensors.of(&name("x")).unwrap();
    assert_eq!(
        (x.unit.as_deref(), x.value_type),
        (Some("K"), Some(ValueType::Float))
    );
    sensors.declare(&name("x"), SensorDeclaration::default());
    assert_eq!(sensors.of(&name("x")).unwrap().unit, None);
}

#[test]
fn readings_are_of_their_sensors_type_or_refused_at_their_place() {
    let rules = vec![
        rule("f", of_type(ValueType::Float)),
        rule("i", of_type(ValueType::Integer)),
    ];
    let sensors = Sensors::new(rules, Vec::new());
    let mut samples = vec![
        sample("i", Value::F64(0.5)),
        sample("f", Value::I64(20)),
        sample("other", Value::I64(1)),
        sample("f", Value::Text("20".into())),
        sample("i", Value::F64(20.0)),
    ];
    let refused = sensors.admit(&mut samples);
    let places: Vec<usize> = refused.iter().map(|(at, _)| *at).collect();
    assert_eq!(places, [0, 3]);
    let values: Vec<Value> = samples.into_iter().map(|of| of.reading.value).collect();
    assert_eq!(values, [Value::F64(20.0), Value::I64(1), Value::I64(20)]);
    // Their rules have declared them; there is none for the other.
    assert!(sensors.of(&name("f")).is_some() && sensors.of(&name("other")).is_none());
    let all = among(refused, vec![(1, ReadingError::BufferFull)]);
    let places: Vec<usize> = all.iter().map(|(at, _)| *at).collect();
    assert_eq!(places, [0, 2, 3]);
    assert_eq!(all[1].1, ReadingError::BufferFull);
}

#[test]
fn without_types_and_rules_nothing_is_looked_at() {
    let sensors = Sensors::default();
    sensors.declare(&name("a"), unit("K"));
    assert!(!sensors.0.is_typed.load(Ordering::Relaxed));
    sensors.declare(&name("a"), of_type(ValueType::Boolean));
    let mut samples = vec![sample("a", Value::I64(1)), sample("a", Value::I64(2))];
    assert_eq!(sensors.admit(&mut samples).len(), 1);
    assert_eq!(samples, [sample("a", Value::Bool(true))]);
}

#[test]
fn as_many_sensors_are_declared_as_a_device_may_have_and_types_count_for_all() {
    let mut register = Register::new(vec![rule("*", of_type(ValueType::Float))], Vec::new());
    for n in 0..DECLARED_SENSORS_MAX {
        assert_eq!(
            register.declare(&name(&format!("s{n}")), unit("m")),
            Declared::Changed
        );
    }
    assert_eq!(register.declare(&name("more"), unit("m")), Declared::Full);
    assert_eq!(
        register.type_of(&name("more still")),
        Some(ValueType::Float)
    );
    assert_eq!(register.declare(&name("s0"), unit("K")), Declared::Changed);
    assert_eq!(sent(&mut register, NOW).len(), DECLARED_SENSORS_MAX);
}

#[test]
fn a_version_that_the_database_has_and_the_device_lost_is_overtaken() {
    let mut register = Register::new(Vec::new(), Vec::new());
    register.declare(&name("a"), unit("K"));
    let first = sent(&mut register, NOW);
    let ahead = Hlc::new(NOW + 3_600_000, 7);
    let mut answer = noted(&first);
    answer[0].version = ahead;
    register.note(&answer);
    let second = sent(&mut register, NOW + 1);
    assert!(second[0].version > ahead);
    register.note(&noted(&second));
    assert!(!register.waits());
}

#[test]
fn a_wrong_clock_of_before_does_not_last() {
    let mut register = Register::new(Vec::new(), Vec::new());
    register.declare(&name("a"), unit("K"));
    // In 2099, says the device.
    let wrong = sent(&mut register, 4_090_000_000_000);
    let mut answer = noted(&wrong);
    answer[0].note = SensorNote::TooNew;
    register.note(&answer);
    let right = sent(&mut register, NOW);
    assert_eq!(right[0].version.millis(), NOW);
}

#[test]
fn what_there_is_no_room_for_is_sent_again_only_to_another() {
    let mut register = Register::new(Vec::new(), Vec::new());
    register.declare(&name("a"), unit("K"));
    let first = sent(&mut register, NOW);
    let mut answer = noted(&first);
    answer[0].note = SensorNote::Full;
    assert!(register.note(&answer));
    assert!(sent(&mut register, NOW).is_empty() && !register.waits());
    register.connected();
    assert_eq!(sent(&mut register, NOW), first);
}

/// What happens to a device, between it and a database that keeps the latest version.
#[derive(Debug, Clone)]
enum Step {
    Declares(u8, u8),
    Sends,
    /// The message of this place arrives, or arrives again.
    Arrives(usize),
    /// So does an answer.
    Answered(usize),
    Restarts,
    /// Its buffer's file is lost.
    Forgets,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3u8, 0..4u8).prop_map(|(sensor, unit)| Step::Declares(sensor, unit)),
        4 => Just(Step::Sends),
        4 => any::<usize>().prop_map(Step::Arrives),
        4 => any::<usize>().prop_map(Step::Answered),
        1 => Just(Step::Restarts),
        1 => Just(Step::Forgets),
    ]
}

proptest! {
    /// Whatever was lost, repeated or reordered: in the end the database has what the device says.
    #[test]
    fn the_database_ends_with_what_the_device_says(steps in prop::collection::vec(step(), 0..60), clocks in prop::collection::vec(0..100_000u64, 60)) {
        use std::collections::BTreeMap;
        let mut register = Register::new(Vec::new(), Vec::new());
        let mut said: BTreeMap<SensorName, SensorDeclaration> = BTreeMap::new();
        let mut database: BTreeMap<SensorName, DeclaredSensor> = BTreeMap::new();
        let (mut messages, mut answers) = (Vec::new(), Vec::new());
        let take = |database: &mut BTreeMap<SensorName, DeclaredSensor>, of: &DeclaredSensor| {
            let rank = |of: &DeclaredSensor| (of.version, of.declaration.digest());
            let held = database.entry(of.sensor.clone()).or_insert_with(|| of.clone());
            if rank(held) < rank(of) {
                *held = of.clone();
            }
            NotedSensor { sensor: of.sensor.clone(), version: held.version, note: SensorNote::Kept }
        };
        let mut clock = 0;
        for (step, passed) in steps.into_iter().zip(clocks) {
            clock += 1 + passed;
            match step {
                Step::Declares(sensor, which) => {
                    let sensor = name(&sensor.to_string());
                    let declaration = unit(&which.to_string());
                    register.declare(&sensor, declaration.clone());
                    said.insert(sensor, declaration);
                }
                Step::Sends => messages.extend(sent(&mut register, NOW + clock)),
                Step::Arrives(at) if !messages.is_empty() => {
                    let at = at % messages.len();
                    answers.push(take(&mut database, &messages[at]));
                }
                Step::Answered(at) if !answers.is_empty() => {
                    let at = at % answers.len();
                    register.note(&[answers[at].clone()]);
                }
                Step::Arrives(_) | Step::Answered(_) => {}
                Step::Restarts => {
                    keep(&mut register);
                    register = Register::new(Vec::new(), kept(&register));
                }
                Step::Forgets => {
                    register = Register::new(Vec::new(), Vec::new());
                    for (sensor, declaration) in &said {
                        register.declare(sensor, declaration.clone());
                    }
                }
            }
        }
        // What is still under way arrives late, and then all goes well: a version that was heard of is overtaken at once.
        for message in &messages {
            take(&mut database, message);
        }
        for _ in 0..3 {
            let notes: Vec<NotedSensor> = sent(&mut register, NOW + clock + 1).iter().map(|of| take(&mut database, of)).collect();
            register.note(&notes);
        }
        prop_assert!(!register.waits());
        for (sensor, declaration) in &said {
            prop_assert_eq!(&database[sensor].declaration, declaration);
        }
        let states: Vec<_> = register.all().iter().map(|of| of.state).collect();
        prop_assert!(states.iter().all(|state| *state == DeclarationState::Noted));
    }
}
