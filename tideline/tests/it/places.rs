//! Where the options for the bridge may stand, and what they come before.

use std::net::TcpListener;
use std::thread;

use testkit::port::free_port;

use crate::repeated::{answer, head_of};
use crate::{check_refused, tideline};

/// An address where nobody is.
fn nobody() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

#[test]
fn a_bridge_is_named_before_between_or_behind() {
    let (there, elsewhere) = (nobody(), nobody());
    let api = ["--api", &there];
    for line in [
        &["device", "list"][..],
        &["device", "show", "press-7"],
        &["device", "retire", "press-7", "--yes"],
        &["command", "send", "press-7", "ping"],
        &["config", "set", "press-7", "key", "1"],
        &["token", "list-revoked"],
        &["ledger", "accept-loss", "press-7", "--yes"],
    ] {
        for place in 0..=line.len() {
            // A key and its value stay together, as do their like.
            if line[0] == "config" && (3..5).contains(&place) {
                continue;
            }
            let (before, behind) = line.split_at(place);
            let words = [before, &api, behind].concat();
            let mut command = tideline(&words);
            // The variable counts less, wherever the option stands.
            command.env("TIDELINE_API", &elsewhere);
            check_refused(&mut command, 1, &[&there, "refused"]);
        }
        let mut command = tideline(line);
        check_refused(command.env("TIDELINE_API", &elsewhere), 1, &[&elsewhere]);
    }
    // The file of a token, and an authority.
    for line in [
        &["status"][..],
        &["device", "show", "press-7"],
        &["token", "list-revoked"],
    ] {
        for place in 0..=line.len() {
            let (before, behind) = line.split_at(place);
            let token = [before, &["--token-file", "/nowhere"], behind].concat();
            check_refused(&mut tideline(&token), 2, &["/nowhere"]);
            let ca = ["--ca", "/nowhere", "--api", "https://127.0.0.1:1"];
            let ca = [before, &ca, behind].concat();
            check_refused(&mut tideline(&ca), 2, &["/nowhere"]);
        }
    }
    // The last one is meant.
    let twice = ["--api", &elsewhere, "device", "--api", &there, "list"];
    check_refused(&mut tideline(&twice), 1, &[&there]);
    let twice = ["device", "--api", &elsewhere, "list", "--api", &there];
    check_refused(&mut tideline(&twice), 1, &[&there]);
    let twice = [
        "--api",
        &elsewhere,
        "ledger",
        "accept-loss",
        "press-7",
        "--yes",
        "--api",
        &there,
    ];
    check_refused(&mut tideline(&twice), 1, &[&there]);
    let twice = ["status", "--api", &elsewhere, "--api", &there];
    check_refused(&mut tideline(&twice), 2, &["multiple times"]);
    // A device may stand in front as well, once; and what makes no sense together is said.
    let in_front = ["ledger", "press-7", "accept-loss", "--yes", "--api", &there];
    check_refused(&mut tideline(&in_front), 1, &[&there]);
    for (wrong, why) in [
        (
            &["ledger", "press-7", "accept-loss", "press-7", "--yes"][..],
            "once",
        ),
        (&["ledger", "accept-loss", "--yes"], "name the device"),
        (&["ledger", "--verify"], "name the device"),
        (
            &["ledger", "--verify", "accept-loss", "press-7", "--yes"],
            "--verify",
        ),
    ] {
        check_refused(&mut tideline(wrong), 2, &[why]);
    }
    // An empty variable is none.
    for words in [
        &["device", "list"][..],
        &["--token-file", "/nowhere", "device", "list"],
    ] {
        let mut command = tideline(words);
        command.envs([
            ("TIDELINE_TOKEN_FILE", ""),
            ("TIDELINE_CA", ""),
            ("TIDELINE_API", &*there),
        ]);
        let told = if words.len() == 2 {
            (1, &*there)
        } else {
            (2, "/nowhere")
        };
        check_refused(&mut command, told.0, &[told.1]);
    }
}

#[test]
fn json_is_asked_for_before_or_behind() {
    let run = |words: &[&str]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let bridge = thread::spawn(move || {
            let mut connection = listener.accept().unwrap().0;
            let head = head_of(&mut connection);
            assert!(head.contains("authorization: bearer from-a-file"), "{head}");
            let at = "2026-01-02T03:04:05Z";
            let body = format!(
                r#"{{"device":"press-7","online":true,"first_seen":"{at}","last_seen":"{at}"}}"#
            );
            answer(&mut connection, "200 OK", &body);
        });
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "from-a-file\n").unwrap();
        let mut command = tideline(&["--api", &api, "--token-file"]);
        let output = command.arg(token).args(words).output().unwrap();
        bridge.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for words in [
        &["--json", "device", "show", "press-7"][..],
        &["device", "--json", "show", "press-7"],
        &["device", "show", "press-7", "--json"],
    ] {
        let text = run(words);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["device"], "press-7", "{words:?}");
    }
    assert!(run(&["device", "show", "press-7"]).starts_with("device "));

    let keys = |words: &[&str]| tideline(words).output().unwrap().stdout;
    let behind = keys(&["config", "keys", "--json"]);
    assert!(behind.starts_with(b"{"));
    assert_eq!(keys(&["--json", "config", "keys"]), behind);
    assert_eq!(keys(&["config", "--json", "keys"]), behind);
    assert!(keys(&["config", "keys"]).starts_with(b"KEY"));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("keys");
    let made = keys(&["--json", "token", "key", "--keys", folder.to_str().unwrap()]);
    assert!(made.starts_with(b"{"), "{made:?}");
}

/// A program reads what a bridge said, whatever this one understands of it; people are told to look at the versions.
#[test]
fn json_is_printed_whatever_a_bridge_says() {
    let run = |words: &[&str]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let bridge = thread::spawn(move || {
            let mut connection = listener.accept().unwrap().0;
            head_of(&mut connection);
            answer(&mut connection, "200 OK", r#"{"later":[1]}"#);
        });
        let output = tideline(&["--api", &api]).args(words).output().unwrap();
        bridge.join().unwrap();
        output
    };
    let id = "01990000-0000-7000-8000-000000000001";
    for words in [
        &["device", "show", "press-7"][..],
        &["config", "show", "press-7"],
        &["command", "show", "press-7", id],
        &["command", "show", id],
        &["ledger", "press-7"],
        &["ledger"],
    ] {
        let output = run(&[words, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(r#""later":[1]"#), "{words:?}: {output:?}");
        let output = run(words);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(err.contains("of the same version"), "{words:?}: {err}");
    }
}

/// A list in one piece is all there, however long it is; one whose next page cannot be asked for ends, and says so.
#[test]
fn a_list_is_shown_to_its_end_or_says_that_there_is_more() {
    let run = |body: String, words: &[&str]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let bridge = thread::spawn(move || {
            let mut connection = listener.accept().unwrap().0;
            head_of(&mut connection);
            answer(&mut connection, "200 OK", &body);
        });
        let output = tideline(&["--api", &api, "--json"]).args(words).output();
        bridge.join().unwrap();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        (lines, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let readings = vec!["{}"; 1_001].join(",");
    let latest = format!(r#"{{"device":"press-7","readings":[{readings}]}}"#);
    let (lines, err) = run(latest, &["data", "latest", "press-7"]);
    assert_eq!((lines, err.as_str()), (1_001, ""));
    let more = r#"{"device":"press-7","readings":[{}],"next":"later"}"#.to_owned();
    let (lines, err) = run(more, &["data", "latest", "press-7"]);
    assert_eq!(lines, 1);
    assert!(err.contains("there may be more"), "{err}");
    let some = r#"{"dead_letters":[{}],"not_kept":7}"#.to_owned();
    let (lines, err) = run(some, &["dead-letter", "list"]);
    assert_eq!(lines, 1);
    assert!(err.contains("7 more were not kept"), "{err}");
    let all = r#"{"dead_letters":[{}],"not_kept":0}"#.to_owned();
    let (_, err) = run(all, &["dead-letter", "list"]);
    assert_eq!(err, "");
}

#[test]
fn who_asks_no_bridge_says_so() {
    for line in [
        &["up"][..],
        &["decode"],
        &["completions", "bash"],
        &["config", "keys"],
        &["token", "key", "--keys", "keys"],
        &[
            "token",
            "issue",
            "--keys",
            "keys",
            "--subject",
            "a",
            "--role",
            "admin",
        ],
        &["token", "inspect", "token"],
    ] {
        for place in 0..=line.len() {
            // An option's value is whatever stands behind it.
            if place > 0 && line[place - 1].starts_with("--") {
                continue;
            }
            let (before, behind) = line.split_at(place);
            let words = [before, &["--api", "http://there"], behind].concat();
            check_refused(&mut tideline(&words), 2, &["'--api'", "asks no bridge"]);
        }
        // The variable is for those that do.
        let mut command = tideline(&[line, &["--help"]].concat());
        command.env("TIDELINE_API", "http://there");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("--api"));
    }
    let wrong = ["token", "--ca", "ca.pem", "key", "--keys", "keys"];
    check_refused(
        &mut tideline(&wrong),
        2,
        &["'--ca'", "asks no bridge", "token key"],
    );
    let wrong = ["--token-file", "token", "up"];
    check_refused(
        &mut tideline(&wrong),
        2,
        &["'--token-file'", "Usage: tideline up"],
    );
    check_refused(&mut tideline(&["--json", "decode"]), 2, &["'--json'"]);
    let mut decode = tideline(&["decode"]);
    assert!(
        decode
            .env("TIDELINE_API", "http://there")
            .status()
            .unwrap()
            .success()
    );
    // A variable alone is nothing typed.
    for line in [&[][..], &["device"], &["token"]] {
        let mut command = tideline(line);
        check_refused(
            command.env("TIDELINE_API", "there"),
            2,
            &["Usage", "Commands:"],
        );
    }
}
