//! What is said before any bridge is asked: help, wrong arguments, nobody there, completions.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::{check_refused, tideline};

/// Every command that there is.
const COMMANDS: [&[&str]; 44] = [
    &["up"],
    &["decode"],
    &["status"],
    &["device", "list"],
    &["device", "show"],
    &["device", "label"],
    &["device", "retire"],
    &["device", "reinstate"],
    &["device", "requeue"],
    &["device", "discard"],
    &["command", "send"],
    &["command", "show"],
    &["command", "cancel"],
    &["command", "list"],
    &["config", "show"],
    &["config", "set"],
    &["config", "unset"],
    &["config", "history"],
    &["config", "keys"],
    &["data", "get"],
    &["data", "latest"],
    &["data", "aggregate"],
    &["data", "send"],
    &["data", "conflicts"],
    &["ledger"],
    &["ledger", "accept-loss"],
    &["dead-letter", "list"],
    &["dead-letter", "show"],
    &["dead-letter", "retry"],
    &["dead-letter", "discard"],
    &["alert", "list"],
    &["alert", "acknowledge"],
    &["token", "key"],
    &["token", "issue"],
    &["token", "inspect"],
    &["token", "revoke"],
    &["token", "list-revoked"],
    &["audit"],
    &["completions"],
    &["device"],
    &["command"],
    &["config"],
    &["data"],
    &["token"],
];

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let output = tideline(command).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(text.contains("Usage: tideline"), "{command:?}: {text}");
    }
    // Those that stand for several show examples.
    for command in [
        "device",
        "command",
        "config",
        "data",
        "ledger",
        "dead-letter",
        "alert",
        "token",
        "audit",
        "status",
        "completions",
    ] {
        let output = tideline(&[command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let example = format!("  tideline {command}");
        assert!(
            text.contains("Example") && text.contains(&example),
            "{text}"
        );
    }
}

#[test]
fn wrong_arguments_end_with_2() {
    for (arguments, words) in [
        (&["device"][..], &["Usage"][..]),
        (&["device", "show", "not a name"], &["not a name"]),
        (&["device", "label", "press-7"], &["KEY=VALUE"]),
        (&["device", "label", "press-7", "site"], &["site", "KEY-"]),
        (&["device", "list", "--online", "--offline"], &["--offline"]),
        (&["device", "list", "--limit", "0"], &["--limit"]),
        (&["device", "retire", "press-7"], &["--yes", "no terminal"]),
        (&["dead-letter", "discard", "x"], &["--yes"]),
        (&["command", "send", "ping"], &["--label"]),
        (
            &["command", "send", "press-7", "--all", "ping"],
            &["either"],
        ),
        (&["command", "show", "press-7", "1"], &["command id"]),
        (
            &["token", "revoke", "--subject", "", "--reason", "lost"],
            &["--subject"],
        ),
        (
            &["token", "revoke", "--jti", "", "--reason", "lost"],
            &["--jti"],
        ),
        (
            &[
                "token",
                "revoke",
                "--subject",
                "alice",
                "--expires-at",
                "+1h",
                "--reason",
                "lost",
            ],
            &["--expires-at"],
        ),
        (&["config", "show"], &["--group"]),
        (&["config", "set", "press-7", "key"], &["value"]),
        (
            &["config", "set", "--group", "a", "b", "1", "--wait", "1s"],
            &["--wait"],
        ),
        (&["config", "unset", "press-7"], &["key"]),
        (
            &["data", "get", "press-7", "--from", "soon"],
            &["--from", "-1h"],
        ),
        (&["data", "get", "press-7", "--format", "xml"], &["csv"]),
        (&["data", "aggregate", "press-7"], &["--sensor"]),
        (
            &["data", "send", "press-7", "/nowhere.json"],
            &["/nowhere.json"],
        ),
        (&["alert", "list", "--state", "odd"], &["firing"]),
        (
            &[
                "token",
                "issue",
                "--keys",
                "k",
                "--subject",
                "a",
                "--role",
                "king",
            ],
            &["viewer"],
        ),
        (
            &[
                "token",
                "issue",
                "--keys",
                "k",
                "--subject",
                "a",
                "--role",
                "admin",
                "--ttl",
                "59s",
            ],
            &["1m to 366d"],
        ),
        (
            &[
                "token",
                "issue",
                "--keys",
                "/nowhere",
                "--subject",
                "a",
                "--role",
                "admin",
            ],
            &["/nowhere"],
        ),
        (&["token", "revoke", "--reason", "x"], &["<TOKEN"]),
        (&["status", "--api", "nowhere"], &["http://"]),
        (&["status", "--api", "https://127.0.0.1:1"], &["--ca"]),
        (&["status", "--token-file", "/nowhere"], &["/nowhere"]),
        (
            &["status", "--api", "https://127.0.0.1:1", "--ca", "/nowhere"],
            &["/nowhere"],
        ),
        (&["completions", "tcsh"], &["zsh"]),
    ] {
        check_refused(&mut tideline(arguments), 2, words);
    }
    check_refused(
        tideline(&["status"]).env("TIDELINE_TOKEN", "a b"),
        2,
        &["TIDELINE_TOKEN"],
    );
}

#[test]
fn nobody_there_is_one_line_and_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let id = "01900000-0000-7000-8000-000000000000";
    for arguments in [
        &["status"][..],
        &["audit"],
        &["device", "list"],
        &["device", "show", "press-7"],
        &["device", "retire", "press-7", "--yes"],
        &["command", "list", "press-7"],
        &["command", "show", id],
        &["config", "show", "press-7"],
        &["data", "latest", "press-7"],
        &["dead-letter", "list"],
        &["alert", "list"],
        &["token", "list-revoked"],
        &["token", "revoke", "--jti", "1", "--reason", "x"],
    ] {
        let mut command = tideline(arguments);
        command.args(["--api", &gone]);
        check_refused(&mut command, 1, &[&gone, "refused", "tideline up"]);
        let lines = command.output().unwrap().stderr;
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 2);
    }
    // Also when the address stands before the action.
    check_refused(
        &mut tideline(&["device", "--api", &gone, "list"]),
        1,
        &[&gone],
    );
}

#[test]
fn shells_get_scripts_that_they_understand() {
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef tideline"),
        ("fish", "complete -c tideline"),
    ] {
        let output = tideline(&["completions", shell]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(
            text.contains(word) && text.contains("dead-letter"),
            "{shell}"
        );
    }
    // Bash is everywhere: it reads its script.
    let mut script = tideline(&["completions", "bash"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let read = Command::new("bash")
        .arg("-n")
        .stdin(script.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(script.wait().unwrap().success());
    assert!(read.status.success(), "{read:?}");
}

#[test]
fn known_keys_are_listed_without_a_bridge() {
    let output = tideline(&["config", "keys"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["KEY", "host.interval_seconds", "from 0.1 to 86400"] {
        assert!(text.contains(word), "{text}");
    }
}
