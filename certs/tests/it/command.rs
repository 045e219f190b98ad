//! The built `certs`: what it prints, writes and returns.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tempfile::TempDir;

/// A folder to run `certs` in.
struct Desk {
    temporary: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self {
            temporary: TempDir::new().unwrap(),
        }
    }

    /// With an authority already.
    fn with_authority() -> Self {
        let desk = Self::new();
        desk.ok(&["init"]);
        desk
    }

    fn dir(&self) -> PathBuf {
        self.temporary.path().join("tideline-certs")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_certs"))
            .args(arguments)
            .current_dir(self.temporary.path())
            .env_remove("TIDELINE_CERTS_DIR")
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    fn list(&self) -> Vec<Value> {
        let printed = self.ok(&["list", "--json"]);
        printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// One message with all of `says`, no backtrace, and the exit code.
    fn fails(&self, arguments: &[&str], code: i32, says: &[&str]) {
        let output = self.run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.starts_with("error: "), "{message}");
        assert!(
            !message.contains("panicked") && !message.contains("RUST_BACKTRACE"),
            "{message}"
        );
        for text in says {
            assert!(
                message.contains(text),
                "{arguments:?}: {text:?} in {message}"
            );
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_first_set_is_made_with_the_commands_of_the_help_text() {
    let desk = Desk::new();
    let help = desk.ok(&["--help"]);
    let commands: Vec<Vec<&str>> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  certs "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(commands.len(), 5, "{help}");
    for command in commands {
        desk.ok(&command);
    }
    let issued: BTreeSet<String> = desk
        .list()
        .iter()
        .map(|entry| {
            format!("{} {} {}", entry["role"], entry["name"], entry["state"]).replace('"', "")
        })
        .collect();
    let expected = [
        "bridge bridge valid",
        "device press-7 valid",
        "observer watcher valid",
        "server broker valid",
    ];
    assert_eq!(issued, expected.map(str::to_owned).into());
}

#[test]
fn every_command_explains_itself() {
    let desk = Desk::new();
    for command in [
        "init", "server", "service", "device", "ensure", "list", "verify", "revoke", "renew",
    ] {
        let help = desk.ok(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: certs {command}")), "{help}");
        for text in ["--dir <DIR>", "--json", "tideline-certs"] {
            assert!(help.contains(text), "{text} in {help}");
        }
    }
    // Without arguments it explains itself, too, and did nothing: exit code 2.
    let output = desk.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("Usage: certs")
    );
}

#[test]
fn wrong_arguments_end_with_2() {
    let desk = Desk::with_authority();
    for (arguments, says) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&["device"], "<ID>"),
        (&["device", "a/b"], "device id holds '/'"),
        (&["device", ""], "empty"),
        (&["device", &"x".repeat(65)], "at most 64"),
        (&["device", "a", "--days", "0"], "--days"),
        (&["device", "a", "--days", "7301"], "--days"),
        (&["init", "--name", ""], "--name"),
        (&["service", "north"], "--role"),
        (
            &["service", "north", "--role", "device"],
            "possible values: bridge, observer",
        ),
        (&["server", "--host", "https://x"], "https://x"),
        (
            &["server", "--host", ""],
            "neither a DNS name nor an IP address",
        ),
        (&["revoke"], "required"),
        (
            &["revoke", "nonsense"],
            "neither a certificate file nor a serial number",
        ),
        (
            &["revoke", "00ff"],
            "no certificate with serial number ff was issued here",
        ),
        (
            &["revoke", "--name", "nobody"],
            "no certificate was issued to nobody",
        ),
        (&["verify", "missing.pem"], "missing.pem"),
        (&["renew", "missing.pem"], "missing.pem"),
    ] {
        desk.fails(arguments, 2, &[says]);
    }
    assert!(desk.list().is_empty());
}

#[test]
fn an_empty_folder_has_no_authority_and_stays_empty() {
    let desk = Desk::new();
    fs::write(desk.temporary.path().join("x.pem"), "").unwrap();
    for arguments in [
        &["server"][..],
        &["service", "north", "--role", "bridge"],
        &["device", "press-7"],
        &["list"],
        &["verify", "x.pem"],
        &["revoke", "ff"],
        &["renew", "x.pem"],
    ] {
        desk.fails(
            arguments,
            2,
            &["tideline-certs holds no authority", "certs init", "--dir"],
        );
    }
    assert!(!desk.dir().exists());
}

#[test]
fn an_unusable_key_is_named() {
    let desk = Desk::with_authority();
    let key = desk.dir().join("ca.key");
    fs::write(&key, "garbage").unwrap();
    desk.fails(
        &["device", "a"],
        1,
        &["tideline-certs/ca.key", "no private key", "backup"],
    );
    fs::remove_file(&key).unwrap();
    desk.fails(
        &["device", "a"],
        2,
        &["tideline-certs/ca.key", "No such file"],
    );
    // A folder cannot be read as a file, whoever asks; a mode would not stop root.
    fs::create_dir(&key).unwrap();
    desk.fails(
        &["device", "a"],
        1,
        &["tideline-certs/ca.key", "cannot read"],
    );
    // Looking needs no key.
    desk.ok(&["list"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let desk = Desk::new();
    fs::write(desk.dir(), "a file").unwrap();
    desk.fails(&["init"], 1, &["tideline-certs"]);
}

#[test]
fn nothing_is_overwritten_without_force() {
    let desk = Desk::with_authority();
    desk.ok(&["server"]);
    desk.ok(&["service", "north", "--role", "bridge"]);
    desk.ok(&["device", "press-7"]);
    let content = || -> Vec<Vec<u8>> {
        ["ca", "server", "service/north", "device/press-7"]
            .iter()
            .flat_map(|name| ["pem", "key"].map(|end| desk.dir().join(format!("{name}.{end}"))))
            .map(|path| fs::read(path).unwrap())
            .collect()
    };
    let before = content();
    let again = [
        &["init"][..],
        &["server"],
        &["service", "north", "--role", "bridge"],
        &["device", "press-7"],
    ];
    for arguments in again {
        desk.fails(arguments, 1, &["exists already", "--force"]);
    }
    assert_eq!(content(), before);
    // One file of the two is enough to stop.
    fs::remove_file(desk.dir().join("device/press-7.pem")).unwrap();
    desk.fails(&["device", "press-7"], 1, &["press-7.key exists already"]);

    for arguments in &again[1..] {
        desk.ok(&[arguments, &["--force"][..]].concat());
    }
    let after = content();
    assert_eq!(after[..2], before[..2]);
    assert!(
        after[2..]
            .iter()
            .zip(&before[2..])
            .all(|(one, other)| one != other)
    );
    desk.ok(&["init", "--force"]);
    assert!(content()[0] != before[0]);
    // What the old authority signed is worth nothing now, and is shown so.
    assert!(desk.list().iter().all(|entry| entry["state"] == "invalid"));
}

#[test]
fn keys_are_for_their_owner_alone_from_the_first_moment() {
    let desk = Desk::new();
    let done = AtomicBool::new(false);
    let ids: Vec<String> = (0..40).map(|n| format!("d{n}")).collect();
    let exposed = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for folder in ["", "device"] {
                    seen.extend(secrets_that_others_can_read(&desk.dir().join(folder)));
                }
            }
            seen
        });
        // The most careless umask there is.
        let script = format!(
            "umask 0; {bin} init && {bin} device {ids}",
            bin = env!("CARGO_BIN_EXE_certs"),
            ids = ids.join(" ")
        );
        let status = Command::new("sh")
            .args(["-c", &script])
            .current_dir(desk.temporary.path())
            .output()
            .unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(status.status.success(), "{status:?}");
        watching.join().unwrap()
    });
    assert!(exposed.is_empty(), "{exposed:?}");
    for id in &ids {
        assert_eq!(mode(&desk.dir().join(format!("device/{id}.key"))), 0o600);
        assert_eq!(mode(&desk.dir().join(format!("device/{id}.pem"))), 0o644);
    }
    assert_eq!(mode(&desk.dir().join("ca.key")), 0o600);
    for folder in ["", "device", "issued", "issued/device"] {
        assert_eq!(mode(&desk.dir().join(folder)), 0o700, "{folder}");
    }
    // Nothing temporary stays behind.
    let left = fs::read_dir(desk.dir().join("device")).unwrap().count();
    assert_eq!(left, 2 * ids.len());
}

fn secrets_that_others_can_read(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            // The mode first: a file is renamed away, never made more open, while it holds a key.
            fs::metadata(path)
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o077 != 0)
                && fs::read_to_string(path).is_ok_and(|text| text.contains("PRIVATE KEY"))
        })
        .collect()
}

#[test]
fn json_tells_where_everything_is() {
    let desk = Desk::with_authority();
    let device = desk.json(&["device", "press-7"]);
    assert_eq!(device["name"], "press-7");
    assert_eq!(device["role"], "device");
    for (file, end) in [
        ("cert", "device/press-7.pem"),
        ("key", "device/press-7.key"),
        ("ca", "ca.pem"),
    ] {
        let path = device[file].as_str().unwrap();
        assert!(
            path.ends_with(end) && desk.temporary.path().join(path).exists(),
            "{path}"
        );
    }
    let server = desk.json(&[
        "server",
        "--host",
        "broker.example.com",
        "--host",
        "2001:db8::7",
    ]);
    assert_eq!(
        server["hosts"],
        serde_json::json!(["broker.example.com", "2001:db8::7"])
    );
    let several = desk.ok(&["device", "a", "b", "c", "--json"]);
    assert_eq!(several.lines().count(), 3);
    let local = desk.json(&["server", "--force"]);
    assert_eq!(
        local["hosts"],
        serde_json::json!(["localhost", "127.0.0.1", "::1"])
    );
}

#[test]
fn days_are_counted_from_today_and_end_with_the_authority() {
    let desk = Desk::new();
    desk.ok(&["init", "--days", "100"]);
    // A moment has passed since: 9 whole days are left.
    assert_eq!(desk.json(&["device", "a", "--days", "10"])["days_left"], 9);
    assert_eq!(
        desk.json(&["device", "b", "--days", "7300"])["days_left"],
        99
    );
}

#[test]
fn verify_says_whether_and_why_not() {
    let (desk, other) = (Desk::with_authority(), Desk::with_authority());
    desk.ok(&["server", "--host", "localhost"]);
    desk.ok(&["device", "press-7"]);
    let file = "tideline-certs/device/press-7.pem";
    let printed = desk.ok(&["verify", file]);
    for text in ["device press-7", "state     valid"] {
        assert!(printed.contains(text), "{printed}");
    }
    desk.ok(&["verify", "tideline-certs/ca.pem"]);
    desk.ok(&["verify", "tideline-certs/server.pem", "--host", "localhost"]);

    let problem = |arguments: &[&str], says: &str| {
        let output = desk.run(&[&["verify"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            printed.contains("problem") && printed.contains(says),
            "{printed}"
        );
    };
    problem(
        &["tideline-certs/server.pem", "--host", "x.org"],
        "not for host \"x.org\"",
    );
    let foreign = other.dir().join("ca.pem");
    problem(&[file, "--ca", foreign.to_str().unwrap()], "not signed by");
    desk.ok(&["device", "press-8"]);
    fs::copy(
        desk.dir().join("device/press-8.key"),
        desk.dir().join("device/press-7.key"),
    )
    .unwrap();
    problem(&[file], "press-7.key is not its key");
    desk.ok(&["revoke", file]);
    problem(&[file], "revoked");

    fs::write(desk.temporary.path().join("text.pem"), "hello").unwrap();
    desk.fails(
        &["verify", "text.pem"],
        2,
        &["text.pem holds no certificate"],
    );
}

#[test]
fn verify_warns_of_a_key_that_others_can_read() {
    let desk = Desk::with_authority();
    desk.ok(&["device", "press-7"]);
    let key = desk.dir().join("device/press-7.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let printed = desk.ok(&["verify", "tideline-certs/device/press-7.pem"]);
    assert!(printed.contains("mode 0640"), "{printed}");
}

#[test]
fn one_name_has_one_role() {
    let desk = Desk::with_authority();
    desk.ok(&["service", "north", "--role", "bridge"]);
    desk.ok(&["device", "press-7"]);
    for arguments in [
        &["device", "north"][..],
        &["device", "broker"],
        &["service", "press-7", "--role", "observer"],
        &["service", "north", "--role", "observer", "--force"],
    ] {
        desk.fails(arguments, 2, &["belongs to role", "another name"]);
    }
    // For ever: the certificate may be out there although its file is gone.
    fs::remove_dir_all(desk.dir().join("device")).unwrap();
    desk.fails(
        &["service", "press-7", "--role", "bridge"],
        2,
        &["belongs to role device"],
    );
}

#[test]
fn a_stolen_device_is_revoked_with_all_it_ever_had() {
    let desk = Desk::with_authority();
    let first = desk.json(&["device", "press-7"]);
    desk.ok(&["device", "press-8"]);
    desk.ok(&["renew", "tideline-certs/device/press-7.pem"]);
    let states = |name: &str| -> Vec<String> {
        let mut states: Vec<String> = desk
            .list()
            .iter()
            .filter(|entry| entry["name"] == name)
            .map(|entry| entry["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        states
    };
    assert_eq!(states("press-7"), ["replaced", "valid"]);
    // The old one alone, by number, as openssl spells it: one is told of the other.
    let serial = first["serial"].as_str().unwrap().to_uppercase();
    let printed = desk.ok(&["revoke", &serial]);
    assert!(printed.contains("holds still"), "{printed}");
    assert_eq!(states("press-7"), ["revoked", "valid"]);
    let revoked = desk.json(&["revoke", "--name", "press-7"]);
    assert_eq!(revoked["revoked"].as_array().unwrap().len(), 2);
    assert_eq!(states("press-7"), ["revoked", "revoked"]);
    assert_eq!(states("press-8"), ["valid"]);
    desk.fails(
        &["renew", "tideline-certs/device/press-7.pem"],
        1,
        &["it is revoked"],
    );
}

#[test]
fn renewal_keeps_the_key_unless_told_otherwise() {
    let desk = Desk::with_authority();
    let file = "tideline-certs/server.pem";
    let first = desk.json(&["server", "--host", "a.org", "--host", "192.0.2.7"]);
    let second = desk.json(&["renew", file]);
    let third = desk.json(&["renew", file, "--new-key", "--days", "10"]);
    assert_ne!(second["serial"], first["serial"]);
    assert_eq!(second["pin"], first["pin"]);
    assert_ne!(third["pin"], first["pin"]);
    assert_eq!(third["days_left"], 9);
    for renewed in [second, third] {
        assert_eq!(renewed["hosts"], first["hosts"]);
        assert_eq!(renewed["state"], "valid");
    }
    // With the key that lies beside it.
    desk.ok(&["verify", file]);
    let copy = desk.list()[0]["path"].as_str().unwrap().to_owned();
    assert!(copy.contains("issued/") || copy == file, "{copy}");
    desk.fails(
        &["renew", "tideline-certs/ca.pem", "--new-key"],
        1,
        &["another authority"],
    );
}

#[test]
fn ensure_can_run_again_and_hands_out_what_each_needs() {
    let desk = Desk::new();
    let arguments = [
        "ensure",
        "--device",
        "press-7",
        "--host",
        "broker",
        "--hand-out",
        "out",
    ];
    let files = || -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![desk.temporary.path().join("out")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path
                        .strip_prefix(desk.temporary.path().join("out"))
                        .unwrap();
                    found.insert(format!("{} {:o}", name.display(), mode(&path)));
                }
            }
        }
        found
    };
    let content = || {
        let read = |name: &str| fs::read(desk.temporary.path().join("out").join(name)).unwrap();
        [
            read("broker/server.key"),
            read("broker/crl.pem"),
            read("agent/device/press-7.pem"),
        ]
    };
    let printed = desk.ok(&arguments);
    assert!(printed.contains("device press-7"), "{printed}");
    let expected = [
        "agent/ca.pem 644",
        "agent/device/press-7.key 600",
        "agent/device/press-7.pem 644",
        "bridge/ca.pem 644",
        "bridge/service/bridge.key 600",
        "bridge/service/bridge.pem 644",
        "broker/ca.pem 644",
        "broker/crl.pem 644",
        "broker/server.key 600",
        "broker/server.pem 644",
        "observer/ca.pem 644",
        "observer/service/observer.key 600",
        "observer/service/observer.pem 644",
    ];
    assert_eq!(files(), expected.map(str::to_owned).into());

    let first = content();
    desk.ok(&arguments);
    assert_eq!(content(), first);
    // A revocation reaches the broker with the next run, and the device gets another certificate.
    desk.ok(&["revoke", "--name", "press-7"]);
    desk.ok(&arguments);
    let second = content();
    assert_eq!(second[0], first[0]);
    assert!(second[1] != first[1] && second[2] != first[2]);
    desk.fails(&["ensure"], 2, &["--device"]);
}

#[test]
fn a_certificate_of_another_authority_is_not_renewed() {
    let (desk, other) = (Desk::with_authority(), Desk::with_authority());
    other.ok(&["device", "press-7"]);
    let foreign = other.dir().join("device/press-7.pem");
    desk.fails(
        &["renew", foreign.to_str().unwrap()],
        1,
        &["cannot be renewed", "not signed by"],
    );
}

#[test]
fn a_lost_revocation_list_is_not_taken_for_an_empty_one() {
    let desk = Desk::with_authority();
    desk.ok(&["device", "press-7"]);
    desk.ok(&["revoke", "--name", "press-7"]);
    let crl = desk.dir().join("crl.pem");
    let list = fs::read(&crl).unwrap();
    fs::remove_file(&crl).unwrap();
    for arguments in [
        &["revoke", "--name", "press-7"][..],
        &["list"],
        &["verify", "tideline-certs/device/press-7.pem"],
        &["ensure", "--device", "press-8"],
    ] {
        desk.fails(
            arguments,
            2,
            &["tideline-certs/crl.pem", "the broker's copy"],
        );
    }
    fs::write(&crl, list).unwrap();
    assert_eq!(desk.list()[0]["state"], "revoked");
}

#[test]
fn one_damaged_copy_does_not_hide_the_others() {
    let desk = Desk::with_authority();
    let first = desk.json(&["device", "press-7"]);
    desk.ok(&["device", "press-8"]);
    let serial = first["serial"].as_str().unwrap();
    let copy = format!("tideline-certs/issued/device/press-7.{serial}.pem");
    fs::write(desk.temporary.path().join(&copy), "damaged").unwrap();
    let output = desk.run(&["list", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains(&copy));
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(
        listed.lines().count() == 1 && listed.contains("press-8"),
        "{listed}"
    );
    // It can still be revoked.
    desk.ok(&["revoke", "--name", "press-7"]);
}

#[test]
fn commands_at_the_same_time_lose_nothing() {
    let desk = Desk::with_authority();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let desk = &desk;
            scope.spawn(move || {
                let id = format!("d{n}");
                desk.ok(&["device", &id]);
                desk.ok(&["revoke", "--name", &id]);
            });
        }
    });
    let entries = desk.list();
    assert_eq!(entries.len(), 8);
    assert!(
        entries.iter().all(|entry| entry["state"] == "revoked"),
        "{entries:?}"
    );
}

#[test]
fn a_disk_that_is_full_leaves_what_was_there() {
    let desk = Desk::with_authority();
    // No file may grow beyond zero blocks: what a full disk does to a writer.
    let script = format!(
        "trap '' XFSZ; ulimit -f 0; exec {} device press-7",
        env!("CARGO_BIN_EXE_certs")
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(desk.temporary.path())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("cannot write tideline-certs/"),
        "{message}"
    );
    assert!(!desk.dir().join("device/press-7.pem").exists());
    desk.ok(&["device", "press-7"]);
}

/// `certs device a b | head -1` makes both.
#[test]
fn whoever_reads_no_more_stops_nothing() {
    let desk = Desk::with_authority();
    let certs = |arguments: &[&str], out: std::process::Stdio| {
        Command::new(env!("CARGO_BIN_EXE_certs"))
            .args(arguments)
            .current_dir(desk.temporary.path())
            .env_remove("TIDELINE_CERTS_DIR")
            .stdout(out)
            .output()
            .unwrap()
    };
    let closed = || std::io::pipe().unwrap().1.into();
    let made = certs(&["device", "press-1", "press-2"], closed());
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert_eq!(desk.list().len(), 2);
    let listed = certs(&["list"], closed());
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let listed = certs(&["list"], full.into());
    let text = String::from_utf8_lossy(&listed.stderr);
    assert_eq!(listed.status.code(), Some(1), "{text}");
    assert!(text.contains("standard output"), "{text}");
}
