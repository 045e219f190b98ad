//! The ledger over HTTP: verified against the rows, and closed by a person after a restore.

use reqwest::{Method, StatusCode};
use schema::message::{
    ClockReport, ClockState, EpochAccount, LedgerReport, RejectReason, Rejection,
};
use schema::time::ReceivedAt;
use schema::{Balance, Batch, Epoch, Hlc, ObservedAt, Quality, Row, SeqRange, Value as Reading};
use serde_json::{Value, json};
use store::location::Location;
use store::{Delivery, DeviceReport, Origin};

use super::{Served, expect, now};

const PATH: &str = "/api/v1/devices/press-7/ledger";

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

fn epoch() -> Epoch {
    Epoch::try_from(42).unwrap()
}

/// Readings, and those of them that were refused.
fn delivery(seqs: std::ops::RangeInclusive<u64>, refused: Option<SeqRange>) -> Delivery {
    let at = now() as i64 * 1_000_000;
    let rows = seqs.map(|seq| Row {
        sensor: 0,
        observed_at: ObservedAt::from_micros(at + seq as i64),
        hlc: Hlc::new(seq, 0),
        seq,
        quality: Quality::Good,
        value: Reading::I64(seq as i64),
    });
    let reason = RejectReason::TooNew;
    Delivery {
        device: "press-7".parse().unwrap(),
        batch: Batch {
            epoch: epoch(),
            sensors: vec!["s".parse().unwrap()],
            rows: rows.collect(),
        },
        rejected: refused
            .map(|range| Rejection { range, reason })
            .into_iter()
            .collect(),
        received_at: ReceivedAt::from_micros(at),
        origin: Origin::Device,
    }
}

fn report(accepted: u64, pending: u64, quarantined: u64) -> DeviceReport {
    let balance = Balance {
        accepted,
        pending,
        quarantined,
        ..Balance::default()
    };
    let report = LedgerReport {
        device_time_ms: 1,
        clock: ClockReport {
            state: ClockState::Verified,
            offset_ms: Some(0),
        },
        epochs: vec![EpochAccount {
            epoch: epoch(),
            balance,
            evicted: Vec::new(),
            quarantined: Vec::new(),
            discarded: Vec::new(),
        }],
    };
    DeviceReport::new(
        "press-7".parse().unwrap(),
        report,
        ReceivedAt::from_micros(now() as i64 * 1_000_000),
    )
}

async fn verified(served: &Served) -> Value {
    served.get(&format!("{PATH}?verify=true")).await
}

#[tokio::test]
async fn a_row_that_is_gone_unbalances_a_ledger_that_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let served = Served::start_on(Location::Embedded(path.clone()), |_| {}).await;
    let refused = Some(range(9, 10));
    served
        .store
        .ingest(&[delivery(1..=8, refused)])
        .await
        .unwrap();
    served.store.report(&[report(12, 2, 2)]).await.unwrap();

    let plain = served.get(PATH).await;
    let balance = json!({
        "accepted": 12, "committed": 8, "pending": 2, "quarantined": 2, "evicted": 0, "discarded": 0,
    });
    assert_eq!(
        (&plain["balance"], &plain["balanced"]),
        (&balance, &json!(true))
    );
    let held = json!([{"epoch": epoch().to_string(), "first": 9, "last": 10, "reason": "too_new"}]);
    assert_eq!(plain["quarantined"], held);
    assert_eq!((&plain["rows"], &plain["expired"]), (&json!(8), &json!(0)));
    assert_eq!(plain["epochs"][0]["ranges"][0]["verdict"], Value::Null);
    let fleet = served.get("/api/v1/ledger").await;
    assert_eq!(fleet["quarantined_by_reason"], json!({"too_new": 2}));
    assert_eq!(
        (&fleet["rows"], &fleet["discarded_by"]),
        (&json!(8), &json!({}))
    );

    let sound = verified(&served).await;
    assert_eq!(sound["balanced"], true, "{sound}");
    assert_eq!(
        sound["counted"],
        json!({"verdict": "sound", "rows": 8, "expected": 8})
    );
    assert_eq!(sound["epochs"][0]["ranges"][0]["verdict"], "sound");

    let file = libsql::Builder::new_local(&path).build().await.unwrap();
    let connection = file.connect().unwrap();
    // The bridge beside it writes too.
    connection
        .busy_timeout(std::time::Duration::from_secs(20))
        .unwrap();
    let delete = "DELETE FROM telemetry_data WHERE seq = 5";
    connection.execute_batch(delete).await.unwrap();
    let broken = verified(&served).await;
    assert_eq!(broken["balanced"], false, "{broken}");
    assert_eq!(broken["counted"]["verdict"], "broken");
    let found = &broken["epochs"][0]["ranges"][0];
    assert_eq!(found["verdict"], "broken");
    assert_eq!(
        found["verified"]["missing"],
        json!([{"first": 5, "last": 5}])
    );
    // One of the quarantined is lost: the device holds less than the ledger knows of.
    served.store.report(&[report(12, 2, 1)]).await.unwrap();
    let lost = served.get(PATH).await;
    assert_eq!(
        (&lost["balanced"], &lost["unaccounted"]),
        (&json!(false), &json!(1))
    );
}

#[tokio::test]
async fn what_a_restored_database_lacks_is_accepted_as_lost_and_audited() {
    let served = Served::start().await;
    let path = format!("{PATH}/accept-loss");
    let accept = async || {
        let request = served.request(Method::POST, &path);
        expect(request, StatusCode::OK).await
    };
    let unknown = served.request(Method::POST, &path);
    expect(unknown, StatusCode::NOT_FOUND).await;
    served.store.ingest(&[delivery(1..=8, None)]).await.unwrap();
    served.store.report(&[report(20, 3, 0)]).await.unwrap();
    assert_eq!(served.get(PATH).await["unaccounted"], 9);
    // It goes on: what it holds is the newest, and what comes after its report is sent.
    served
        .store
        .ingest(&[delivery(24..=26, None)])
        .await
        .unwrap();
    assert_eq!(served.get(PATH).await["unaccounted"], 9);
    // Of another epoch it holds one of two in quarantine, and which is not known.
    let other = Epoch::try_from(43).unwrap();
    let mut unclear = delivery(1..=8, Some(range(9, 10)));
    unclear.batch.epoch = other;
    served.store.ingest(&[unclear]).await.unwrap();
    let mut less = report(12, 0, 1);
    less.report.epochs[0].epoch = other;
    let mut both = report(20, 3, 0);
    both.report.epochs.extend(less.report.epochs);
    served.store.report(&[both.clone()]).await.unwrap();
    let open = json!([{"epoch": other.to_string(), "unaccounted": 3, "open": 4}]);
    let done = accept().await;
    let lost = json!([{"epoch": epoch().to_string(), "ranges": [{"first": 9, "last": 17}]}]);
    assert_eq!((&done["discarded"], &done["epochs"]), (&json!(9), &lost));
    assert_eq!(done["unclear"], open);
    let unclear = served.request(Method::POST, &path);
    let unclear = expect(unclear, StatusCode::CONFLICT).await;
    let detail = unclear["detail"].as_str().unwrap();
    assert!(detail.starts_with("3 of 4 readings"), "{detail}");
    let mut held = both;
    held.report.epochs[1].balance.quarantined = 2;
    held.report.epochs[1].balance.pending = 2;
    held.received_at = ReceivedAt::from_micros((now() as i64 + 70) * 1_000_000);
    served.store.report(&[held]).await.unwrap();
    let ledger = served.get(PATH).await;
    assert_eq!(
        (&ledger["balanced"], &ledger["unaccounted"]),
        (&json!(true), &json!(0))
    );
    let by = ledger["discarded"][0]["by"].as_str();
    assert_eq!(by, Some("person"));
    let audit = served.get("/api/v1/audit").await;
    let entries = audit["entries"].as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["action"] == "accept loss");
    let entry = entry.unwrap_or_else(|| panic!("{audit}"));
    assert_eq!(
        (&entry["actor"], &entry["target"]),
        (&json!("admin"), &json!("press-7"))
    );
    let outcome = entry["outcome"].as_str().unwrap();
    assert!(outcome.starts_with("9 readings are missing:"), "{outcome}");
    assert!(outcome.ends_with("9-17"), "{outcome}");
    // There is nothing more to accept.
    assert_eq!(accept().await["discarded"], 0);
}
