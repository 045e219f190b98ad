//! The bridge as a process: settings that cannot be used, and databases that are not there.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use certs::Folder;
use certs::set::MachineSet;
use testkit::port::free_port;

fn bridge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.args(arguments).env_remove("TIDELINE_DATABASE_URL");
    command
}

/// Runs a command on `settings`; it must fail with this code and name all the parts.
fn check_fails(folder: &Path, command: &str, settings: &str, code: i32, parts: &[&str]) {
    let path = folder.join("bridge.toml");
    fs::write(&path, settings).unwrap();
    let output = bridge(&[command, "--config"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// `[tls]` with a bridge's certificate.
fn tls(folder: &Path) -> String {
    let certs = Folder::new(folder.join("certs"));
    let device = "device-1".parse().unwrap();
    let set = MachineSet::ensure(&certs, &device, &["localhost".to_owned()]).unwrap();
    format!(
        "[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        set.bridge.ca, set.bridge.cert, set.bridge.key
    )
}

#[test]
fn every_problem_of_the_settings_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "[mqtt]\naddress = 'host:port'\ngroup = 'a/b'\nclient_id = ' x'\nkeep_alive = '10ms'\n\
                    [tls]\nca = 'no-ca.pem'\ncert = 'no-cert.pem'\nkey = 'no-key.pem'\n\
                    [pipeline]\nwrites_max = 0\n";
    let parts = [
        "mqtt.address",
        "mqtt.group",
        "mqtt.client_id",
        "mqtt.keep_alive",
        "no-ca.pem",
        "no-cert.pem",
        "no-key.pem",
        "pipeline.writes_max",
        "store.url",
    ];
    check_fails(folder.path(), "check", settings, 2, &parts);
    check_fails(folder.path(), "run", settings, 2, &parts);
}

#[test]
fn settings_come_from_a_folder_and_variables_too() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let path = folder.path().join("bridge.toml");
    fs::write(&path, tls(folder.path())).unwrap();
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    let more = folder.path().join("conf.d/a.toml");
    fs::write(
        &more,
        "[mqtt]\naddress = 'localhost'\n[pipeline]\nwrites_mx = 1\n",
    )
    .unwrap();
    let secret = folder.path().join("url");
    fs::write(
        &secret,
        format!("postgres://me:secret@127.0.0.1:{port}/x\n"),
    )
    .unwrap();
    let check = || {
        let mut check = bridge(&["check", "--config"]);
        let check = check
            .arg(&path)
            .env("TIDELINE_BRIDGE_STORE__URL__FILE", &secret);
        let output = check.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, text) = check();
    assert_eq!(code, Some(2), "{text}");
    let expected =
        "conf.d/a.toml:4: pipeline.writes_mx is not a known key; did you mean writes_max?";
    assert!(text.contains(expected), "{text}");
    fs::write(&more, "[mqtt]\naddress = 'localhost'\n").unwrap();
    let (code, text) = check();
    assert_eq!(code, Some(1), "all that is missing is the database: {text}");
    assert!(
        text.contains(&port.to_string()) && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn a_certificate_without_a_bridges_identity_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let settings = "[mqtt]\naddress = 'localhost'\n[store]\nurl = 'store.db'\n\
                    [tls]\nca = 'empty.pem'\ncert = 'empty.pem'\nkey = 'empty.pem'\n";
    check_fails(
        folder.path(),
        "check",
        settings,
        2,
        &["tls.cert", "empty.pem"],
    );
    let device = tls(folder.path()).replace("service/bridge", "device/device-1");
    let settings = format!("[mqtt]\naddress = 'localhost'\n[store]\nurl = 'store.db'\n{device}");
    check_fails(
        folder.path(),
        "check",
        &settings,
        2,
        &["tls.cert", "role device"],
    );
}

#[test]
fn an_unreachable_database_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let settings = format!(
        "[mqtt]\naddress = 'localhost'\n[store]\nurl = 'postgres://me:secret@127.0.0.1:{port}/x'\n{}",
        tls(folder.path())
    );
    let path = folder.path().join("bridge.toml");
    fs::write(&path, settings).unwrap();
    let output = bridge(&["check", "--config"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn an_http_address_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let settings = format!(
        "[mqtt]\naddress = 'localhost'\n[store]\nurl = 'store.db'\n[http]\naddress = '{address}'\n{}",
        tls(folder.path())
    );
    check_fails(folder.path(), "run", &settings, 1, &[&address]);
}

#[test]
fn the_shipped_example_is_read_and_only_its_files_are_missing() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridge.toml");
    let folder = tempfile::tempdir().unwrap();
    let settings = fs::read_to_string(example).unwrap();
    let path = folder.path().join("bridge.toml");
    fs::write(&path, settings).unwrap();
    let output = bridge(&["check", "--config"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let problems: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(
        problems
            .iter()
            .all(|line| { line.contains(": tls.") || line.contains(": auth.keys") }),
        "{text}"
    );
    assert_eq!(problems.len(), 4, "{text}");
}

/// Below, at and above; what a device may have is a part of what all may.
#[test]
fn quotas_are_parts_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |limits: &str| {
        let tls = tls(folder.path());
        format!("[mqtt]\naddress = 'localhost'\n[store]\nurl = 'x.db'\n[limits]\n{limits}\n{tls}")
    };
    for sound in [
        "dead_letters_per_device = 9\ndead_letters = 10",
        "dead_letters_per_device = 10\ndead_letters = 10",
        "conflicts_per_device = 0\nconflicts = 0",
    ] {
        let path = folder.path().join("bridge.toml");
        fs::write(&path, settings(sound)).unwrap();
        let output = bridge(&["check", "--config"]).arg(&path).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("limits."), "{sound}: {text}");
    }
    for (wrong, named) in [
        ("dead_letters = 999", "limits.dead_letters"),
        (
            "dead_letter_bytes_per_device = 2000000000",
            "limits.dead_letter_bytes",
        ),
        (
            "conflicts_per_device = 11\nconflicts = 10",
            "limits.conflicts",
        ),
        ("conflict_bytes = 1", "limits.conflict_bytes"),
    ] {
        check_fails(folder.path(), "check", &settings(wrong), 2, &[named]);
    }
}

#[test]
fn limits_of_the_store_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls(folder.path());
    let settings = |store: &str| format!("[mqtt]\naddress = 'localhost'\n[store]\n{store}\n{tls}");
    let url = "url = 'postgres://me@127.0.0.1:1/x'";
    for (store, key) in [
        ("url = 'store.db'\nretention = '3599s'", "store.retention"),
        ("url = 'store.db'\nstale_max = '10s'", "by URL only"),
        (&format!("{url}\nstale_max = '4999ms'"), "store.stale_max"),
        (&format!("{url}\nstale_max = '3601s'"), "store.stale_max"),
        (&format!("{url}\npartitions = 'week'"), "month"),
        (
            &format!("{url}\nreplica_url = 'postgres://r/x'"),
            "needs store.stale_max",
        ),
        (
            &format!("{url}\nstale_max = '5s'\nreplica_url = 'r.db'"),
            "store.replica_url",
        ),
    ] {
        check_fails(folder.path(), "check", &settings(store), 2, &[key]);
    }
    // At the limits nothing is wrong but that nobody answers.
    for store in [
        "stale_max = '5s'\nretention = '3600s'\nrollups = false",
        "partitions = 'off'",
        "partitions = 'month'",
        "stale_max = '3600s'\nreplica_url = 'postgres://r/x'",
    ] {
        let settings = settings(&format!("{url}\n{store}"));
        check_fails(folder.path(), "check", &settings, 1, &["127.0.0.1:1"]);
    }
}

#[test]
fn limits_of_commands_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls(folder.path());
    let settings = |per_second: u32| {
        format!(
            "[mqtt]\naddress = 'localhost'\n[store]\nurl = 'postgres://me@127.0.0.1:1/x'\n\
             [commands]\nper_second = {per_second}\n{tls}"
        )
    };
    for wrong in [0, 10_001] {
        let key = "commands.per_second";
        check_fails(folder.path(), "check", &settings(wrong), 2, &[key]);
    }
    // At the limits nothing is wrong but that nobody answers.
    for right in [1, 10_000] {
        check_fails(
            folder.path(),
            "check",
            &settings(right),
            1,
            &["127.0.0.1:1"],
        );
    }
}
