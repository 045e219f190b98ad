//! Values to put into a store, and what all of it must add up to.

use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, Epoch, Hlc, ObservedAt, Quality, Row, SensorName, SeqRange, Value};
use store::config::{Changed, DeviceConfig};
use store::fleet::{Author, Labelled};
use store::labels::{LabelChanges, Labels};
use store::{Delivery, Order, Origin, Store, StoredReading, TelemetryQuery};

/// A device of this name.
pub fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

/// A sensor of this name.
pub fn sensor(name: &str) -> SensorName {
    name.parse().unwrap()
}

/// An epoch of this number.
pub fn epoch(number: u64) -> Epoch {
    Epoch::try_from(number).unwrap()
}

/// From the first sequence to the last one.
pub fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

/// Ranges of sequences, each from its first to its last.
pub fn ranges(set: &[(u64, u64)]) -> Vec<SeqRange> {
    set.iter()
        .map(|&(first, last)| range(first, last))
        .collect()
}

/// Labels of these keys and values.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

/// A person who changes something at this second.
pub fn alice(seconds: i64) -> Author {
    Author {
        name: "alice".to_owned(),
        at: at(seconds),
    }
}

/// Somebody who changes something at this millisecond since the Unix epoch.
pub fn by(name: &str, ms: u64) -> Author {
    Author {
        name: name.to_owned(),
        at: ReceivedAt::from_micros(i64::try_from(1_000 * ms).unwrap()),
    }
}

/// Values that keys are to have, as JSON texts.
pub fn wanted(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Changes what is desired of a device, and returns how its configuration is then.
pub async fn configure(
    store: &dyn Store,
    name: &str,
    pairs: &[(&str, &str)],
    author: &Author,
) -> DeviceConfig {
    let (device, wanted) = (device(name), wanted(pairs));
    let changed = store.change_config(&device, &wanted, None, author).await;
    match changed.unwrap() {
        Changed::Done(config) => config,
        other => panic!("{other:?}"),
    }
}

/// Sets labels of a device, or with an empty value removes them. Returns whether its configuration
/// has changed.
pub async fn label(store: &dyn Store, name: &str, pairs: &[(&str, &str)]) -> bool {
    let changes: LabelChanges = pairs
        .iter()
        .map(|(key, value)| {
            let value = (!value.is_empty()).then(|| value.parse().unwrap());
            (key.parse().unwrap(), value)
        })
        .collect();
    let (device, author) = (device(name), alice(1_000));
    let done = store.change_labels(&device, &changes, &author).await;
    match done.unwrap() {
        Labelled::Done { is_configured, .. } => is_configured,
        Labelled::TooMany => panic!("too many labels"),
    }
}

/// A time, in seconds since the Unix epoch.
pub fn at(seconds: i64) -> ReceivedAt {
    ReceivedAt::from_micros(seconds * 1_000_000)
}

/// A reading of the first sensor whose time, clock and value follow from its sequence.
pub fn row(seq: u64) -> Row {
    Row {
        sensor: 0,
        observed_at: ObservedAt::from_millis(1_700_000_000_000 + seq as i64 * 1000),
        hlc: Hlc::new(1_700_000_000_000 + seq * 1000, 0),
        seq,
        quality: Quality::Good,
        value: Value::F64(seq as f64 / 10.0),
    }
}

/// The readings of these sequences, see [`row`].
pub fn rows(first: u64, last: u64) -> Vec<Row> {
    (first..=last).map(row).collect()
}

/// A delivery of epoch 7 with one sensor, `temperature`.
pub fn delivery(from: &str, rows: Vec<Row>) -> Delivery {
    Delivery {
        device: device(from),
        batch: Batch {
            epoch: epoch(7),
            sensors: vec![sensor("temperature")],
            rows,
        },
        rejected: Vec::new(),
        received_at: at(1_700_100_000),
        origin: Origin::Device,
    }
}

/// Everything that is stored of a device, oldest first.
pub async fn everything(store: &dyn Store, of: &str) -> Vec<StoredReading> {
    let query = TelemetryQuery {
        device: device(of),
        sensor: None,
        from: ObservedAt::from_micros(i64::MIN),
        to: ObservedAt::from_micros(i64::MAX),
        limit: usize::MAX,
        order: Order::OldestFirst,
    };
    store.telemetry(&query).await.unwrap()
}

/// Checks that each committed range of a device holds what its digest says, and that ranges of one
/// kind are disjoint.
pub async fn check_ledger(store: &dyn Store, of: &str) {
    let ledger = store.ledger(&device(of)).await.unwrap();
    for record in &ledger.epochs {
        for kind in 0..4 {
            let of_kind = record.ranges.iter().filter(|r| number(r.kind) == kind);
            let mut last = 0;
            for stored in of_kind {
                assert!(stored.range.first() > last, "ranges overlap: {record:?}");
                last = stored.range.last();
            }
        }
        for stored in record.ranges.iter().filter(|r| number(r.kind) == 0) {
            let content = store
                .content(&ledger.device, record.epoch, stored.range)
                .await
                .unwrap();
            assert!(content.missing.is_empty(), "{stored:?}: {content:?}");
            assert_eq!(content.rows, stored.range.count(), "{stored:?}");
            assert_eq!(content.digest, stored.digest, "{stored:?}");
        }
    }
}

fn number(kind: store::Kind) -> u8 {
    use store::Kind;
    match kind {
        Kind::Committed => 0,
        Kind::Quarantined(_) => 1,
        Kind::Evicted => 2,
        Kind::Discarded { .. } => 3,
    }
}
