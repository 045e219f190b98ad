//! No registers make the decoder of Modbus values panic, and what it takes can be kept.
//!
//! `cargo +nightly fuzz run modbus --fuzz-dir edge-agent/fuzz`

#![no_main]

use edge_agent::source::modbus::decimal::Scale;
use edge_agent::source::modbus::decode::{Encoding, Kind, Order};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, Option<(f64, f64)>, bool, Vec<u16>)| {
    let (kind, order, scale, exact, registers) = input;
    let kind = match kind % 10 {
        0 => Kind::U16,
        1 => Kind::I16,
        2 => Kind::U32,
        3 => Kind::I32,
        4 => Kind::U64,
        5 => Kind::I64,
        6 => Kind::F32,
        7 => Kind::F64,
        8 => Kind::Bit(kind / 10 % 16),
        _ => Kind::Text {
            registers: u16::from(kind / 10) % 126,
        },
    };
    let order = match order % 4 {
        0 => Order::Big,
        1 => Order::Little,
        2 => Order::SwappedWords,
        _ => Order::SwappedBytes,
    };
    let encoding = Encoding {
        kind,
        order,
        scale: scale.map(|(factor, offset)| Scale::new(factor, offset)),
        exact,
    };
    if let Ok(value) = encoding.decode(&registers) {
        assert!(value.validate().is_ok(), "{encoding:?} {value:?}");
    }
});
