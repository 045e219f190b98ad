//! Keys and tokens: made, looked at, shown to a bridge that asks for them, revoked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use testkit::wait::blocking;

use crate::{Running, check_refused, tideline};

fn ran(arguments: &[&str]) -> Output {
    let output = tideline(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

fn text(arguments: &[&str]) -> String {
    let output = ran(arguments);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_token_is_issued_inspected_and_spoiled() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let keys = path(&keys);
    let made = text(&["token", "key", "--keys", keys]);
    assert!(made.contains(".pub") && !made.contains("PRIVATE"), "{made}");

    let file = folder.path().join("alice.token");
    let issue = [
        "token",
        "issue",
        "--keys",
        keys,
        "--subject",
        "alice",
        "--role",
        "operator",
    ];
    let told = text(&[&issue[..], &["--ttl", "2h", "--out", path(&file)]].concat());
    assert!(told.contains("alice as operator until"), "{told}");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(!told.contains(&token));
    // Somebody's token is not overwritten.
    check_refused(
        &mut tideline(&[&issue[..], &["--out", path(&file)]].concat()),
        1,
        &["alice.token"],
    );

    let inspected = text(&["token", "inspect", "--keys", keys, path(&file)]);
    // In less than two hours, or just now in exactly two.
    assert!(
        inspected.contains("(in 1h") || inspected.contains("(in 2h"),
        "{inspected}"
    );
    for word in ["good", "alice", "operator"] {
        assert!(inspected.contains(word), "{inspected}");
    }
    let unchecked = text(&["token", "inspect", &token]);
    assert!(unchecked.contains("not checked"), "{unchecked}");
    let json: Value = serde_json::from_str(&text(&[
        "token", "inspect", "--keys", keys, &token, "--json",
    ]))
    .unwrap();
    assert_eq!(
        (&json["good"], &json["role"]),
        (&true.into(), &"operator".into())
    );

    let (rest, signature) = token.rsplit_once('.').unwrap();
    let swapped = if signature.starts_with('A') { "B" } else { "A" };
    let spoiled = format!("{rest}.{swapped}{}", &signature[1..]);
    let judged = tideline(&["token", "inspect", "--keys", keys, &spoiled])
        .output()
        .unwrap();
    assert_eq!(judged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&judged.stdout).contains("NOT good"));
    check_refused(
        &mut tideline(&["token", "inspect", "nonsense"]),
        1,
        &["no token"],
    );

    // Rotation: the new key signs, the old token stays good until its key is taken away.
    text(&["token", "key", "--keys", keys]);
    text(&["token", "inspect", "--keys", keys, &token]);
    let kid = json["kid"].as_str().unwrap();
    fs::remove_file(Path::new(keys).join(format!("{kid}.pub"))).unwrap();
    let judged = tideline(&["token", "inspect", "--keys", keys, &token])
        .output()
        .unwrap();
    assert_eq!(judged.status.code(), Some(1));

    // A device's token is made out to a device.
    let device = [
        "token",
        "issue",
        "--keys",
        keys,
        "--role",
        "device",
        "--subject",
    ];
    text(&[&device[..], &["press-7"]].concat());
    check_refused(
        &mut tideline(&[&device[..], &["press 7"]].concat()),
        2,
        &["press 7"],
    );
}

#[test]
fn a_bridge_that_asks_for_tokens_takes_good_ones() {
    let running = Running::start_with(&["--require-tokens"]);
    let keys = running.endpoints["token_keys"].as_str().unwrap().to_owned();
    let issue = |subject: &str, role: &str| {
        let arguments = [
            "token",
            "issue",
            "--keys",
            &keys,
            "--subject",
            subject,
            "--role",
            role,
        ];
        text(&arguments)
    };
    running.refused(&["device", "list"], 1, &["401", "--token-file"]);
    let (admin, viewer) = (issue("root", "admin"), issue("eve", "viewer"));
    let ran = |token: &str, arguments: &[&str]| {
        let mut command = running.command(arguments);
        command.env("TIDELINE_TOKEN", token);
        command
    };
    let seen = ran(&viewer, &["device", "list"]).output().unwrap();
    assert!(seen.status.success(), "{seen:?}");
    let ping = ["command", "send", &running.device, "ping"];
    check_refused(&mut ran(&viewer, &ping), 1, &["403"]);
    assert!(ran(&admin, &ping).output().unwrap().status.success());

    // The file is used rather than the variable.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, format!("{admin}\n")).unwrap();
    let with_file = [&ping[..], &["--token-file", path(&file)]].concat();
    assert!(ran(&viewer, &with_file).output().unwrap().status.success());

    // A device's token is good for that device.
    let own = issue(&running.device, "device");
    let latest = |device: &str| ran(&own, &["data", "latest", device]);
    assert!(latest(&running.device).output().unwrap().status.success());
    check_refused(&mut latest("another"), 1, &["403"]);

    let revoke = ["token", "revoke", &viewer, "--reason", "left"];
    check_refused(&mut ran(&viewer, &revoke), 1, &["403"]);
    let revoked = ran(&admin, &revoke).output().unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    blocking::until("it is refused", || {
        let listed = ran(&viewer, &["device", "list"]).output().unwrap();
        !listed.status.success()
    });
    check_refused(
        &mut ran(&viewer, &["device", "list"]),
        1,
        &["401", "inspect"],
    );
    let list = ran(&admin, &["token", "list-revoked"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains("eve") && list.contains("left"), "{list}");
    let audit = ran(&admin, &["audit"]).output().unwrap();
    let audit = String::from_utf8(audit.stdout).unwrap();
    assert!(
        audit.contains("root") && audit.contains("/tokens/revoke"),
        "{audit}"
    );
}
