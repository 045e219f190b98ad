//! `top`: lines where nobody looks, a screen that is given back where somebody does.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{run, stdout};
use crate::process::Home;
use testkit::wait::blocking;

#[tokio::test]
async fn without_a_terminal_each_look_is_a_line() {
    let home = Home::new(1);
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 3).await, 3);
    let options = ["top", "--count", "3", "--every", "100ms"];
    let lines = run(&home, &options);
    assert_eq!(lines.status.code(), Some(0), "{lines:?}");
    let text = stdout(&lines);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("press-7") && text.contains("3 pending"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let objects = run(&home, &[&options[..], &["--json"]].concat());
    let text = stdout(&objects);
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        let status: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(status["balance"]["pending"], 3);
    }
}

#[test]
fn without_an_agent_it_fails_at_once() {
    let home = Home::new(1);
    let failed = run(&home, &["top"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stdout.is_empty());
    for wrong in [["--count", "0"], ["--every", "99ms"]] {
        let wrong = run(&home, &[&["top"][..], &wrong].concat());
        assert_eq!(wrong.status.code(), Some(2));
    }
}

/// On a terminal of these columns: what it showed, and whether the terminal is as it was.
fn on_terminal(home: &Home, columns: u32, keys: &[u8]) -> String {
    let (before, after) = (home.path("before"), home.path("after"));
    let script = format!(
        "stty cols {columns} rows 12; stty -g > {before}; {} top --config {}; echo code $?; stty -g > {after}",
        env!("CARGO_BIN_EXE_edge-agent"),
        home.config()
    );
    let mut terminal = Command::new("script")
        .args(["-qfec", &script, &home.path("typescript")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let shown = || std::fs::read(home.path("typescript")).unwrap_or_default();
    let shown = || String::from_utf8_lossy(&shown()).into_owned();
    blocking::until("the screen is drawn", || shown().contains("press-7"));
    let mut typed = terminal.stdin.take().unwrap();
    typed.write_all(keys).unwrap();
    typed.flush().unwrap();
    blocking::until("it ends", || terminal.try_wait().unwrap().is_some());
    let modes = |path: &str| std::fs::read_to_string(path).unwrap();
    assert_eq!(modes(&before), modes(&after), "the terminal's modes");
    shown()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_given_back_as_it_was() {
    let home = Home::new(1);
    let _agent = home.start().await;
    tokio::time::timeout(Duration::from_secs(60), async {
        for (columns, keys) in [(80, &b"q"[..]), (20, b"xQ"), (200, b"\x03")] {
            let shown = tokio::task::block_in_place(|| on_terminal(&home, columns, keys));
            let (begin, end) = (shown.find("\x1b[?1049h"), shown.find("\x1b[?1049l"));
            assert!(begin.is_some() && begin < end, "{shown:?}");
            assert!(
                shown.contains("\x1b[?25h") && shown.contains("code 0"),
                "{shown:?}"
            );
            let screen = &shown[begin.unwrap()..end.unwrap()];
            for line in screen.split("\r\n") {
                let plain = without_sequences(line);
                assert!(plain.chars().count() <= columns as usize, "{plain:?}");
            }
        }
    })
    .await
    .unwrap();
}

/// A line without what steers the terminal.
fn without_sequences(line: &str) -> String {
    let mut plain = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\u{1b}' {
            let _ = chars.find(|char| char.is_ascii_alphabetic());
        } else {
            plain.push(char);
        }
    }
    plain
}
