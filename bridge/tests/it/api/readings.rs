//! Readings handed in over HTTP.

use bridge::auth::Role;
use reqwest::{Method, RequestBuilder, StatusCode};
use schema::codec::Encoder;
use schema::time::ReceivedAt;
use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, Value as Reading};
use serde_json::{Value, json};
use store::{Delivery, Origin};

use super::{Served, expect, now};

const PATH: &str = "/api/v1/devices/press-7/readings";
const EPOCH: &str = "00c0ffee0001";
const BATCH: &str = "application/vnd.tideline.batch";

/// A second ago, in microseconds.
fn recently() -> i64 {
    (now() as i64 - 1) * 1_000_000
}

/// So many readings, from a sequence on, a millisecond apart.
fn body(first: u64, count: u64) -> Value {
    let readings: Vec<Value> = (first..first + count)
        .map(|seq| json!({"sensor": "temperature", "observed_at": base() + seq as i64 * 1000, "value": seq as f64 / 10.0}))
        .collect();
    json!({"epoch": EPOCH, "first_seq": first, "readings": readings})
}

/// The same for all bodies of a run: a reading sent again is the same.
fn base() -> i64 {
    use std::sync::OnceLock;
    static BASE: OnceLock<i64> = OnceLock::new();
    *BASE.get_or_init(|| recently() - 3_600_000_000)
}

/// The batch that [`body`] is.
fn batch(first: u64, count: u64) -> Batch {
    let rows = (first..first + count).map(|seq| {
        let micros = base() + seq as i64 * 1000;
        Row {
            sensor: 0,
            observed_at: ObservedAt::from_micros(micros),
            hlc: Hlc::new(micros as u64 / 1000, (micros % 1000) as u16),
            seq,
            quality: Quality::Good,
            value: Reading::F64(seq as f64 / 10.0),
        }
    });
    Batch {
        epoch: Epoch::try_from(0x00c0_ffee_0001).unwrap(),
        sensors: vec!["temperature".parse().unwrap()],
        rows: rows.collect(),
    }
}

fn payload(batch: &Batch) -> Vec<u8> {
    let mut payload = Vec::new();
    Encoder::default().encode(batch, &mut payload).unwrap();
    payload
}

fn post(served: &Served, body: &Value) -> RequestBuilder {
    served.request(Method::POST, PATH).json(body)
}

fn range(first: u64, last: u64) -> Value {
    json!({"first": first, "last": last})
}

#[tokio::test]
async fn a_device_hands_in_its_readings_and_hears_what_is_committed() {
    let served = Served::start().await;
    let device = served.token("press-7", Role::Device);
    let request = served.bare(Method::POST, PATH).bearer_auth(&device);
    let answer = expect(request.json(&body(1, 3)), StatusCode::OK).await;
    let expected =
        json!({"epoch": EPOCH, "committed": [range(1, 3)], "refused": [], "rejected": []});
    assert_eq!(answer, expected);
    let stored = served.get("/api/v1/devices/press-7/telemetry").await;
    let values: Vec<&Value> = stored["readings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reading| &reading["value"])
        .collect();
    assert_eq!(values, [&json!(0.1), &json!(0.2), &json!(0.3)]);
    let found = served.get("/api/v1/devices/press-7").await;
    assert!(found["last_seen"].as_str().is_some(), "{found}");
    let ledger = served
        .get("/api/v1/devices/press-7/ledger?verify=true")
        .await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    assert_eq!(ledger["balance"]["committed"], 3);

    // It speaks for itself alone: neither the path nor the body may name another one.
    let other = served.bare(Method::POST, "/api/v1/devices/press-8/readings");
    expect(
        other.bearer_auth(&device).json(&body(1, 3)),
        StatusCode::FORBIDDEN,
    )
    .await;
    let mut named = body(1, 3);
    named["device"] = json!("press-8");
    let request = served.bare(Method::POST, PATH).bearer_auth(&device);
    expect(request.json(&named), StatusCode::BAD_REQUEST).await;
    expect(
        served.request(Method::GET, "/api/v1/devices/press-8"),
        StatusCode::NOT_FOUND,
    )
    .await;
}

#[tokio::test]
async fn the_same_at_the_same_time_from_three_sides_is_one_row_each() {
    let served = Served::start().await;
    let delivery = Delivery {
        device: "press-7".parse().unwrap(),
        batch: batch(1, 500),
        rejected: Vec::new(),
        received_at: ReceivedAt::from_micros(recently()),
        origin: Origin::Device,
    };
    let by_batch = served
        .request(Method::POST, PATH)
        .header("content-type", BATCH)
        .body(payload(&batch(1, 500)));
    let (json, again, by_batch, by_store) = tokio::join!(
        expect(post(&served, &body(1, 500)), StatusCode::OK),
        expect(post(&served, &body(1, 500)), StatusCode::OK),
        expect(by_batch, StatusCode::OK),
        served.store.ingest(std::slice::from_ref(&delivery)),
    );
    for answer in [json, again, by_batch] {
        assert_eq!(answer["committed"], json!([range(1, 500)]));
        assert_eq!(answer["rejected"], json!([]));
    }
    assert!(by_store.unwrap().settled[0].rejected.is_empty());
    // Later, and batched anew, it is still the same.
    for (first, count) in [(1, 500), (400, 101), (500, 1)] {
        let answer = expect(post(&served, &body(first, count)), StatusCode::OK).await;
        assert_eq!(
            answer["committed"],
            json!([range(first, first + count - 1)])
        );
        assert_eq!(answer["rejected"], json!([]));
    }
    let counts = served.store.counts().await.unwrap();
    assert_eq!((counts.telemetry, counts.conflicts), (500, 0));
    let ledger = served
        .get("/api/v1/devices/press-7/ledger?verify=true")
        .await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    assert_eq!(ledger["balance"]["committed"], 500);
}

#[tokio::test]
async fn what_cannot_be_had_is_rejected_and_the_rest_is_committed() {
    let served = Served::start().await;
    let reading = |value: Value, at: i64| json!({"sensor": "s", "observed_at": at, "value": value});
    let text = |bytes: usize| json!("x".repeat(bytes));
    let year = 366 * 86_400_000_000i64;
    let readings = [
        reading(json!(1), recently()),
        reading(text(1023), recently() - 1),
        reading(text(1024), recently() - 2),
        reading(text(1025), recently() - 3),
        reading(json!("a\u{0}b"), recently() - 4),
        reading(json!(true), 0),
        reading(json!(false), recently() + year),
        reading(json!(2), recently() - 5),
    ];
    let body = json!({"epoch": EPOCH, "first_seq": 1, "readings": readings});
    let answer = expect(post(&served, &body), StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([range(1, 3), range(8, 8)]));
    let rejected = json!([
        {"seq": 4, "reason": "bad_text"},
        {"seq": 5, "reason": "bad_text"},
        {"seq": 6, "reason": "too_old"},
        {"seq": 7, "reason": "too_new"},
    ]);
    assert_eq!(answer["refused"], rejected);
    assert_eq!(answer["rejected"], rejected);
    // The same once more is answered alike.
    assert_eq!(expect(post(&served, &body), StatusCode::OK).await, answer);
    let ledger = served.get("/api/v1/devices/press-7/ledger").await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    // What is refused is its sender's: it was not accepted, it is no gap, and it may come again.
    let balance = json!({
        "accepted": 4, "committed": 4, "pending": 0, "quarantined": 0, "evicted": 0, "discarded": 0,
    });
    assert_eq!(ledger["balance"], balance, "{ledger}");
    assert_eq!(ledger["epochs"][0]["gaps"], json!([]), "{ledger}");
    let mended =
        json!({"epoch": EPOCH, "first_seq": 4, "readings": [reading(json!("ab"), recently() - 3)]});
    let answer = expect(post(&served, &mended), StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([range(4, 4)]));
    // One sequence with two contents: another value, and another time.
    let mut changed = body.clone();
    changed["readings"] = json!([body["readings"][0], body["readings"][1]]);
    changed["readings"][0]["value"] = json!(9);
    let answer = expect(post(&served, &changed), StatusCode::OK).await;
    let first = json!([{"seq": 1, "reason": "epoch_reuse"}]);
    assert_eq!(
        (&answer["refused"], &answer["committed"]),
        (&first, &json!([range(2, 2)]))
    );
    let mut other = body;
    other["readings"] = json!([reading(json!(9), recently() + 1_000_000)]);
    let answer = expect(post(&served, &other), StatusCode::OK).await;
    assert_eq!(
        answer["rejected"],
        json!([{"seq": 1, "reason": "epoch_reuse"}])
    );
}

#[tokio::test]
async fn bodies_have_their_bounds() {
    let served = Served::start().await;
    expect(post(&served, &body(1, 4095)), StatusCode::OK).await;
    expect(post(&served, &body(1, 4096)), StatusCode::OK).await;
    expect(post(&served, &body(1, 4097)), StatusCode::BAD_REQUEST).await;

    let sized = |kind: &'static str, bytes: usize| {
        let request = served.request(Method::POST, PATH);
        request.header("content-type", kind).body(vec![b' '; bytes])
    };
    let (json, mib) = ("application/json", 1024 * 1024);
    expect(sized(json, mib), StatusCode::BAD_REQUEST).await;
    expect(sized(json, mib + 1), StatusCode::PAYLOAD_TOO_LARGE).await;
    expect(sized(BATCH, mib / 4), StatusCode::BAD_REQUEST).await;
    expect(sized(BATCH, mib / 4 + 1), StatusCode::PAYLOAD_TOO_LARGE).await;
    for kind in ["text/plain", "application/octet-stream"] {
        expect(sized(kind, 1), StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    }
    let bare = served.request(Method::POST, PATH).body("{}");
    expect(bare, StatusCode::UNSUPPORTED_MEDIA_TYPE).await;

    // A white margin fills a body up to its bound, and it is still read.
    let mut text = body(1, 1).to_string();
    text.push_str(&" ".repeat(mib - text.len()));
    let request = served
        .request(Method::POST, PATH)
        .header("content-type", json);
    expect(request.body(text), StatusCode::OK).await;
    // What is no batch says so.
    let request = served
        .request(Method::POST, PATH)
        .header("content-type", BATCH);
    let refused = expect(request.body("garbage"), StatusCode::BAD_REQUEST).await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("version"), "{detail}");
    assert_eq!(served.store.counts().await.unwrap().dead_letters, 0);
}

#[tokio::test]
async fn types_arrive_as_they_were_written() {
    let served = Served::start().await;
    let text = format!(
        r#"{{"epoch": "{EPOCH}", "readings": [
            {{"seq": 4, "sensor": "a", "observed_at": {at}, "value": 1}},
            {{"seq": 3, "sensor": "b", "observed_at": {at}, "value": 1.0}},
            {{"seq": 2, "sensor": "c", "observed_at": {at}, "value": 1, "type": "f64", "quality": "bad"}},
            {{"seq": 1, "sensor": "d", "observed_at": {at}, "value": "1"}}]}}"#,
        at = recently()
    );
    let request = served
        .request(Method::POST, PATH)
        .header("content-type", "application/json");
    let answer = expect(request.body(text), StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([range(1, 4)]));
    let latest = served.get("/api/v1/devices/press-7/telemetry/latest").await;
    let values: Vec<String> = latest["readings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reading| format!("{} {}", reading["value"], reading["quality"]))
        .collect();
    assert_eq!(
        values,
        [
            "1 \"good\"",
            "1.0 \"good\"",
            "1.0 \"bad\"",
            "\"1\" \"good\""
        ]
    );
}

#[tokio::test]
async fn a_time_in_another_unit_is_refused_and_a_body_may_say_its_unit() {
    let served = Served::start().await;
    let seconds = base() / 1_000_000;
    let mut body = json!({"epoch": EPOCH, "first_seq": 1, "readings": [
        {"sensor": "temperature", "observed_at": base(), "value": 1},
        {"sensor": "temperature", "observed_at": seconds, "value": 2}]});
    let refused = expect(post(&served, &body), StatusCode::BAD_REQUEST).await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("readings[1].observed_at") && detail.contains("looks like seconds"),
        "{detail}"
    );
    body["readings"][1]["observed_at"] = Value::Null;
    let refused = expect(post(&served, &body), StatusCode::BAD_REQUEST).await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("readings[1].observed_at: is missing"),
        "{detail}"
    );

    // Nothing of it was kept; in its unit it is what was meant.
    body["timestamp_unit"] = json!("s");
    body["readings"][0]["observed_at"] = json!(seconds as f64 + 0.25);
    body["readings"][1]["observed_at"] = json!(seconds);
    let answer = expect(post(&served, &body), StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([range(1, 2)]));
    let stored = served
        .get("/api/v1/devices/press-7/telemetry?order=newest")
        .await;
    assert_eq!(stored["readings"].as_array().unwrap().len(), 2);
    let wrong = served.request(
        Method::GET,
        &format!("/api/v1/devices/press-7/telemetry?to={seconds}"),
    );
    let refused = expect(wrong, StatusCode::BAD_REQUEST).await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("looks like seconds"), "{detail}");
}
