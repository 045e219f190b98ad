//! No line of JSON or line protocol makes its reader panic; what it takes can be kept, and of what it refuses nothing is.
//!
//! `cargo +nightly fuzz run lines --fuzz-dir edge-agent/fuzz`

#![no_main]

use edge_agent::source::format::{Format, LINE_SAMPLES_MAX, LineRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    for format in [Format::Json, Format::Influx] {
        let mut samples = Vec::new();
        let read = LineRules::of(format).read(line, 1_767_225_600_000_000, &mut samples);
        assert_eq!(read.map_or(0, |count| count), samples.len());
        assert!(samples.len() <= LINE_SAMPLES_MAX);
        for sample in samples {
            assert!(sample.reading.value.validate().is_ok());
        }
    }
});
