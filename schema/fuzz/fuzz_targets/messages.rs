//! No payload makes the decoder of a message panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::envelope::decode;
use schema::message::{Command, DesiredConfig, Downlink, Event, Status};

fuzz_target!(|payload: &[u8]| {
    let _ = decode::<Downlink>(payload);
    let _ = decode::<Event>(payload);
    let _ = decode::<Status>(payload);
    let _ = decode::<Command>(payload);
    let _ = decode::<DesiredConfig>(payload);
    if let Ok(topic) = std::str::from_utf8(payload) {
        let _ = topic.parse::<schema::Topic>();
    }
});
