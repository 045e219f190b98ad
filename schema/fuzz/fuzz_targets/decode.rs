//! No payload makes the batch decoder panic, and what it accepts encodes to the same batch.
//!
//! `cargo +nightly fuzz run decode --fuzz-dir schema/fuzz`

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::codec::{Encoder, decode};

fuzz_target!(|payload: &[u8]| {
    let Ok(batch) = decode(payload) else { return };
    let mut again = Vec::new();
    // Ours may be longer than a payload may be; then there is nothing to compare.
    if Encoder::default().encode(&batch, &mut again).is_ok() {
        let back = decode(&again).expect("what we encode decodes");
        assert_eq!(format!("{back:?}"), format!("{batch:?}"));
    }
});
