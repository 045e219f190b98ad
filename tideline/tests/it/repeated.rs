//! A command whose answer is lost is asked for again, by the same name.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::tideline;

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

fn answer(connection: &mut TcpStream, status: &str, body: &str) {
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
        let next = || listener.accept().unwrap().0;
        let mut keys = Vec::new();
        // It takes the request, and goes away before it answers.
        keys.push(key_of(&mut next()));
        let mut connection = next();
        keys.push(key_of(&mut connection));
        answer(
            &mut connection,
            "503 Service Unavailable",
            r#"{"detail":"later"}"#,
        );
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
