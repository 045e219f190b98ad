//! Logs and CSV files that grow, and an agent that is killed while it follows them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use schema::Value;

use super::{arrived, edge, edge_in, fails_with, is_running, problems, status};
use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::eventually;
use crate::process::Home;

fn append(path: &Path, text: &str) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Value> {
    range.map(|n| Value::F64(f64::from(n))).collect()
}

#[tokio::test]
async fn files_of_each_form_are_followed() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    append(
        &path("old.csv"),
        "time;celsius;state\n2026-01-01 01:00:00;20;low\n",
    );
    append(&path("lines.json"), "{\"sensor\":\"old\",\"value\":1}\n");
    let sections = r#"
        [source.csv]
        kind = "file"
        path = "old.csv"
        format = "csv"
        from = "start"
        interval = "100ms"
        delimiter = ";"
        time = "time"
        time_format = "[year]-[month]-[day] [hour]:[minute]:[second]"
        time_zone = "+01:00"
        texts = ["state"]
        sensor = "boiler/{name}"
        [source.json]
        kind = "file"
        path = "lines.json"
        format = "json"
        interval = "100ms"
        [source.influx]
        kind = "file"
        path = "lines.influx"
        format = "influx"
        interval = "100ms"
        [source.log]
        kind = "file"
        path = "app.log"
        format = "regex"
        pattern = 'took (?P<seconds>[0-9.]+) s'
        interval = "100ms"
    "#;
    let edge = edge_in(&broker, folder, sections).await;
    let path = |name: &str| edge.folder.path().join(name);
    eventually("what stood there is read", || {
        arrived(&bridge, "boiler/celsius") == [Value::F64(20.0)]
    })
    .await;
    assert_eq!(
        arrived(&bridge, "boiler/state"),
        [Value::Text("low".into())]
    );
    for name in ["csv", "json", "influx", "log"] {
        eventually("it is followed", || is_running(&edge, name)).await;
    }
    append(
        &path("old.csv"),
        "2026-01-01 01:00:01;20.5;high\n2026-01-01 01:00:02;warm;",
    );
    append(&path("old.csv"), "high\n");
    append(
        &path("lines.json"),
        "{\"sensor\":\"new\",\"value\":2}\nbad\n{\"sensor\":\"new\",\"val",
    );
    append(
        &path("lines.influx"),
        "room,side=north celsius=4.5 1767225600000000000\n",
    );
    append(&path("app.log"), "starting\nrequest took 0.25 s\n");
    eventually("a cell", || arrived(&bridge, "boiler/celsius").len() == 2).await;
    eventually("and the others of its line", || {
        arrived(&bridge, "boiler/state").len() == 3
    })
    .await;
    eventually("a line", || arrived(&bridge, "new") == [Value::I64(2)]).await;
    append(&path("lines.json"), "ue\":3}\n");
    eventually("its rest", || arrived(&bridge, "new").len() == 2).await;
    eventually("a group", || {
        arrived(&bridge, "seconds") == [Value::F64(0.25)]
    })
    .await;
    eventually("a field", || {
        bridge
            .heard()
            .rows
            .values()
            .any(|(name, row)| name.contains("celsius") && row.value == Value::F64(4.5))
    })
    .await;
    assert!(arrived(&bridge, "old").is_empty(), "it was there before");
    assert_eq!(status(&edge, "json").readings.refused, 1);
    let heard = bridge.heard();
    let (_, first) = heard
        .rows
        .values()
        .find(|(name, _)| name == "boiler/state")
        .unwrap();
    assert_eq!(first.observed_at.micros(), 1_767_225_600_000_000);
}

#[tokio::test]
async fn what_a_full_buffer_keeps_out_waits_in_the_file() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let sections = "[source.f]\nkind = \"file\"\npath = \"n\"\nformat = \"csv\"\ncolumns = [\"n\"]\n\
                    from = \"start\"\ninterval = \"100ms\"\n";
    let text: String = (0..300).map(|n| format!("{n}\n")).collect();
    append(&folder.path().join("n"), &text);
    let mut config = crate::edge::config(&broker, folder.path());
    config.sources = super::sources(folder.path(), sections);
    config.buffer.rows_max = 100;
    let drop_newest = edge_agent::buffer::Policy::DropNewest;
    config.buffer.policies = edge_agent::buffer::Policies::new(drop_newest, Vec::new());
    let edge = crate::edge::Edge::start_with(config, folder).await;
    eventually("it is full", || edge.agent.balance().pending == 100).await;
    // A bridge makes room.
    let bridge = Bridge::start(&broker).await;
    eventually("all are there", || arrived(&bridge, "n").len() >= 300).await;
    assert_eq!(arrived(&bridge, "n"), numbers(0..300));
    assert_eq!(edge.agent.balance().accepted, 300);
}

#[tokio::test]
async fn a_rate_is_waited_for_and_loses_nothing() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..60).map(|n| format!("{n}\n")).collect();
    append(&folder.path().join("n"), &text);
    let sections = "[source.f]\nkind = \"file\"\npath = \"n\"\nformat = \"csv\"\ncolumns = [\"n\"]\n\
                    from = \"start\"\nreadings_per_second_max = 20\n";
    let edge = edge_in(&broker, folder, sections).await;
    eventually("all are there", || arrived(&bridge, "n").len() >= 60).await;
    assert_eq!(arrived(&bridge, "n"), numbers(0..60));
    assert_eq!(status(&edge, "f").readings.dropped_by_rate, 0);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_and_its_mend_noticed() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = edge(
        &broker,
        "[source.f]\nkind = \"file\"\npath = \"place\"\nformat = \"json\"\nfrom = \"start\"\ninterval = \"100ms\"\n",
    )
    .await;
    eventually("one that is missing is waited for", || {
        is_running(&edge, "f")
    })
    .await;
    let place = edge.folder.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let error = fails_with(&edge, "f", "no regular file").await;
    assert!(error.contains("place"), "{error}");
    std::fs::remove_dir(&place).unwrap();
    append(&place, "{\"sensor\":\"a\",\"value\":1}\n");
    eventually("it is read", || arrived(&bridge, "a").len() == 1).await;
}

/// Writes numbered lines, and rotates in both ways.
fn write_on(path: PathBuf, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    let mut generation = 0;
    for n in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // In two parts: the reader may look in between.
        file.write_all(format!("{n}").as_bytes()).unwrap();
        if n % 7 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        file.write_all(b"\n").unwrap();
        written.store(n + 1, Ordering::Relaxed);
        if n % 5 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if n % 400 == 399 {
            generation += 1;
            let older = path.with_file_name(format!("n.csv.{generation}"));
            if generation % 2 == 0 {
                std::fs::copy(&path, &older).unwrap();
                file.set_len(0).unwrap();
            } else {
                std::fs::rename(&path, &older).unwrap();
                file = File::options()
                    .append(true)
                    .create(true)
                    .open(&path)
                    .unwrap();
            }
            // Times of files are as fine as the system's ticks.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The place is in the same commit as the readings: however often it is killed, each line is there, once.
#[tokio::test]
async fn a_killed_agent_neither_loses_nor_doubles_a_line() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let section = "[source.f]\nkind = \"file\"\npath = \"n.csv\"\nformat = \"csv\"\ncolumns = [\"n\"]\n\
                   from = \"start\"\ninterval = \"100ms\"\nrotate_wait = \"200ms\"\n";
    std::fs::write(home.config(), text + section).unwrap();
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let writer = {
        let (path, stop, written) = (
            home.path("n.csv").into(),
            Arc::clone(&stop),
            Arc::clone(&written),
        );
        std::thread::spawn(move || write_on(path, stop, written))
    };
    let mut agent = home.start().await;
    for round in 0..12u64 {
        let before = bridge.heard().rows.len();
        eventually("some arrive", || bridge.heard().rows.len() > before).await;
        tokio::time::sleep(Duration::from_millis(37 * (round % 5))).await;
        agent.kill();
        agent = home.start().await;
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let written = written.load(Ordering::Relaxed);
    let count = || bridge.heard().rows.len() as u64;
    eventually("all are there", || count() >= written).await;
    // What would come twice would come by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    for value in arrived(&bridge, "n") {
        let Value::F64(value) = value else {
            panic!("{value:?}");
        };
        *times.entry(value as u64).or_default() += 1;
    }
    let wrong: Vec<_> = (0..written).filter(|n| times.get(n) != Some(&1)).collect();
    assert!(wrong.is_empty(), "of {written} lost or doubled: {wrong:?}");
    assert_eq!(times.len() as u64, written);
    println!("{written} lines over 13 lives of an agent");
    drop(agent);
}

#[test]
fn settings_that_cannot_be_are_named() {
    let check = |keys: &str, part: &str| {
        let said = problems(&format!(
            "[source.x]\nkind = \"file\"\npath = \"log\"\n{keys}\n"
        ));
        assert!(said.contains(part), "{keys}: {said}");
    };
    check("", "format");
    check("format = \"xml\"", "xml");
    check(
        "format = \"json\"\ninterval = \"99ms\"",
        "must be from 100ms to 1h",
    );
    check(
        "format = \"json\"\npattern = \"a\"",
        "is for format = regex",
    );
    check(
        "format = \"json\"\ntime = \"a\"",
        "is for format = csv and regex",
    );
    check("format = \"regex\"", "is missing");
    check("format = \"regex\"\npattern = \"(\"", "source.x.pattern");
    check("format = \"regex\"\npattern = \"a\"", "names no groups");
    check(
        "format = \"regex\"\npattern = \"(?P<a>.)\"\ntime = \"b\"",
        "\"b\" is no group",
    );
    check(
        "format = \"csv\"\ndelimiter = \"ab\"",
        "must be one ASCII character",
    );
    check(
        "format = \"csv\"\ncolumns = [\"a\"]\ntake = [\"b\"]",
        "\"b\" is no column",
    );
    check(
        "format = \"csv\"\ntime = \"t\"\ntime_format = \"[yeer]\"",
        "source.x.time_format",
    );
    check(
        "format = \"csv\"\ntime = \"t\"\ntime_zone = \"CET\"",
        "must be Z or as +01:00",
    );
    check("format = \"csv\"\nsensor = \"x\"", "must hold {name}");
    check(
        "format = \"csv\"\nrotate_wait = \"2h\"",
        "must be at most 1h",
    );
}
