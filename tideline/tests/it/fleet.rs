//! Devices, fan-outs and groups, as an operator goes about them.

use serde_json::{Value, json};

use crate::Running;

#[test]
fn devices_are_listed_labelled_and_retired() {
    let running = Running::start();
    let device = running.device.as_str();
    running.until(&["device", "list", "--online"], |lines| {
        lines.iter().any(|line| line["device"] == device)
    });
    let table = running.text(&["device", "list"]);
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("DEVICE"), "{table}");
    assert!(
        table.contains("online") && table.contains(device),
        "{table}"
    );

    let labelled = running.json(&["device", "label", device, "site=lyon", "line=3"]);
    assert_eq!(labelled["labels"], json!({"site": "lyon", "line": "3"}));
    let labelled = running.json(&["device", "label", device, "line-"]);
    assert_eq!(labelled["labels"], json!({"site": "lyon"}));
    let shown = running.text(&["device", "show", device]);
    assert!(shown.contains("site=lyon"), "{shown}");
    let count = |more: &[&str]| running.lines(&[&["device", "list"], more].concat()).len();
    assert_eq!(count(&["--label", "site=lyon"]), 1);
    assert_eq!(count(&["--label", "site=lyon", "--label", "line=3"]), 0);
    assert_eq!(count(&["--prefix", &device[..1]]), 1);
    assert_eq!(count(&["--prefix", "no-such"]), 0);
    assert_eq!(count(&["--offline"]), 0);

    // Many devices come in several pages.
    for number in 0..5 {
        running.json(&["device", "label", &format!("page-{number}"), "page=yes"]);
    }
    assert_eq!(count(&["--prefix", "page-"]), 5);
    assert_eq!(count(&["--prefix", "page-", "--limit", "3"]), 3);
    let cut = running.run(&["device", "list", "--prefix", "page-", "--limit", "3"]);
    assert!(
        String::from_utf8_lossy(&cut.stderr).contains("--limit"),
        "{cut:?}"
    );

    let retired = running.json(&["device", "retire", "page-0", "--yes"]);
    assert!(retired["retired_at"].is_string(), "{retired}");
    assert_eq!(count(&["--prefix", "page-"]), 4);
    let found = running.lines(&["device", "list", "--retired"]);
    assert_eq!(found[0]["device"], "page-0");
    running.json(&["device", "reinstate", "page-0"]);
    assert_eq!(count(&["--prefix", "page-"]), 5);

    running.refused(&["device", "show", "no-such"], 1, &["404"]);
    running.refused(&["device", "label", device, "BAD KEY=x"], 1, &["400"]);
}

#[test]
fn a_command_goes_to_all_that_have_a_label() {
    let running = Running::start();
    let device = running.device.as_str();
    running.json(&["device", "label", device, "site=lyon"]);
    let sent = running.run(&["command", "send", "--label", "site=lyon", "ping", "--watch"]);
    let text = String::from_utf8_lossy(&sent.stdout).into_owned();
    assert!(sent.status.success(), "{sent:?}");
    assert!(text.contains("1 succeeded of 1 device"), "{text}");

    // One of two is not there: the other one's success is not enough.
    running.json(&["device", "label", "nobody", "site=lyon"]);
    let to_both = [
        "command",
        "send",
        "--label",
        "site=lyon",
        "ping",
        "--ttl",
        "5s",
    ];
    let sent = running.json(&to_both);
    let id = sent["id"].as_str().unwrap();
    assert_eq!(sent["devices"], 2, "{sent}");
    let shown = running.until(&["command", "show", id], |lines| {
        lines[0]["states"]["succeeded"] == 1
    });
    assert_eq!(shown[0]["ended"], false, "{shown:?}");
    running.json(&["command", "cancel", id]);
    let watched = running.run(&["command", "show", id, "--watch"]);
    assert_eq!(watched.status.code(), Some(1), "{watched:?}");

    // The device's own list has them too.
    let own = running.json(&["command", "show", device, id]);
    assert_eq!(own["state"], "succeeded", "{own}");
    running.refused(
        &["command", "show", "01900000-0000-7000-8000-000000000000"],
        1,
        &["404"],
    );
}

#[test]
fn settings_of_a_group_reach_its_members_and_are_remembered() {
    let running = Running::start();
    let device = running.device.as_str();
    let key = "host.interval_seconds";
    running.json(&["device", "label", device, "group=presses"]);
    running.json(&["config", "set", "--group", "presses", key, "7"]);
    let config = running.json(&["config", "show", device, "--wait", "30s"]);
    assert_eq!(config["keys"][key]["desired"], json!(7), "{config}");
    assert_eq!(config["keys"][key]["in_force"], true, "{config}");
    let group = running.text(&["config", "show", "--group", "presses"]);
    assert!(group.contains(key) && group.contains('7'), "{group}");

    // Only whoever has seen the latest changes it.
    let tag = config["etag"].as_str().unwrap().to_owned();
    let set = |value: &str, tag: &str| {
        running.run(&["config", "set", device, key, value, "--if-match", tag])
    };
    assert!(set("8", &tag).status.success());
    let late = set("9", &tag);
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert!(
        String::from_utf8_lossy(&late.stderr).contains("412"),
        "{late:?}"
    );

    let history = running.lines(&["config", "history", device, "--key", key]);
    let values: Vec<&Value> = history.iter().map(|change| &change["value"]).collect();
    assert_eq!(values, [&json!(8), &json!(7)], "{history:?}");
    let text = running.text(&["config", "history", "--group", "presses"]);
    assert!(text.starts_with("AT") && text.contains(key), "{text}");
    let wrong = ["config", "set", "--group", "presses", "no.such", "1"];
    running.refused(&wrong, 1, &["no.such"]);
}

#[test]
fn a_bridge_is_looked_at_and_has_no_alerts() {
    let running = Running::start();
    let status = running.text(&["status"]);
    assert!(
        status.contains("devices") && status.contains("online"),
        "{status}"
    );
    running.lines(&["alert", "list"]);
    running.lines(&["alert", "list", "--state", "firing"]);
    let nothing = "0123456789abcdef0123456789abcdef";
    running.refused(&["alert", "acknowledge", nothing], 1, &["404"]);
}

#[test]
fn a_device_is_told_to_offer_its_quarantine_again_or_to_give_it_up() {
    let running = Running::start();
    let device = running.device.as_str();
    running.until(&["ledger"], |fleet| {
        fleet[0]["committed"].as_u64() > Some(0)
    });
    let requeued = running.json(&["device", "requeue", device, "--reason", "too_new"]);
    assert_eq!(requeued["name"], "requeue", "{requeued}");
    assert_eq!(requeued["arguments"], json!({"reason": "too_new"}));
    let discarded = running.json(&["device", "discard", device, "--yes"]);
    assert_eq!(discarded["name"], "discard", "{discarded}");
    assert_eq!(discarded["arguments"], json!({}));
    let told = running.text(&["device", "requeue", device]);
    assert!(told.contains("command show"), "{told}");
    running.refused(&["device", "discard", device], 2, &["--yes"]);
    // Nobody has a quarantine who is not known.
    running.refused(&["device", "requeue", "no-such"], 1, &["404", "no-such"]);
    running.refused(&["device", "discard", "no-such", "--yes"], 1, &["404"]);
    let wrong = ["device", "requeue", device, "--reason", "late"];
    running.refused(&wrong, 2, &["too_old"]);

    // Both ends agree, so that there is nothing to accept.
    let nothing = running.json(&["ledger", "accept-loss", device, "--yes"]);
    assert_eq!(nothing["discarded"], 0, "{nothing}");
    let text = running.text(&["ledger", "accept-loss", device, "--yes"]);
    assert!(text.contains("--verify"), "{text}");
    let verified = running.until(&["ledger", device, "--verify"], |ledger| {
        ledger[0]["counted"]["verdict"] == "sound"
    });
    assert_eq!(verified[0]["balanced"], true, "{verified:?}");
    let text = running.text(&["ledger", device, "--verify"]);
    assert!(
        text.contains("rows are there, as there should be"),
        "{text}"
    );
    assert!(text.contains("0 superseded + 0 expired"), "{text}");
    let status = running.text(&["status"]);
    assert!(status.contains("ledger quarantined"), "{status}");
}
