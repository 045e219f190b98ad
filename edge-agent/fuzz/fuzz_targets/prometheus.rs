//! No answer of an exporter makes its reader panic; each line is a series, a bad one, or nothing.
//!
//! `cargo +nightly fuzz run prometheus --fuzz-dir edge-agent/fuzz`

#![no_main]

use edge_agent::source::prometheus::text::{Format, LABELS_MAX, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for format in [Format::Text, Format::OpenMetrics] {
        let (mut series, mut bad) = (0, 0);
        let found = |one: edge_agent::source::prometheus::text::Series<'_>| {
            series += 1;
            assert!(one.labels.len() <= LABELS_MAX);
        };
        read(body, format, found, |_, _| bad += 1);
        assert!(series + bad <= body.split(|byte| *byte == b'\n').count());
    }
});
