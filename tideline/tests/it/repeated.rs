//! A command whose answer is lost is asked for again, by the same name.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::tideline;

/// What a bridge of today says of itself, as far as it matters here.
const DESCRIPTION: &str = r#"{"openapi":"3.1.0","paths":{"/api/v1/devices/{device}/commands":{"post":{
    "parameters":[{"name":"device","in":"path"},{"name":"idempotency-key","in":"header"}]}}}}"#;

/// One of 0.1.
const OLDER: &str = r#"{"openapi":"3.1.0","paths":{"/api/v1/devices/{device}/commands":{"post":{
    "parameters":[{"name":"device","in":"path"}]}}}}"#;

/// The next connection; a bridge is asked for its description first.
fn described(listener: &TcpListener, description: &str) {
    let mut connection = listener.accept().unwrap().0;
    let head = head_of(&mut connection);
    assert!(head.starts_with("get /openapi.json "), "{head}");
    answer(&mut connection, "200 OK", description);
}

/// Reads a request without a body.
pub(super) fn head_of(connection: &mut TcpStream) -> String {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap().to_ascii_lowercase()
}

/// Reads one request, and returns its idempotency key.
fn key_of(connection: &mut TcpStream) -> String {
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.map(|value| value.trim().to_owned())
            };
            let length: usize = header("content-length:").unwrap().parse().unwrap();
            if body.len() >= length {
                return header("idempotency-key:").unwrap_or_default();
            }
        }
        let bytes = connection.read(&mut part).unwrap();
        assert!(bytes > 0, "the request ends early: {text}");
        request.extend_from_slice(&part[..bytes]);
    }
}

pub(super) fn answer(connection: &mut TcpStream, status: &str, body: &str) {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(answer.as_bytes()).unwrap();
}

#[test]
fn a_command_whose_answer_is_lost_is_asked_for_again_by_the_same_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let bridge = thread::spawn(move || {
        described(&listener, DESCRIPTION);
        let next = || listener.accept().unwrap().0;
        let mut keys = Vec::new();
        // It takes the request, and goes away before it answers.
        keys.push(key_of(&mut next()));
        // Who answers next says first who it is, when it can.
        answer(&mut next(), "503 Service Unavailable", "{}");
        described(&listener, DESCRIPTION);
        let mut connection = next();
        keys.push(key_of(&mut connection));
        answer(
            &mut connection,
            "503 Service Unavailable",
            r#"{"detail":"later"}"#,
        );
        described(&listener, DESCRIPTION);
        let mut connection = next();
        keys.push(key_of(&mut connection));
        answer(
            &mut connection,
            "200 OK",
            r#"{"id":"the-command","state":"queued"}"#,
        );
        keys
    });
    let send = [
        "command", "send", "press-7", "ping", "--json", "--api", &api,
    ];
    let output = tideline(&send).output().unwrap();
    let keys = bridge.join().unwrap();
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(String::from_utf8_lossy(&out).contains("the-command"));
    assert!(err.contains("sent again"), "{err}");
    assert_eq!(keys[0].len(), 32);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

/// What a bridge refuses is not asked again.
#[test]
fn a_refusal_is_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let bridge = thread::spawn(move || {
        described(&listener, DESCRIPTION);
        let mut connection = listener.accept().unwrap().0;
        let key = key_of(&mut connection);
        answer(&mut connection, "409 Conflict", r#"{"detail":"retired"}"#);
        key
    });
    let send = ["command", "send", "press-7", "ping", "--api", &api];
    let output = tideline(&send).output().unwrap();
    assert_eq!(bridge.join().unwrap().len(), 32);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("retired"));
}

/// A bridge of 0.1 does what comes again a second time: whoever typed the command is to look. Also where
/// a balancer comes to it after a newer one.
#[test]
fn a_bridge_that_knows_no_keys_is_not_asked_again() {
    for (description, next) in [
        (OLDER, None),
        ("{}", None),
        (DESCRIPTION, Some(OLDER)),
        (DESCRIPTION, Some("{}")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let bridge = thread::spawn(move || {
            described(&listener, description);
            // It keeps the command, and goes away before it answers.
            key_of(&mut listener.accept().unwrap().0);
            if let Some(next) = next {
                described(&listener, next);
            }
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let send = ["command", "send", "press-7", "ping", "--api", &api];
        let output = tideline(&send).output().unwrap();
        let listener = bridge.join().unwrap();
        assert!(listener.accept().is_err(), "it was sent again");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("may have been done"), "{err}");
        assert!(err.contains("command list"), "{err}");
    }
}

/// What a bridge of 0.1 says of readings and of its ledger is understood.
#[test]
fn what_a_bridge_of_0_1_says_is_understood() {
    let run = |body: &'static str, arguments: &[&str]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let bridge = thread::spawn(move || {
            let mut connection = listener.accept().unwrap().0;
            if head_of(&mut connection).starts_with("post") {
                // Its body, which is short.
                let _ = connection.read(&mut [0; 4096]).unwrap();
            }
            answer(&mut connection, "200 OK", body);
        });
        let output = tideline(&[arguments, &["--api", &api]].concat())
            .output()
            .unwrap();
        bridge.join().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text, err)
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("readings.json");
    let reading = r#"[{"sensor":"a","observed_at":"2026-01-31T08:00:00Z","value":1}]"#;
    std::fs::write(&file, reading).unwrap();
    let send = ["data", "send", "press-7", file.to_str().unwrap()];
    let answer =
        r#"{"epoch":"00000000002a","committed":[],"rejected":[{"seq":1,"reason":"too_new"}]}"#;
    let (code, text, err) = run(answer, &send);
    assert_eq!(code, Some(1), "{text}{err}");
    assert!(text.contains("0 of 1 reading"), "{text}");
    assert!(text.contains("refused: 1 too_new"), "{text}");
    // Neither the one nor the other.
    let (code, _, err) = run(r#"{"committed":[]}"#, &send);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("understand the bridge's answer"), "{err}");

    let ledger = r#"{"devices":1,"epochs":2,"accepted":5,"committed":3,"pending":1,"evicted":0,
        "rejected":1,"balanced":true,"unaccounted":0}"#;
    let (code, text, err) = run(ledger, &["ledger"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("1 discarded"), "{text}");
    assert!(
        text.contains("1 reading was discarded: 1 by an agent of 0.1"),
        "{text}"
    );
    let ledger = r#"{"device":"press-7","balance":{"accepted":5,"committed":3,"pending":1,"evicted":0,
        "rejected":1},"balanced":true,"unaccounted":0,"epochs":[{"epoch":"00000000002a","balance":
        {"accepted":5,"committed":3,"pending":1,"evicted":0,"rejected":1},"balanced":true,"unaccounted":0,
        "gaps":[{"first":4,"last":4}],"ranges":[{"kind":"rejected","reason":"too_new","first":5,"last":5,
        "digest":"00","recorded_at":"2026-01-31T08:00:00Z"}],"report":null,"direct":false}]}"#;
    let (code, text, err) = run(ledger, &["ledger", "press-7"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("not in the database: 4"), "{text}");
}
