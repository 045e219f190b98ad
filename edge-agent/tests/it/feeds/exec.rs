//! Programs whose output is readings.

use std::time::Duration;

use schema::Value;
use testkit::process::Signal;

use super::{arrived, edge, fails_with, is_running, problems, status};
use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::eventually;
use crate::process::Home;

/// Seconds to sleep that no other process of this machine sleeps.
fn unique() -> String {
    let number = uniform();
    format!(
        "3{:03}.{:06}",
        number / 1_000_000 % 1000,
        number % 1_000_000
    )
}

fn uniform() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Processes that were called with this word.
fn called_with(word: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let is_called = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|found| found == word.as_bytes())
    };
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_called)
        .collect()
}

#[tokio::test]
async fn a_program_is_run_on_its_interval_and_its_lines_are_readings() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = edge(
        &broker,
        r#"
        [source.tank]
        kind = "exec"
        shell = '''
            echo "{\"sensor\":\"level\",\"value\":$LEVEL,\"quality\":\"uncertain\"}"
            echo; echo nonsense; echo "{\"sensor\":\"\",\"value\":1}"
            pwd | sed 's/.*/{"sensor":"folder","value":"&"}/'
            echo "a complaint" >&2
        '''
        environment = { LEVEL = "4.5" }
        directory = "/usr"
        interval = "1s"
        "#,
    )
    .await;
    eventually("two runs arrive", || arrived(&bridge, "level").len() >= 2).await;
    assert_eq!(arrived(&bridge, "level")[0], Value::F64(4.5));
    assert_eq!(arrived(&bridge, "folder")[0], Value::Text("/usr".into()));
    let refused = |reason: &str| {
        edge.metric(&format!(
            "tideline_agent_readings_refused_total{{reason=\"{reason}\"}}"
        ))
    };
    let (malformed, bad_names) = (refused("malformed"), refused("bad_sensor_name"));
    assert!(malformed >= 2 && bad_names >= 2, "{malformed} {bad_names}");
    assert!(is_running(&edge, "tank"));
}

#[tokio::test]
async fn a_program_that_is_kept_running_is_started_again_when_it_ends() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = edge(
        &broker,
        r#"
        [source.short]
        kind = "exec"
        command = ["/bin/sh", "-c", "echo '{\"sensor\":\"s\",\"value\":1}'; echo no sensor >&2; exit 3"]
        keep_running = true
        [source.long]
        kind = "exec"
        shell = "n=0; while :; do n=$((n+1)); echo \"{\\\"sensor\\\":\\\"l\\\",\\\"value\\\":$n}\"; sleep 0.05; done"
        keep_running = true
        silence_max = "5s"
        [source.missing]
        kind = "exec"
        command = ["/nowhere/program"]
        keep_running = true
        "#,
    )
    .await;
    let error = fails_with(&edge, "short", "exit status: 3").await;
    assert!(
        error.contains("/bin/sh ended with") && error.contains("no sensor"),
        "{error}"
    );
    let error = fails_with(&edge, "missing", "cannot start").await;
    assert!(error.contains("/nowhere/program"), "{error}");
    eventually("it is started again", || arrived(&bridge, "s").len() >= 3).await;
    eventually("the other runs on", || arrived(&bridge, "l").len() >= 20).await;
    let first: Vec<Value> = (1..=20).map(Value::I64).collect();
    assert_eq!(arrived(&bridge, "l")[..20], first, "it was started once");
    assert!(is_running(&edge, "long"));
}

#[tokio::test]
async fn nothing_survives_a_time_out_a_silence_or_too_much_output() {
    let broker = Broker::start();
    let (late, silent) = (unique(), unique());
    let edge = edge(
        &broker,
        &format!(
            r#"
            [source.late]
            kind = "exec"
            shell = "echo thinking >&2; setsid sleep {late} & sleep {late} & trap '' TERM; sleep {late}; true"
            timeout = "1s"
            interval = "1h"
            [source.silent]
            kind = "exec"
            shell = "echo '{{\"sensor\":\"a\",\"value\":1}}'; sleep {silent} & sleep {silent}"
            keep_running = true
            silence_max = "1s"
            [source.loud]
            kind = "exec"
            shell = "yes '{{\"sensor\":\"b\",\"value\":1}}'"
            output_bytes_max = 100_000
            interval = "1h"
            "#
        ),
    )
    .await;
    eventually("they have begun", || {
        called_with(&late).len() == 3 && called_with(&silent).len() >= 2
    })
    .await;
    let error = fails_with(&edge, "late", "was killed after 1s").await;
    assert!(error.contains("timeout allows more: thinking"), "{error}");
    let error = fails_with(&edge, "silent", "wrote nothing for 1s").await;
    assert!(error.contains("/bin/sh"), "{error}");
    fails_with(&edge, "loud", "more than 100000 bytes").await;
    eventually("all are gone", || called_with(&late).is_empty()).await;
    let accepted = status(&edge, "loud").readings.accepted;
    // What was within the limit is kept, up to a pipe and a part.
    assert!((1_000..10_000).contains(&accepted), "{accepted}");
    edge.stop().await;
    eventually("a stop ends the last", || called_with(&silent).is_empty()).await;
}

/// The limit itself is no reason to kill.
#[tokio::test]
async fn output_is_bounded_at_its_limit() {
    let broker = Broker::start();
    let line = "{\\\"sensor\\\":\\\"b\\\",\\\"value\\\":1}";
    let bytes = line.replace('\\', "").len() + 1;
    let section = |name: &str, lines: usize| {
        format!(
            "[source.{name}]\nkind = \"exec\"\ninterval = \"1h\"\noutput_bytes_max = {}\n\
             shell = \"yes '{line}' | head -n {lines}\"\n",
            bytes * 100
        )
    };
    let sections = section("below", 99) + &section("at", 100) + &section("above", 101);
    let edge = edge(&broker, &sections).await;
    fails_with(&edge, "above", "wrote more than").await;
    for (name, lines) in [("below", 99), ("at", 100)] {
        eventually("it is read", || {
            status(&edge, name).readings.accepted == lines
        })
        .await;
        assert_eq!(status(&edge, name).last_error, None);
    }
}

/// What an agent that is killed leaves behind ends with the next start.
#[tokio::test]
async fn a_program_does_not_outlive_the_next_start() {
    let home = Home::new(1);
    let seconds = unique();
    let text = std::fs::read_to_string(home.config()).unwrap();
    let section = format!(
        "[source.long]\nkind = \"exec\"\ncommand = [\"sleep\", \"{seconds}\"]\nkeep_running = true\n"
    );
    std::fs::write(home.config(), text + &section).unwrap();
    let mut agent = home.start().await;
    eventually("it runs", || called_with(&seconds).len() == 1).await;
    let left = called_with(&seconds)[0];
    agent.kill();
    assert_eq!(called_with(&seconds), [left], "nobody ended it");
    let mut agent = home.start().await;
    eventually("another runs instead", || {
        let running = called_with(&seconds);
        running.len() == 1 && running[0] != left
    })
    .await;
    assert!(home.log().contains("outlived the agent"), "{}", home.log());
    let (code, took) = agent.ends_on(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    eventually("it ends with the agent", || {
        called_with(&seconds).is_empty()
    })
    .await;
}

#[test]
fn settings_that_cannot_be_are_named() {
    let check = |keys: &str, part: &str| {
        let said = problems(&format!("[source.x]\nkind = \"exec\"\n{keys}\n"));
        assert!(said.contains(part), "{keys}: {said}");
    };
    check("", "needs either command");
    check("command = []", "names no program");
    check("command = [\"a\"]\nshell = \"b\"", "needs either command");
    check(
        "command = [\"a\"]\ninterval = \"999ms\"",
        "must be from 1s to 1day",
    );
    check(
        "command = [\"a\"]\ntimeout = \"99ms\"",
        "must be from 100ms to 1h",
    );
    check(
        "command = [\"a\"]\nsilence_max = \"5s\"",
        "is for keep_running",
    );
    check(
        "command = [\"a\"]\nkeep_running = true\nsilence_max = \"999ms\"",
        "must be from 1s",
    );
    check(
        "command = [\"a\"]\nkeep_running = true\ninterval = \"5s\"",
        "interval",
    );
    check(
        "command = [\"a\"]\noutput_bytes_max = 1023",
        "must be from 1024",
    );
    check(
        "command = [\"a\"]\nenvironment = { \"A=B\" = \"1\" }",
        "without a name, or with =",
    );
    check("command = [\"a\"]\ncolour = \"red\"", "is not a known key");
}
