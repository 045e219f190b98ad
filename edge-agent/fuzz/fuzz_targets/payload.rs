//! No payload and no pointer makes the reader of MQTT payloads panic; what it takes is bounded and can be kept.
//!
//! `cargo +nightly fuzz run payload --fuzz-dir edge-agent/fuzz`

#![no_main]

use edge_agent::source::mqtt::payload::{Kind, Pick, Picks, VALUES_MAX, is_pointer, take};
use libfuzzer_sys::fuzz_target;
use schema::TimestampUnit;

fuzz_target!(|input: (&str, &str, bool, &[u8])| {
    let (pointer, time, whole_numbers, payload) = input;
    let wanted = |text: &str| is_pointer(text).then(|| text.to_owned());
    let value = wanted(pointer).map(|pointer| Pick {
        name: "value".to_owned(),
        pointer,
    });
    let picks = Picks {
        values: value.into_iter().collect(),
        time: wanted(time),
        whole_numbers,
    };
    for kind in [Kind::Auto, Kind::Json, Kind::Number, Kind::Bool, Kind::Text, Kind::Lines] {
        for picks in [&picks, &Picks::default()] {
            let taken = take(payload, kind, picks, TimestampUnit::Millis, 1_767_225_600_000_000);
            let values = taken.map_or(Vec::new(), |taken| taken.values);
            assert!(values.len() <= VALUES_MAX);
            for (_, value) in values {
                assert!(value.validate().is_ok(), "{value:?}");
            }
        }
    }
});
