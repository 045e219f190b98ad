//! What sensors are, as the API shows it: by page, and beside readings in each form.

use reqwest::{Method, StatusCode};
use schema::message::DeclaredSensor;
use schema::sensor::Precision;
use schema::{Hlc, SensorDeclaration, ValueType};
use serde_json::{Value, json};
use store::sensors::SensorsReport;
use testkit::readings::*;

use super::{Served, expect};

fn declared(sensor: &str, declaration: SensorDeclaration) -> DeclaredSensor {
    DeclaredSensor {
        sensor: sensor.parse().unwrap(),
        version: Hlc::new(1_000, 7),
        declaration,
    }
}

#[tokio::test]
async fn sensors_of_a_device_are_listed_page_by_page_and_units_beside_readings() {
    let served = Served::start().await;
    served
        .store
        .ingest(&[delivery("d", rows(1, 5))])
        .await
        .unwrap();
    let path = "/api/v1/devices/d";
    let all = served.get(&format!("{path}/telemetry")).await;
    let read = all["readings"][0]["sensor"].as_str().unwrap().to_owned();
    let whole = SensorDeclaration {
        unit: Some("kW.h".to_owned()),
        description: Some("hall 3".to_owned()),
        value_type: Some(ValueType::Float),
        min: Some(-1.5),
        max: None,
        precision: Some(Precision::Step(0.5)),
        interval_ms: Some(1_500),
    };
    let sensors = vec![
        declared("a/b c", SensorDeclaration::default()),
        declared(&read, whole),
        declared("~", SensorDeclaration::default()),
    ];
    let report = SensorsReport {
        device: device("d"),
        sensors,
        received_at: schema::time::ReceivedAt::from_micros(2_000_000),
    };
    served.store.declare_sensors(&[report]).await.unwrap();

    let listed = served.get(&format!("{path}/sensors")).await;
    let found = listed["sensors"].as_array().unwrap();
    assert_eq!((found.len(), &listed["next"]), (3, &Value::Null));
    let it = found.iter().find(|of| of["sensor"] == read.as_str());
    let expected = json!({
        "sensor": read, "unit": "kW.h", "description": "hall 3", "type": "float", "min": -1.5,
        "max": null, "decimals": null, "step": 0.5, "interval_seconds": 1.5,
        "declared_at": "1970-01-01T00:00:02Z", "hlc": Hlc::new(1_000, 7).bits(),
    });
    assert_eq!(it, Some(&expected));
    let (mut after, mut paged) = (String::new(), Vec::new());
    loop {
        let page = served.get(&format!("{path}/sensors?limit=2{after}")).await;
        paged.extend(page["sensors"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace(' ', "%20")),
            None => break,
        }
    }
    assert_eq!(&paged, found);
    let wrong = served.request(Method::GET, &format!("{path}/sensors?after=a%0Ab"));
    expect(wrong, StatusCode::BAD_REQUEST).await;
    let other = served.get("/api/v1/devices/x/sensors").await;
    assert_eq!(other["sensors"], json!([]));

    // Units stand beside readings only where they are asked for.
    let plain = all["readings"][0].as_object().unwrap();
    assert!(!plain.contains_key("unit"));
    let with = served.get(&format!("{path}/telemetry?units=true")).await;
    assert_eq!(with["readings"][0]["unit"], "kW.h");
    let text = async |query: &str| {
        let asked = served.request(Method::GET, &format!("{path}/telemetry?{query}"));
        asked.send().await.unwrap().text().await.unwrap()
    };
    let csv = text("format=csv&units=true").await;
    assert!(
        csv.starts_with("sensor,observed_at,value,type,quality,received_at,epoch,seq,hlc,unit\r\n")
    );
    assert_eq!(csv.matches(",kW.h\r\n").count(), 5, "{csv}");
    assert!(!text("format=csv").await.contains("unit"));
    let arrow = served.request(
        Method::GET,
        &format!("{path}/telemetry?format=arrow&sensor={read}"),
    );
    let arrow = arrow.send().await.unwrap().bytes().await.unwrap();
    let holds = |text: &str| {
        arrow
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("tideline.sensors") && holds("hall 3"));
}
