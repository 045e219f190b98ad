//! What sensors are, as a person sees it: the host source declares its own.

use std::fs;

use crate::Running;

#[test]
fn what_sensors_are_is_shown_in_every_form() {
    let running = Running::start();
    let device = running.device.as_str();
    let is = |of: &serde_json::Value, name: &str| of["sensor"] == name;
    let sensors = running.until(&["device", "sensors", device], |sensors| {
        let has = |name| sensors.iter().any(|of| is(of, name));
        has("host/load/1m") && has("host/memory/used_bytes")
    });
    let memory = sensors.iter().find(|of| is(of, "host/memory/used_bytes"));
    let memory = memory.unwrap();
    assert_eq!(
        (memory["unit"].as_str(), memory["type"].as_str()),
        (Some("By"), Some("integer"))
    );
    let table = running.text(&["device", "sensors", device]);
    assert!(
        table.contains("DESCRIPTION") && table.contains("what is in use"),
        "{table}"
    );

    running.until(&["data", "latest", device], |latest| !latest.is_empty());
    let get = |more: &[&str]| {
        let all = [
            &["data", "get", device, "--sensor", "host/memory/used_bytes"],
            more,
        ]
        .concat();
        running.text(&all)
    };
    let plain = get(&["--format", "csv"]);
    assert!(plain.lines().next().unwrap().ends_with(",hlc"), "{plain}");
    let with_units = get(&["--format", "csv", "--units"]);
    let mut lines = with_units.lines();
    assert!(lines.next().unwrap().ends_with(",hlc,unit"), "{with_units}");
    assert!(lines.next().unwrap().ends_with(",By"), "{with_units}");
    assert!(get(&["--format", "json", "--units"]).contains(r#""unit":"By""#));
    assert!(!get(&["--format", "json"]).contains(r#""unit""#));
    assert!(get(&["--units"]).contains("UNIT"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.arrows");
    get(&["--format", "arrow", "-o", file.to_str().unwrap()]);
    let bytes = fs::read(&file).unwrap();
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("tideline.sensors") && holds("what is in use"));
}
