//! No file makes the reader of CSV panic or remember more than its limits, however it comes in chunks; what it takes can
//! be kept.
//!
//! `cargo +nightly fuzz run csv --fuzz-dir edge-agent/fuzz`

#![no_main]

use edge_agent::source::replay::records::{FIELDS_MAX, Next, RECORD_BYTES_MAX, Records};
use edge_agent::source::replay::table::{Hints, Layout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (chunk, file) = input;
    let mut records = Records::default();
    let mut layout = None;
    let mut chunks = file.chunks(usize::from(chunk).max(1)).peekable();
    loop {
        let mut rest = chunks.next().unwrap_or_default();
        let is_last = chunks.peek().is_none();
        loop {
            match records.next(&mut rest, is_last) {
                Next::More => break,
                Next::End => return,
                Next::TooLong => continue,
                Next::Record => {}
            }
            let bytes: usize = records.fields().map(<[u8]>::len).sum();
            assert!(bytes <= RECORD_BYTES_MAX && records.fields().count() <= FIELDS_MAX);
            match &layout {
                None => match Layout::of(records.fields(), &Hints::default()) {
                    Ok(found) => layout = Some(found),
                    Err(_) => return,
                },
                Some(layout) => {
                    let Ok(row) = layout.row(records.fields()) else {
                        continue;
                    };
                    for cell in row.cells {
                        assert!(cell.value.validate().is_ok(), "{cell:?}");
                    }
                }
            }
        }
    }
});
