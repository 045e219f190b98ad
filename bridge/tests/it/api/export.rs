//! Readings as JSON, CSV and Arrow, page by page; and by time bucket.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, TimestampMicrosecondType, UInt64Type};
use arrow_ipc::reader::StreamReader;
use reqwest::{Method, Response, StatusCode};
use schema::time::ReceivedAt;
use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, Value as Reading};
use serde_json::{Value, json};
use store::{Delivery, Origin};

use super::{Served, expect};

const PATH: &str = "/api/v1/devices/press-7/telemetry";
const START: i64 = 1_700_000_000_000_000;

/// Three sensors, read each second for a minute.
async fn filled() -> Served {
    let served = Served::start().await;
    let rows = (0..180u64).map(|at| Row {
        sensor: (at % 3) as u16,
        observed_at: ObservedAt::from_micros(START + (at / 3) as i64 * 1_000_000),
        hlc: Hlc::new(at, 0),
        seq: at + 1,
        quality: Quality::Good,
        value: match at % 3 {
            0 => Reading::F64((at / 3) as f64),
            1 => Reading::Text(format!("=1+{at}").into()),
            _ => Reading::Bool(at % 2 == 0),
        },
    });
    let delivery = Delivery {
        device: "press-7".parse().unwrap(),
        batch: Batch {
            epoch: Epoch::try_from(42).unwrap(),
            sensors: ["temperature", "note, \"free\"", "door °"]
                .map(|name| name.parse().unwrap())
                .to_vec(),
            rows: rows.collect(),
        },
        rejected: Vec::new(),
        received_at: ReceivedAt::from_micros(START),
        origin: Origin::Device,
    };
    served.store.ingest(&[delivery]).await.unwrap();
    served
}

async fn fetch(served: &Served, query: &str, accept: Option<&str>) -> Response {
    let mut request = served.request(Method::GET, &format!("{PATH}{query}"));
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    request.send().await.unwrap()
}

fn next(answer: &Response) -> Option<String> {
    let next = answer.headers().get("x-next")?;
    Some(next.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn pages_hold_everything_once() {
    let served = filled().await;
    for order in ["oldest", "newest"] {
        let (mut seen, mut pages) = (Vec::new(), 0);
        let mut query = format!("?limit=7&order={order}");
        loop {
            let answer = fetch(&served, &query, None).await;
            let next = next(&answer);
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["next"].as_str().map(str::to_owned), next);
            let of = |reading: &Value| reading["seq"].as_u64().unwrap();
            seen.extend(body["readings"].as_array().unwrap().iter().map(of));
            pages += 1;
            let Some(next) = next else { break };
            query = format!("?limit=7&order={order}&after={next}");
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=180).collect::<Vec<u64>>(), "{order}");
        assert_eq!(pages, 26, "{order}");
    }
}

#[tokio::test]
async fn csv_is_paged_and_safe() {
    let served = filled().await;
    let answer = fetch(&served, "?limit=4", Some("text/csv")).await;
    let headers = answer.headers();
    assert_eq!(
        headers["content-type"],
        "text/csv; charset=utf-8; header=present"
    );
    assert_eq!(
        headers["content-disposition"],
        "attachment; filename=\"press-7.csv\""
    );
    assert!(next(&answer).is_some());
    let text = answer.text().await.unwrap();
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(
        lines[0],
        "sensor,observed_at,value,type,quality,received_at,epoch,seq,hlc"
    );
    let line =
        "door °,2023-11-14T22:13:20Z,true,bool,good,2023-11-14T22:13:20Z,00000000002a,3,131072";
    assert_eq!(lines[1], line);
    assert!(
        lines[2].starts_with("\"note, \"\"free\"\"\",2023-11-14T22:13:20Z,'=1+1,text,"),
        "{text}"
    );
    assert!(
        lines[3].starts_with("temperature,2023-11-14T22:13:20Z,0.0,f64,"),
        "{text}"
    );
}

#[tokio::test]
async fn arrow_is_read_by_its_own_reader() {
    let served = filled().await;
    let (mut seen, mut query) = (Vec::new(), "?limit=100&format=arrow".to_owned());
    loop {
        let answer = fetch(&served, &query, None).await;
        assert_eq!(
            answer.headers()["content-type"],
            "application/vnd.apache.arrow.stream"
        );
        let next = next(&answer);
        let bytes = answer.bytes().await.unwrap();
        for batch in StreamReader::try_new(&bytes[..], None).unwrap() {
            let batch = batch.unwrap();
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let seq = column("seq").as_primitive::<UInt64Type>();
            let at = column("observed_at").as_primitive::<TimestampMicrosecondType>();
            let number = column("value_f64").as_primitive::<Float64Type>();
            let text = column("value_text").as_string::<i32>();
            for row in 0..batch.num_rows() {
                let seq = seq.value(row) - 1;
                assert_eq!(at.value(row), START + (seq / 3) as i64 * 1_000_000);
                match seq % 3 {
                    0 => assert_eq!(number.value(row), (seq / 3) as f64),
                    1 => assert_eq!(text.value(row), format!("=1+{seq}")),
                    _ => {}
                }
                seen.push(seq);
            }
        }
        let Some(next) = next else { break };
        query = format!("?limit=100&format=arrow&after={next}");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..180).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_form_that_is_not_there_is_refused() {
    let served = filled().await;
    for (query, accept, status) in [
        ("?format=xml", None, StatusCode::BAD_REQUEST),
        ("", Some("text/html"), StatusCode::NOT_ACCEPTABLE),
        ("?after=x", None, StatusCode::BAD_REQUEST),
        ("?order=latest", None, StatusCode::BAD_REQUEST),
        (
            "/aggregates?sensor=temperature&bucket=1m&format=arrow",
            None,
            StatusCode::BAD_REQUEST,
        ),
        (
            "/aggregates?sensor=temperature&bucket=1m",
            Some("application/vnd.apache.arrow.stream"),
            StatusCode::NOT_ACCEPTABLE,
        ),
        (
            "/aggregates?sensor=temperature",
            None,
            StatusCode::BAD_REQUEST,
        ),
        ("/aggregates?bucket=1m", None, StatusCode::BAD_REQUEST),
        (
            "/aggregates?sensor=temperature&bucket=0s",
            None,
            StatusCode::BAD_REQUEST,
        ),
        (
            "/aggregates?sensor=temperature&bucket=367d",
            None,
            StatusCode::BAD_REQUEST,
        ),
        (
            "/aggregates?sensor=temperature&bucket=1m&limit=10001",
            None,
            StatusCode::BAD_REQUEST,
        ),
        (
            "/aggregates?sensor=temperature&bucket=1m&quality=fine",
            None,
            StatusCode::BAD_REQUEST,
        ),
        (
            "/aggregates?sensor=temperature&bucket=1m&limit=10000",
            None,
            StatusCode::OK,
        ),
        ("?format=csv", Some("text/html"), StatusCode::OK),
        ("", Some("text/html, */*"), StatusCode::OK),
    ] {
        let answer = fetch(&served, query, accept).await;
        assert_eq!(answer.status(), status, "{query} {accept:?}");
    }
}

#[tokio::test]
async fn numbers_are_summed_up_by_bucket() {
    let served = filled().await;
    let of = |query: &str| format!("{PATH}/aggregates?sensor=temperature&{query}");
    let found = served.get(&of("bucket=30s&limit=2")).await;
    // 22:13:20 is within a bucket of 30 s.
    let expected = json!([
        {"start": "2023-11-14T22:13:00Z", "count": 10, "min": 0.0, "max": 9.0, "mean": 4.5, "first": 0.0, "last": 9.0},
        {"start": "2023-11-14T22:13:30Z", "count": 30, "min": 10.0, "max": 39.0, "mean": 24.5, "first": 10.0, "last": 39.0},
    ]);
    assert_eq!(found["buckets"], expected);
    assert_eq!(found["bucket_seconds"], 30);
    let next = found["next"].as_str().unwrap();
    let rest = served
        .get(&of(&format!("bucket=30s&limit=2&after={next}")))
        .await;
    assert_eq!(rest["buckets"].as_array().unwrap().len(), 1);
    assert_eq!(rest["buckets"][0]["count"], 20);
    assert!(rest.get("next").is_none(), "{rest}");

    let request = served.request(Method::GET, &of("bucket=1d&format=csv"));
    let text = request.send().await.unwrap().text().await.unwrap();
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(lines[0], "start,count,min,max,mean,first,last");
    assert_eq!(lines[1], "2023-11-14T00:00:00Z,60,0.0,59.0,29.5,0.0,59.0");

    // Texts are no numbers, bools are 0 and 1.
    let note = "note%2C%20%22free%22";
    let notes = served
        .get(&format!("{PATH}/aggregates?sensor={note}&bucket=1h"))
        .await;
    assert_eq!(notes["buckets"], json!([]));
    let doors = served
        .get(&format!("{PATH}/aggregates?sensor=door%20%C2%B0&bucket=1h"))
        .await;
    assert_eq!(doors["buckets"][0]["mean"], 0.5);
    let unknown = served.request(
        Method::GET,
        "/api/v1/devices/nobody/telemetry/aggregates?sensor=s&bucket=1s",
    );
    assert_eq!(expect(unknown, StatusCode::OK).await["buckets"], json!([]));
}
