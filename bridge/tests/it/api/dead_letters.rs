//! Dead letters: looked at, tried again, thrown away.

use bridge::auth::Role;
use reqwest::{Method, StatusCode};
use schema::codec::Encoder;
use schema::message::ack::payload_digest;
use schema::time::ReceivedAt;
use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, Value as Reading};
use serde_json::{Value, json};
use store::DeadLetter;
use store::quota::Quotas;

use super::{Served, expect, now};

const PATH: &str = "/api/v1/dead-letters";

/// A payload of readings so many seconds old.
fn payload(seqs: std::ops::RangeInclusive<u64>, age: i64) -> Vec<u8> {
    let at = (now() as i64 - age) * 1_000_000;
    let rows = seqs.map(|seq| Row {
        sensor: 0,
        observed_at: ObservedAt::from_micros(at + seq as i64),
        hlc: Hlc::new(seq, 0),
        seq,
        quality: Quality::Good,
        value: Reading::I64(seq as i64),
    });
    let batch = Batch {
        epoch: Epoch::try_from(42).unwrap(),
        sensors: vec!["s".parse().unwrap()],
        rows: rows.collect(),
    };
    let mut payload = Vec::new();
    Encoder::default().encode(&batch, &mut payload).unwrap();
    payload
}

/// Sets a payload aside; returns the letter's path.
async fn keep(served: &Served, channel: &str, payload: &[u8]) -> String {
    let letter = DeadLetter {
        device: Some("press-7".parse().unwrap()),
        topic: format!("tl/v1/press-7/up/{channel}"),
        payload: payload.to_vec().into(),
        reason: "payload has version 9".to_owned(),
        received_at: ReceivedAt::from_micros(now() as i64 * 1_000_000),
    };
    served.store.keep_dead_letters(&[letter]).await.unwrap();
    format!("{PATH}/{:016x}.press-7", payload_digest(payload))
}

async fn retry(served: &Served, letter: &str, status: StatusCode) -> Value {
    let request = served.request(Method::POST, &format!("{letter}/retry"));
    expect(request, status).await
}

async fn is_there(served: &Served, letter: &str) -> bool {
    let request = served.request(Method::GET, letter).send().await.unwrap();
    request.status() == StatusCode::OK
}

#[tokio::test]
async fn a_payload_that_can_be_read_today_is_committed_and_gone() {
    let served = Served::start().await;
    let payload = payload(1..=5, 60);
    let letter = keep(&served, "telemetry", &payload).await;
    let shown = served.get(&letter).await;
    assert_eq!(shown["device"], "press-7");
    assert_eq!(shown["payload_hex"], hex(&payload));
    let answer = retry(&served, &letter, StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([{"first": 1, "last": 5}]));
    assert!(!is_there(&served, &letter).await);
    retry(&served, &letter, StatusCode::NOT_FOUND).await;
    assert_eq!(served.store.counts().await.unwrap().telemetry, 5);
    let ledger = served
        .get("/api/v1/devices/press-7/ledger?verify=true")
        .await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
}

/// Killed after the commit and before the letter was gone: both are there, and again is the same.
#[tokio::test]
async fn a_letter_that_is_committed_already_only_goes() {
    let served = Served::start().await;
    let payload = payload(1..=5, 60);
    let post = served
        .request(Method::POST, "/api/v1/devices/press-7/readings")
        .header("content-type", "application/vnd.tideline.batch")
        .body(payload.clone());
    expect(post, StatusCode::OK).await;
    let letter = keep(&served, "telemetry", &payload).await;
    let answer = retry(&served, &letter, StatusCode::OK).await;
    assert_eq!(answer["committed"], json!([{"first": 1, "last": 5}]));
    assert_eq!(answer["rejected"], json!([]));
    assert!(!is_there(&served, &letter).await);
    let counts = served.store.counts().await.unwrap();
    assert_eq!((counts.telemetry, counts.conflicts), (5, 0));
}

#[tokio::test]
async fn what_cannot_be_used_today_either_stays_with_its_reason() {
    let served = Served::start().await;
    let long_ago = 11 * 365 * 86_400;
    for (channel, payload, part) in [
        ("telemetry", b"garbage".to_vec(), "version"),
        ("telemetry", payload(1..=2, long_ago), "too_old"),
        ("telemetry", vec![1; 64 * 1024 + 1], "65537 bytes"),
        ("event", payload(1..=2, 60), "no telemetry"),
        ("status", b"\x01".to_vec(), "no telemetry"),
    ] {
        let letter = keep(&served, channel, &payload).await;
        let refused = retry(&served, &letter, StatusCode::UNPROCESSABLE_ENTITY).await;
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{part:?} is not in {detail}");
        assert!(is_there(&served, &letter).await, "{detail}");
    }
    let counts = served.store.counts().await.unwrap();
    assert_eq!(
        (counts.telemetry, counts.ledger, counts.dead_letters),
        (0, 0, 5)
    );
}

#[tokio::test]
async fn letters_are_listed_by_page_and_thrown_away() {
    let served = Served::start().await;
    for number in 0..5u8 {
        keep(&served, "telemetry", &[number; 300]).await;
    }
    let (mut found, mut query) = (Vec::new(), "?limit=2&device=press-7".to_owned());
    loop {
        let page = served.get(&format!("{PATH}{query}")).await;
        for letter in page["dead_letters"].as_array().unwrap() {
            assert_eq!(letter["payload_hex"].as_str().unwrap().len(), 2 * 256);
            assert_eq!(letter["payload_bytes"], 300);
            found.push(letter["id"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("?limit=2&device=press-7&after={next}");
    }
    assert_eq!(found.len(), 5);
    let letter = format!("{PATH}/{}", found[0]);
    // Looking is for all who read the fleet, deciding is not.
    let operator = served.token("anna", Role::Operator);
    let look = served.bare(Method::GET, &letter).bearer_auth(&operator);
    expect(look, StatusCode::OK).await;
    let discard = served.bare(Method::DELETE, &letter).bearer_auth(&operator);
    expect(discard, StatusCode::FORBIDDEN).await;
    expect(
        served.request(Method::DELETE, &letter),
        StatusCode::NO_CONTENT,
    )
    .await;
    expect(
        served.request(Method::DELETE, &letter),
        StatusCode::NOT_FOUND,
    )
    .await;
    expect(served.request(Method::GET, &letter), StatusCode::NOT_FOUND).await;
    let nonsense = served.request(Method::GET, &format!("{PATH}/nonsense"));
    expect(nonsense, StatusCode::BAD_REQUEST).await;
    assert_eq!(served.store.counts().await.unwrap().dead_letters, 4);
}

#[tokio::test]
async fn lists_say_how_many_were_not_kept() {
    let served = Served::start().await;
    let mut quotas = Quotas::UNLIMITED;
    quotas.dead_letters.device.rows = 2;
    served.store.set_quotas(quotas);
    for number in 0..2u8 {
        keep(&served, "telemetry", &[number]).await;
    }
    let mine = format!("{PATH}?limit=1&device=press-7");
    assert_eq!(served.get(&mine).await["not_kept"], 0);
    for number in 2..5u8 {
        keep(&served, "telemetry", &[number]).await;
    }
    let first = served.get(&mine).await;
    assert_eq!(first["not_kept"], 3);
    let next = first["next"].as_str().unwrap();
    let behind = served.get(&format!("{mine}&after={next}")).await;
    assert_eq!(behind.get("not_kept"), None);
    assert_eq!(served.get(PATH).await["not_kept"], 3);
    let other = served.get(&format!("{PATH}?device=press-8")).await;
    assert_eq!(other["not_kept"], 0);
    let conflicts = served.get("/api/v1/devices/press-7/conflicts").await;
    assert_eq!(conflicts["not_kept"], 0);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
