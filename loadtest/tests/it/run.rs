//! Simulated devices against real processes.

use loadtest::stack::{Plan, Stack};
use testkit::port::free_port;

use crate::{loadtest, report};

fn plan() -> Plan {
    Plan {
        agents: 0,
        bridges: 1,
        database: None,
    }
}

#[test]
fn simulated_devices_deliver_all_that_they_accept() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut stack = Stack::prepare(folder.path(), &plan(), port, |_| port).unwrap();
    stack.start().unwrap();
    let broker = stack.broker_addr().to_string();
    let certs = folder.path().join("certs");
    let run = |more: &[&str]| {
        let mut command = loadtest(&["run", "--json", "--broker", &broker, "--for", "2s"]);
        report(command.arg("--certs").arg(&certs).args(more))
    };
    let (code, report) = run(&["--devices", "50", "--rate", "20", "--sensors", "2"]);
    assert_eq!(
        (code, &report["connected"]),
        (Some(0), &50.into()),
        "{report}"
    );
    let count = |key: &str| report[key].as_u64().unwrap();
    // Two seconds of 1,000 readings each; a busy machine may skip scans.
    assert!((500..4_000).contains(&count("accepted")), "{report}");
    assert_eq!(count("committed"), count("accepted"), "{report}");
    let latency = &report["ack_latency_seconds"];
    assert!(
        latency["p50"].as_f64() <= latency["max"].as_f64(),
        "{report}"
    );

    // The same devices again: new buffers, so new epochs beside the old ones.
    let (code, again) = run(&["--devices", "50"]);
    assert_eq!(
        (code, &again["connected"]),
        (Some(0), &50.into()),
        "{again}"
    );
}

#[test]
fn devices_that_reach_nobody_are_said_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    Stack::prepare(folder.path(), &plan(), port, |_| port).unwrap();
    let mut command = loadtest(&["run", "--json", "--devices", "2", "--for", "1s"]);
    command.args(["--drain", "0s", "--rate", "8", "--buffer-rows", "3"]);
    command.arg("--broker").arg(format!("127.0.0.1:{port}"));
    let (code, report) = report(command.arg("--certs").arg(folder.path().join("certs")));
    assert_eq!(
        (code, &report["connected"]),
        (Some(1), &0.into()),
        "{report}"
    );
    let error = report["last_error"].as_str().unwrap();
    assert!(error.contains(&port.to_string()), "{error}");
    let count = |key: &str| report[key].as_u64().unwrap();
    assert!(count("pending") <= 6 && count("evicted") > 0, "{report}");
    assert_eq!(
        count("accepted"),
        count("pending") + count("evicted"),
        "{report}"
    );
}

#[test]
fn wrong_arguments_end_with_2_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (&["run", "--devices", "0"][..], "1..=15000"),
        (&["run", "--devices", "15001"], "1..=15000"),
        (&["run", "--rate", "0"], "0.001 to 100000"),
        (&["run", "--broker", "::1:8883"], "write [ADDRESS]"),
        (&["run", "--for", "soon"], "--for"),
        (&["run", "--certs", "nowhere"], "--certs"),
        (&["chaos", "--agents", "0"], "1..=100"),
        (&["simulate", "--seeds", "0"], "--seeds"),
        (&[], "Usage"),
    ] {
        let mut command = loadtest(arguments);
        let output = command.current_dir(folder.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}
