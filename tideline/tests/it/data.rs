//! Readings out of the database, in every form, and into it.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use testkit::wait::blocking;

use crate::Running;

/// A device that does not speak MQTT, with `count` readings of each of two sensors.
fn handed_in(running: &Running, count: u32) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("readings.json");
    let mut readings = Vec::new();
    for number in 0..count {
        let at = format!("2026-01-31T08:{:02}:{:02}Z", number / 60, number % 60);
        for sensor in ["temperature", "note, or so"] {
            let value = match sensor {
                "temperature" => serde_json::json!(20.0 + f64::from(number)),
                _ => serde_json::json!(format!("line \"{number}\"\nnext")),
            };
            readings.push(serde_json::json!({"sensor": sensor, "observed_at": at, "value": value}));
        }
    }
    let body = serde_json::json!({"epoch": "0123456789ab", "first_seq": 1, "readings": readings});
    fs::write(&file, body.to_string()).unwrap();
    running.json(&["data", "send", "gateway-1", file.to_str().unwrap()])
}

#[test]
fn readings_are_handed_in_once_and_read_in_every_form() {
    let running = Running::start();
    for _ in 0..2 {
        let answer = handed_in(&running, 600);
        assert_eq!(answer["refused"], serde_json::json!([]), "{answer}");
    }
    let get = |more: &[&str]| {
        let all = [&["data", "get", "gateway-1", "--limit", "100000"], more].concat();
        running.text(&all)
    };
    // Twice sent, once there.
    let json = get(&["--format", "json"]);
    assert_eq!(json.lines().count(), 1_200);
    let one = get(&[
        "--sensor",
        "temperature",
        "--format",
        "json",
        "--order",
        "newest",
    ]);
    assert_eq!(one.lines().count(), 600);
    let first: Value = serde_json::from_str(one.lines().next().unwrap()).unwrap();
    assert_eq!(first["value"], 619.0, "{first}");
    let table = get(&["--sensor", "temperature", "--to", "2026-01-31T08:00:05Z"]);
    assert_eq!(table.lines().count(), 6, "{table}");
    let csv = get(&["--sensor", "temperature", "--format", "csv"]);
    assert_eq!(csv.lines().count(), 601);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out");
    let out = file.to_str().unwrap();
    get(&["--format", "csv", "-o", out]);
    assert!(fs::read_to_string(&file).unwrap().contains("note, or so"));
    let again = running.run(&["data", "get", "gateway-1", "--format", "arrow", "-o", out]);
    assert!(!again.status.success());
    assert!(fs::read_to_string(&file).unwrap().contains("note, or so"));
    get(&["--format", "arrow", "--force", "-o", out]);
    // The mark of an Arrow stream's first message.
    assert_eq!(fs::read(&file).unwrap()[..4], [0xff; 4]);

    // A cut answer says how it goes on.
    let cut = running.run(&["data", "get", "gateway-1", "--limit", "7", "--json"]);
    let said = String::from_utf8(cut.stderr).unwrap();
    let place = said.trim().rsplit(' ').next().unwrap();
    let rest = get(&["--format", "json", "--after", place]);
    assert_eq!(rest.lines().count(), 1_193, "{said}");

    let buckets = running.lines(&[
        "data",
        "aggregate",
        "gateway-1",
        "--sensor",
        "temperature",
        "--bucket",
        "5m",
    ]);
    let counts: Vec<&Value> = buckets.iter().map(|bucket| &bucket["count"]).collect();
    assert_eq!(counts, [&300, &300]);
    let table = running.text(&[
        "data",
        "aggregate",
        "gateway-1",
        "--sensor",
        "temperature",
        "--bucket",
        "5m",
    ]);
    assert!(table.contains("MEAN"), "{table}");
    let latest = running.lines(&["data", "latest", "gateway-1"]);
    assert_eq!(latest.len(), 2);
    assert!(
        running
            .lines(&["data", "conflicts", "gateway-1"])
            .is_empty()
    );
}

#[test]
fn readings_alone_come_from_standard_input() {
    let running = Running::start();
    let send = |arguments: &[&str], text: &str| {
        let all = [&["data", "send", "gateway-2", "-"], arguments].concat();
        let mut child = running
            .command(&all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let line = r#"{"sensor": "a", "observed_at": "2026-01-31T08:00:00Z", "value": true}"#;
    let sent = send(&[], &format!("{line}\n{line}\n"));
    let text = String::from_utf8(sent.stdout).unwrap();
    assert!(sent.status.success() && text.contains("epoch"), "{text}");
    let wrong = send(&[], "[{}]");
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert_eq!(send(&[], "no").status.code(), Some(2));

    // A time in seconds: what to type is said, not what a file would have to hold.
    let line = r#"{"sensor": "a", "observed_at": 1769846400, "value": true}"#;
    let wrong = send(&[], line);
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert!(text.contains("--timestamp-unit s"), "{text}");
    assert!(send(&["--timestamp-unit", "s"], line).status.success());
}

#[test]
fn dead_letters_are_listed_tried_again_and_thrown_away() {
    let running = Running::start();
    // A device's certificate, and bytes that are no batch.
    let endpoint = |key: &str| running.endpoints[key].as_str().unwrap().to_owned();
    let ca = endpoint("ca");
    let certs = std::path::Path::new(&ca).parent().unwrap();
    let file = |ending: &str| {
        let name = format!("device/{}.{ending}", running.device);
        certs.join(name).to_str().unwrap().to_owned()
    };
    let (cert, key) = (file("pem"), file("key"));
    let mqtt = endpoint("mqtt");
    let (host, port) = mqtt.split_once(':').unwrap();
    // The agent has this name too: whoever comes last stays, so it is tried until it got through.
    blocking::until("there is a dead letter", || {
        let topic = format!("tl/v1/{}/up/telemetry", running.device);
        let _ = std::process::Command::new("mosquitto_pub")
            .args([
                "-h", host, "-p", port, "--cafile", &ca, "--cert", &cert, "--key", &key,
            ])
            .args([
                "-i",
                &running.device,
                "-q",
                "1",
                "-t",
                &topic,
                "-m",
                "nonsense",
            ])
            .output()
            .unwrap();
        !running.lines(&["dead-letter", "list"]).is_empty()
    });
    let letters = running.lines(&["dead-letter", "list", "--device", &running.device]);
    let id = letters[0]["id"].as_str().unwrap();
    let table = running.text(&["dead-letter", "list"]);
    assert!(table.starts_with("LETTER") && table.contains(id), "{table}");
    let shown = running.text(&["dead-letter", "show", id]);
    assert!(
        shown.contains("tideline decode") && shown.contains("reason"),
        "{shown}"
    );
    running.refused(&["dead-letter", "retry", id], 1, &["422"]);
    running.text(&["dead-letter", "discard", id, "--yes"]);
    running.refused(&["dead-letter", "show", id], 1, &["404"]);
}
