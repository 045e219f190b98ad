//! The built-in commands, asked for by a bridge.

use std::time::Duration;

use daemon::{Clock, SystemClock};
use edge_agent::commands::work::Program;
use edge_agent::source::host::HostSource;
use schema::Channel;
use schema::message::{Command, CommandId, CommandProgress, CommandRequest, CommandState};

use crate::bridge::{Bridge, Mood};
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;
use crate::process::Home;

pub(crate) fn id(number: u128) -> CommandId {
    CommandId::new(SystemClock::default().now_ms(), number)
}

/// Sends a command, and again until the device says that it has it.
pub(crate) async fn order(bridge: &Bridge, id: CommandId, name: &str, arguments: &str) {
    let now_ms = i64::try_from(SystemClock::default().now_ms()).unwrap();
    let command = Command {
        id,
        name: name.to_owned(),
        arguments: arguments.to_owned(),
        expires_at_ms: now_ms + 60_000,
        priority: 0,
    };
    eventually("the device has the command", || {
        bridge.say(Channel::Command, &CommandRequest::Run(command.clone()));
        std::thread::sleep(Duration::from_millis(20));
        words(bridge, id).next().is_some()
    })
    .await;
}

fn words(bridge: &Bridge, id: CommandId) -> impl Iterator<Item = CommandProgress> + use<> {
    let words = bridge.heard().words.clone();
    words.into_iter().filter(move |word| word.id == id)
}

/// Waits for a command's end.
pub(crate) async fn ended(bridge: &Bridge, id: CommandId) -> CommandProgress {
    let end = || words(bridge, id).find(|word| word.state.is_final());
    eventually("the command ends", || end().is_some()).await;
    end().unwrap()
}

#[tokio::test]
async fn a_collect_takes_a_whole_scan_whatever_the_dead_band() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    let mut host = HostSource::default().every(Duration::from_secs(3_600));
    host.shaping.dead_band = Some(1e18);
    config.sources.push(host);
    let edge = Edge::start_with(config, folder).await;
    eventually("the first scan is accepted", || {
        edge.agent.balance().accepted > 0
    })
    .await;
    let before = edge.agent.balance().accepted;
    let asked = id(1);
    order(&bridge, asked, "collect", "{}").await;
    let end = ended(&bridge, asked).await;
    assert_eq!(end.state, CommandState::Succeeded, "{end:?}");
    let collected = edge.agent.balance().accepted - before;
    assert!(collected > 0);
    assert_eq!(end.output, format!("{collected} readings accepted"));
}

#[tokio::test]
async fn a_dead_band_leaves_out_what_has_not_changed() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    let mut host = HostSource::default().every(Duration::from_millis(20));
    host.shaping.dead_band = Some(0.0);
    config.sources.push(host);
    let _edge = Edge::start_with(config, folder).await;
    let of = |name: &str| {
        let heard = bridge.heard();
        let rows = heard.rows.values();
        rows.filter(|(sensor, _)| sensor == name).count()
    };
    // The clock's seconds change, the memory in the machine does not.
    eventually("what changes is told", || of("host/uptime_seconds") >= 3).await;
    assert_eq!(of("host/memory/total_bytes"), 1);
}

#[tokio::test]
async fn a_resync_sends_again_what_nobody_acknowledged() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.session.timeout_initial = Duration::from_secs(600);
    config.session.timeout_max = Duration::from_secs(600);
    let edge = Edge::start_with(config, folder).await;
    bridge.set(Mood::Forgets);
    edge.append(5).await;
    eventually("they arrive", || bridge.heard().rows.len() == 5).await;
    let reports = bridge.heard().reports.len();
    bridge.set(Mood::Acknowledges);
    let asked = id(1);
    order(&bridge, asked, "resync", "{}").await;
    let end = ended(&bridge, asked).await;
    assert!(end.output.starts_with("5 readings in flight"), "{end:?}");
    eventually("all is settled", || edge.agent.balance().pending == 0).await;
    eventually("the ledger is reported", || {
        bridge.heard().reports.len() > reports
    })
    .await;
}

#[tokio::test]
async fn progress_of_a_program_is_told() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    let go = folder.path().join("go");
    let script = format!(
        "echo progress: 40; until [ -e {} ]; do sleep 0.02; done; echo done",
        go.display()
    );
    let program = Program {
        program: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script],
        timeout: Duration::from_secs(30),
    };
    config.commands.exec.insert("steps".to_owned(), program);
    let _edge = Edge::start_with(config, folder).await;
    let asked = id(1);
    order(&bridge, asked, "exec", r#"{"name":"steps"}"#).await;
    eventually("progress is told", || {
        words(&bridge, asked).any(|word| word.state == CommandState::Running && word.percent == 40)
    })
    .await;
    std::fs::write(go, "").unwrap();
    let end = ended(&bridge, asked).await;
    assert_eq!((end.output.as_str(), end.percent), ("done", 100));
}

#[tokio::test]
async fn an_agent_inside_another_program_does_not_restart_it() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let _edge = Edge::start(&broker).await;
    let asked = id(1);
    order(&bridge, asked, "restart", "{}").await;
    assert_eq!(ended(&bridge, asked).await.state, CommandState::Failed);
    let asked = id(2);
    order(&bridge, asked, "set-log-level", r#"{"level":"debug"}"#).await;
    assert_eq!(ended(&bridge, asked).await.state, CommandState::Failed);
}

/// The same process, and the same command is not obeyed twice.
#[tokio::test]
async fn a_restart_happens_once_and_is_known_to_have_succeeded() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let mut agent = home.start().await;
    let asked = id(1);
    order(&bridge, asked, "restart", "{}").await;
    let end = ended(&bridge, asked).await;
    assert_eq!(
        end.state,
        CommandState::Succeeded,
        "{end:?}\n{}",
        home.log()
    );
    let starts = || home.log().matches("agent started").count();
    assert_eq!(starts(), 2);
    assert!(
        agent.0.try_wait().unwrap().is_none(),
        "it is the same process"
    );
    // Sent again, as a bridge does that has not heard of its end.
    let heard = words(&bridge, asked).count();
    let again = CommandRequest::Run(Command {
        id: asked,
        name: "restart".to_owned(),
        arguments: "{}".to_owned(),
        expires_at_ms: i64::MAX,
        priority: 0,
    });
    bridge.say(Channel::Command, &again);
    eventually("its end is told again", || {
        words(&bridge, asked).count() > heard
    })
    .await;
    // Another one is another restart, with the first one's reason gone from the arguments.
    let other = id(2);
    order(&bridge, other, "restart", "{}").await;
    let end = ended(&bridge, other).await;
    assert_eq!(end.state, CommandState::Succeeded, "{end:?}");
    assert_eq!(starts(), 3);
    assert_eq!(
        agent.ends_on(testkit::process::Signal::TERM).0,
        Some(0),
        "{}",
        home.log()
    );
}
