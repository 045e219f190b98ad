//! The codec as its users see it: every batch comes back, every damage is named, nothing panics.

#![allow(clippy::unwrap_used, reason = "an error here is a failed test")]

use std::sync::Arc;

use proptest::prelude::*;
use schema::codec::{DecodeError, EncodeError, Encoder, decode};
use schema::envelope::EnvelopeError;
use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, SensorName, Value, limits};

fn encode(batch: &Batch) -> Vec<u8> {
    let mut payload = Vec::new();
    Encoder::default().encode(batch, &mut payload).unwrap();
    payload
}

/// Equal to the bit: floats that are not numbers too.
fn check_same(left: &Batch, right: &Batch) {
    assert_eq!(left.epoch, right.epoch);
    assert_eq!(left.rows.len(), right.rows.len());
    for (a, b) in left.rows.iter().zip(&right.rows) {
        assert_eq!(left.sensor(a), right.sensor(b));
        let meta = |row: &Row| (row.observed_at, row.hlc, row.seq, row.quality);
        assert_eq!(meta(a), meta(b));
        match (&a.value, &b.value) {
            (Value::F64(a), Value::F64(b)) => assert_eq!(a.to_bits(), b.to_bits()),
            (a, b) => assert_eq!(a, b),
        }
    }
}

fn name(text: &str) -> SensorName {
    text.parse().unwrap()
}

fn plain(rows: usize) -> Batch {
    Batch {
        epoch: Epoch::from_random(0xBEEF),
        sensors: vec![name("s")],
        rows: (0..rows as u64)
            .map(|n| Row {
                sensor: 0,
                observed_at: ObservedAt::from_millis(1_700_000_000_000 + 1000 * n as i64),
                hlc: Hlc::new(1_700_000_000_001 + 1000 * n, 0),
                seq: n + 1,
                quality: Quality::Good,
                value: Value::F64(20.5),
            })
            .collect(),
    }
}

/// A decimal that was an f32, so many units in the last place of f64 away from it.
fn noisy_single(decimal: f64, ulps: i64) -> f64 {
    let single = f64::from(decimal as f32);
    f64::from_bits(single.to_bits().wrapping_add_signed(ulps))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(|bits| Value::F64(f64::from_bits(bits))),
        any::<i16>().prop_map(|tenths| Value::F64(f64::from(tenths) / 10.0)),
        (any::<i16>(), -300..300i64).prop_map(|(hundredths, ulps)| Value::F64(noisy_single(
            f64::from(hundredths) / 100.0,
            ulps
        ))),
        any::<i64>().prop_map(Value::I64),
        (-50..50i64).prop_map(Value::I64),
        any::<bool>().prop_map(Value::Bool),
        "[a-c]{0,3}".prop_map(|text| Value::Text(text.into())),
        "\\PC{0,20}".prop_map(|text| Value::Text(text.into())),
    ]
}

prop_compose! {
    fn row(sensors: u16)(
        sensor in 0..sensors,
        time in prop_oneof![any::<i64>(), 0..2_000_000_000_000_000i64, (0..2_000_000_000i64).prop_map(|ms| ms * 1000)],
        hlc in prop_oneof![any::<u64>(), (0..2_000_000_000_000u64).prop_map(|ms| ms << 16)],
        seq in prop_oneof![any::<u64>(), 0..1000u64],
        grade in 0..3u8,
        value in value(),
    ) -> Row {
        Row {
            sensor,
            observed_at: ObservedAt::from_micros(time),
            hlc: Hlc::from_bits(hlc),
            seq,
            quality: Quality::try_from(grade).unwrap(),
            value,
        }
    }
}

fn batch() -> impl Strategy<Value = Batch> {
    (1..8u16).prop_flat_map(|sensors| {
        (prop::collection::vec(row(sensors), 1..120), any::<u64>()).prop_map(
            move |(rows, epoch)| Batch {
                epoch: Epoch::from_random(epoch),
                sensors: (0..sensors)
                    .map(|n| name(&format!("plänt/line{}/s{n}", n / 3)))
                    .collect(),
                rows,
            },
        )
    })
}

/// Scans as agents take them: several sensors, one after another, every period.
fn scans() -> impl Strategy<Value = Batch> {
    (1..6usize, 1..40usize, 1..100_000i64, any::<u64>()).prop_map(
        |(sensors, scans, period, seed)| {
            let mut state = seed | 1;
            let mut noise = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut rows = Vec::new();
            for scan in 0..scans {
                for sensor in 0..sensors {
                    let millis = 1_700_000_000_000 + period * scan as i64 + noise(4) as i64;
                    rows.push(Row {
                        sensor: sensor as u16,
                        observed_at: ObservedAt::from_millis(millis),
                        hlc: Hlc::new(millis as u64 + noise(2), 0),
                        seq: rows.len() as u64 + 7,
                        quality: Quality::Good,
                        value: Value::F64(match sensor {
                            0 => noisy_single(noise(500) as f64 / 10.0, noise(5) as i64 - 2),
                            _ => noise(500) as f64 / 10.0,
                        }),
                    });
                }
            }
            Batch {
                epoch: Epoch::from_random(seed),
                sensors: (0..sensors).map(|n| name(&format!("s{n}"))).collect(),
                rows,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_batch_comes_back(batch in batch()) {
        check_same(&decode(&encode(&batch)).unwrap(), &batch);
    }

    #[test]
    fn scans_come_back_and_an_encoder_may_be_used_again(batches in prop::collection::vec(scans(), 1..4)) {
        let mut encoder = Encoder::default();
        let mut payload = vec![9; 5];
        for batch in &batches {
            encoder.encode(batch, &mut payload).unwrap();
            check_same(&decode(&payload).unwrap(), batch);
        }
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_batch(batch in batch(), flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 0..4)) {
        let mut payload = encode(&batch);
        for (at, bit) in flips {
            let at = at.index(payload.len());
            payload[at] ^= 1 << bit;
        }
        if let Ok(first) = decode(&payload) {
            check_same(&decode(&encode(&first)).unwrap(), &first);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
        let mut headed = vec![1, 1];
        headed.extend(bytes);
        let _ = decode(&headed);
    }
}

/// Tens of thousands of mutations of valid batches: errors or batches, never a panic.
#[test]
fn mutated_batches_never_panic() {
    let mut seeds: Vec<Vec<u8>> = vec![
        encode(&plain(1)),
        encode(&plain(300)),
        encode(&golden_singles()),
    ];
    let mut mixed = plain(200);
    mixed.sensors.push(name("s/text"));
    mixed.sensors.push(name("s/flag"));
    for (n, row) in mixed.rows.iter_mut().enumerate() {
        match n % 4 {
            0 => row.value = Value::I64(n as i64 * 77),
            1 => (row.sensor, row.value) = (1, Value::Text(format!("t{}", n % 5).into())),
            2 => (row.sensor, row.value) = (2, Value::Bool(n % 3 == 0)),
            _ => row.value = Value::F64((n as f64).sqrt()),
        }
    }
    seeds.push(encode(&mixed));
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut decoded, mut refused) = (0, 0);
    for round in 0..40_000 {
        let mut payload = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random() % 4 {
            let at = (random() % payload.len() as u64) as usize;
            match random() % 4 {
                0 => payload[at] = random() as u8,
                1 => payload[at] ^= 1 << (random() % 8),
                2 => payload.truncate(at.max(1)),
                _ => payload.insert(at, random() as u8),
            }
        }
        match decode(&payload) {
            Ok(_) => decoded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        decoded > 0 && refused > 10_000,
        "{decoded} decoded, {refused} refused"
    );
}

#[test]
fn rows_are_bounded_at_4096() {
    let mut payload = Vec::new();
    let mut encoder = Encoder::default();
    for rows in [1, 4095, 4096] {
        encoder.encode(&plain(rows), &mut payload).unwrap();
        assert_eq!(decode(&payload).unwrap().rows.len(), rows);
    }
    for rows in [0, 4097] {
        assert_eq!(
            encoder.encode(&plain(rows), &mut payload),
            Err(EncodeError::Rows { rows })
        );
    }
}

#[test]
fn series_are_bounded_at_1024() {
    let wide = |sensors: u16| {
        let mut batch = plain(usize::from(sensors));
        batch.sensors = (0..sensors).map(|n| name(&format!("{n}"))).collect();
        for (n, row) in batch.rows.iter_mut().enumerate() {
            row.sensor = n as u16;
        }
        batch
    };
    for sensors in [1023, 1024] {
        let batch = wide(sensors);
        check_same(&decode(&encode(&batch)).unwrap(), &batch);
    }
    let refused = Encoder::default().encode(&wide(1025), &mut Vec::new());
    assert_eq!(refused, Err(EncodeError::Series));
}

#[test]
fn names_are_bounded_at_64_kib_in_all() {
    let long = |count: usize, bytes: usize| {
        let mut batch = plain(count);
        batch.sensors = (0..count).map(|n| name(&format!("{n:0>127}"))).collect();
        let extra = bytes - 127 * count;
        let last = batch.sensors.len() - 1;
        // One name of wide characters makes up the difference.
        batch.sensors[last] = name(&("°".repeat(extra) + &"x".repeat(127 - extra)));
        for (n, row) in batch.rows.iter_mut().enumerate() {
            row.sensor = n as u16;
        }
        batch
    };
    // 516 names of 127 bytes are 65,532.
    for bytes in [
        limits::BATCH_NAMES_BYTES_MAX - 4,
        limits::BATCH_NAMES_BYTES_MAX - 3,
    ] {
        let batch = long(516, bytes);
        check_same(&decode(&encode(&batch)).unwrap(), &batch);
    }
    let over = {
        let mut batch = long(516, limits::BATCH_NAMES_BYTES_MAX - 3);
        for n in 0..4 {
            batch.sensors[n] = name(&format!("{n:0>128}"));
        }
        batch
    };
    assert_eq!(
        Encoder::default().encode(&over, &mut Vec::new()),
        Err(EncodeError::NamesTooLong {
            bytes: limits::BATCH_NAMES_BYTES_MAX + 1
        })
    );
}

#[test]
fn a_text_is_bounded_at_1_kib_and_shared_between_rows() {
    let with_text = |bytes: usize| {
        let mut batch = plain(50);
        let text: Arc<str> = "x".repeat(bytes).into();
        for row in &mut batch.rows {
            row.value = Value::Text(Arc::clone(&text));
        }
        batch
    };
    for bytes in [1023, 1024] {
        let decoded = decode(&encode(&with_text(bytes))).unwrap();
        let (Value::Text(first), Value::Text(last)) =
            (&decoded.rows[0].value, &decoded.rows[49].value)
        else {
            panic!("texts became something else");
        };
        assert!(Arc::ptr_eq(first, last));
    }
    assert_eq!(
        Encoder::default().encode(&with_text(1025), &mut Vec::new()),
        Err(EncodeError::TextTooLong { bytes: 1025 })
    );
}

#[test]
fn broken_batches_are_not_encoded() {
    let mut encoder = Encoder::default();
    let mut unnamed = plain(2);
    unnamed.rows[1].sensor = 1;
    assert_eq!(
        encoder.encode(&unnamed, &mut Vec::new()),
        Err(EncodeError::NoSuchSensor { index: 1 })
    );
    let mut twice = plain(2);
    twice.sensors.push(name("s"));
    twice.rows[1].sensor = 1;
    assert!(matches!(
        encoder.encode(&twice, &mut Vec::new()),
        Err(EncodeError::NameTwice { .. })
    ));
}

#[test]
fn version_flags_and_ends_are_checked() {
    let payload = encode(&plain(3));
    let mut other = payload.clone();
    other[0] = 2;
    assert_eq!(
        decode(&other),
        Err(DecodeError::Envelope(EnvelopeError::Version(2)))
    );
    other[0] = 1;
    other[1] = 0x81;
    assert_eq!(
        decode(&other),
        Err(DecodeError::Envelope(EnvelopeError::Flags(0x81)))
    );
    let mut longer = payload.clone();
    longer.push(0);
    assert_eq!(decode(&longer), Err(DecodeError::TrailingBytes(1)));
    for end in 0..payload.len() {
        assert!(decode(&payload[..end]).is_err(), "{end} bytes were decoded");
    }
}

/// The format, byte for byte: what is read otherwise is a new version.
#[test]
fn golden_vectors_hold() {
    for (batch, golden) in [
        (plain(1), include_str!("golden/one.hex")),
        (plain(100), include_str!("golden/steady.hex")),
        (golden_mixed(), include_str!("golden/mixed-shorter.hex")),
        (golden_singles(), include_str!("golden/singles.hex")),
    ] {
        let hex: String = encode(&batch).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.trim_end());
        check_same(&decode(&bytes(golden)).unwrap(), &batch);
    }
}

/// Written by the first encoder, which looked less closely at short columns.
#[test]
fn what_earlier_encoders_wrote_is_read() {
    let golden = bytes(include_str!("golden/mixed.hex"));
    check_same(&decode(&golden).unwrap(), &golden_mixed());
    assert!(encode(&golden_mixed()).len() < golden.len());
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.trim_end().len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// Two sensors whose values were f32 and came through text since.
fn golden_singles() -> Batch {
    let mut batch = plain(60);
    batch.sensors = ["meter/current", "meter/voltage"].map(name).to_vec();
    for (n, row) in (0..).zip(&mut batch.rows) {
        row.sensor = n % 2;
        let decimal = match row.sensor {
            0 => f64::from(509 + n * n % 23) / 100.0,
            _ => f64::from(2314 - n * n % 17) / 10.0,
        };
        row.value = Value::F64(noisy_single(decimal, i64::from(n * 3 % 5) - 2));
    }
    batch.rows[0].value = Value::F64(5.090_000_152_587_891_5);
    batch
}

/// Every type, a sensor that changes its type, noise, gaps, quality.
fn golden_mixed() -> Batch {
    let row = |n: u64, sensor: u16, value: Value| Row {
        sensor,
        observed_at: ObservedAt::from_micros(1_700_000_000_000_000 + 250_001 * n as i64),
        hlc: Hlc::new(1_700_000_000_000 + 250 * n, (n % 2) as u16),
        seq: 10 + n + n / 5,
        quality: if n == 3 { Quality::Bad } else { Quality::Good },
        value,
    };
    let rows = (0..20)
        .map(|n| match n % 5 {
            0 => row(n, 0, Value::F64(20.0 + n as f64 / 10.0)),
            1 => row(n, 1, Value::I64(1000 - 7 * n as i64)),
            2 => row(n, 2, Value::Bool(n > 9)),
            3 => row(n, 3, Value::Text(["idle", "run"][n as usize % 2].into())),
            _ if n > 10 => row(n, 0, Value::I64(n as i64)),
            _ => row(n, 4, Value::F64([f64::NAN, -0.0][n as usize / 5 % 2])),
        })
        .collect();
    Batch {
        epoch: Epoch::from_random(0x1234_5678_9ABC),
        sensors: ["press/temp", "press/count", "press/on", "state", "x"]
            .map(name)
            .to_vec(),
        rows,
    }
}
