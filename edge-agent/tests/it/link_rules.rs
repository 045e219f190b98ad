//! Quiet hours and the budget of a link, with a real broker and a real file.

use std::path::Path;
use std::time::Duration;

use edge_agent::buffer::{Policies, Policy, Priority, Rule};
use edge_agent::link::budget::{AtLimit, Budget, Period};
use edge_agent::link::governor::Why;
use edge_agent::link::quiet::{Offset, Schedule};
use edge_agent::link::{BudgetStatus, LinkRules};
use schema::message::ClockState;
use time::OffsetDateTime;

use crate::bridge::{Age, Bridge};
use crate::broker::Broker;
use crate::buffer::reading;
use crate::edge::{Edge, config};
use crate::eventually;
use crate::process::{Home, output};
use crate::tools::{id, order};

/// Quiet from an hour ago until the minute that begins next, but at least this many seconds from now.
fn quiet_for_seconds(least: i64) -> Schedule {
    let at = |seconds: i64| {
        let time = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        format!("{:02}:{:02}", time.hour(), time.minute())
    };
    let span = format!("{}-{}", at(-3600), at(least + 60));
    let schedule = Schedule::new(&[span], Offset::default());
    schedule.unwrap().unwrap()
}

fn budget(bytes: u64, at_limit: AtLimit) -> LinkRules {
    LinkRules {
        budget: Some(Budget {
            bytes,
            period: Period::Month { day: 1 },
            offset: Offset::default(),
            at_limit,
        }),
        ..LinkRules::default()
    }
}

async fn start(broker: &Broker, rules: LinkRules, folder: tempfile::TempDir) -> Edge {
    let mut config = config(broker, folder.path());
    config.link_rules = rules;
    config.session.report_interval = Duration::from_secs(1);
    Edge::start_with(config, folder).await
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn used(edge: &Edge) -> BudgetStatus {
    edge.agent.status().traffic.budget.unwrap()
}

#[tokio::test]
async fn readings_wait_for_the_end_of_quiet_hours_and_commands_do_not() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let rules = LinkRules {
        quiet: Some(quiet_for_seconds(8)),
        ..LinkRules::default()
    };
    let edge = start(&broker, rules, folder()).await;
    eventually("it is quiet", || {
        edge.agent.status().traffic.waits_for == Some(Why::Quiet)
    })
    .await;
    assert_eq!(edge.agent.status().clock.state, ClockState::Verified);
    edge.append(10).await;
    let reports = bridge.heard().reports.len();
    order(&bridge, id(7), "ping", "{}").await;
    eventually("and reports go on", || {
        bridge.heard().reports.len() > reports + 1
    })
    .await;
    let status = edge.agent.status();
    assert_eq!((bridge.heard().rows.len(), status.waiting.fresh), (0, 10));
    assert!(status.connected && !status.traffic.is_closed && edge.health.is_ready());
    assert!(
        status
            .to_string()
            .contains("readings wait for quiet hours; until")
    );
    assert_eq!(edge.metric("tideline_agent_link_waiting"), 1);
    eventually("they go when it ends", || {
        edge.agent.balance().committed == 10
    })
    .await;
    assert_eq!(edge.agent.status().traffic.waits_for, None);
    edge.stop().await;
}

#[tokio::test]
async fn a_link_that_is_closed_in_quiet_hours_opens_again_and_nothing_is_lost() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let rules = LinkRules {
        quiet: Some(quiet_for_seconds(5)),
        quiet_closes: true,
        ..LinkRules::default()
    };
    let edge = start(&broker, rules, folder()).await;
    eventually("the link is closed", || {
        let status = edge.agent.status();
        status.traffic.is_closed && !status.connected && status.traffic.broker.is_none()
    })
    .await;
    edge.append(10).await;
    assert!(edge.health.is_ready(), "it is as its owner wants it");
    assert_eq!(edge.agent.status().last_error, None);
    assert!(bridge.heard().rows.is_empty());
    // Not the last will: it said that it goes.
    eventually("it went in order", || bridge.heard().statuses.len() >= 2).await;
    eventually("they go when it ends", || {
        edge.agent.balance().committed == 10
    })
    .await;
    assert_eq!(edge.metric("tideline_agent_connections_total"), 2);
    edge.stop().await;
}

#[tokio::test]
async fn a_clock_that_nobody_confirmed_silences_nothing() {
    let broker = Broker::start();
    let _bridge = Bridge::start_as(&broker, Age::Old).await;
    let rules = LinkRules {
        quiet: Some(quiet_for_seconds(3600)),
        quiet_closes: true,
        ..LinkRules::default()
    };
    let edge = start(&broker, rules, folder()).await;
    edge.append(10).await;
    eventually("they go", || edge.agent.balance().committed == 10).await;
    assert_eq!(edge.agent.status().traffic.waits_for, None);
    edge.stop().await;
}

#[tokio::test]
async fn a_budget_that_is_used_up_stops_readings_or_the_whole_link() {
    for at_limit in [AtLimit::Slow, AtLimit::Stop] {
        let broker = Broker::start();
        let bridge = Bridge::start(&broker).await;
        // Less than the handshake takes.
        let edge = start(&broker, budget(1_000, at_limit), folder()).await;
        let closes = at_limit == AtLimit::Stop;
        eventually("it is used up", || {
            let status = edge.agent.status();
            let is_closed = status.traffic.is_closed && !status.connected;
            status.traffic.waits_for == Some(Why::Limit)
                && is_closed == closes
                && status
                    .traffic
                    .budget
                    .is_some_and(|budget| budget.until_ms.is_some())
        })
        .await;
        edge.append(10).await;
        let shown = used(&edge);
        assert!(shown.used > 1_000 && shown.left == 0, "{shown:?}");
        if !closes {
            let reports = bridge.heard().reports.len();
            eventually("reports go on", || {
                bridge.heard().reports.len() > reports + 1
            })
            .await;
        }
        assert_eq!(edge.agent.balance().pending, 10);
        assert!(bridge.heard().rows.is_empty());
        assert_eq!(edge.metric("tideline_agent_link_budget_bytes"), 1_000);
        assert_eq!(edge.metric("tideline_agent_link_budget_left_bytes"), 0);
        assert!(edge.metric("tideline_agent_link_budget_used_bytes") > 1_000);
        edge.stop().await;
    }
}

#[tokio::test]
async fn alarms_pass_quiet_hours_and_a_budget_that_is_used_up() {
    let quiet = LinkRules {
        quiet: Some(quiet_for_seconds(3600)),
        ..LinkRules::default()
    };
    for (rules, why) in [
        (quiet, Why::Quiet),
        (budget(1_000, AtLimit::Slow), Why::Limit),
    ] {
        let broker = Broker::start();
        let bridge = Bridge::start(&broker).await;
        let folder = folder();
        let mut config = config(&broker, folder.path());
        config.link_rules = rules;
        let alarms = Rule {
            sensor: "alarm/*".parse().unwrap(),
            when_full: None,
            age_max: None,
            priority: Some(Priority::Alarm),
        };
        config.buffer.policies = Policies::of_rules(Policy::DropOldest, None, vec![alarms]);
        let edge = Edge::start_with(config, folder).await;
        eventually("readings wait", || {
            edge.agent.status().traffic.waits_for == Some(why)
        })
        .await;
        edge.append(10).await;
        let alarm = reading("alarm/door", 1_700_000_000_000, 1);
        edge.agent.ingest().append(vec![alarm]).await.unwrap();
        eventually("the alarm is in the database", || {
            edge.agent.balance().committed == 1
        })
        .await;
        assert_eq!(bridge.heard().order, ["alarm/door"]);
        assert_eq!(edge.agent.status().waiting.fresh, 10);
        edge.stop().await;
    }
}

#[tokio::test]
async fn what_was_used_is_known_after_a_restart() {
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let rules = budget(1_000_000_000, AtLimit::Slow);
    let edge = start(&broker, rules.clone(), folder()).await;
    edge.append(1_000).await;
    eventually("all is committed", || {
        edge.agent.balance().committed == 1_000
    })
    .await;
    let before = used(&edge).used;
    assert!(before > 1_000);
    let folder = edge.stop().await;
    // What came before it was known: only the account of the file.
    let away = start_away(folder.path(), rules).await;
    eventually("it is known", || {
        away.agent.status().traffic.budget.is_some()
    })
    .await;
    assert!(used(&away).used >= before, "{before} {:?}", used(&away));
    assert_eq!(away.agent.status().traffic.bytes_sent, 0);
    away.stop().await;
}

/// The same file, where no broker is.
async fn start_away(folder: &Path, rules: LinkRules) -> Edge {
    let mut broker = Broker::start();
    broker.kill();
    let mut config = config(&broker, folder);
    config.link_rules = rules;
    Edge::start_with(config, tempfile::tempdir().unwrap()).await
}

#[tokio::test]
async fn an_account_that_makes_no_sense_begins_anew() {
    use edge_agent::buffer::{Append, Buffer, Position};
    let broker = Broker::start();
    let folder = folder();
    let settings = config(&broker, folder.path()).buffer;
    let opened = Buffer::open(settings, crate::buffer::TestClock::at_ms(1_795_000_000_000));
    let buffer = opened.await.unwrap().buffer;
    let nonsense = Append {
        position: Position::new("[link] budget", b"\xff{".to_vec()),
        ..Append::default()
    };
    buffer.append(nonsense).await.unwrap();
    buffer.close().await;
    let _bridge = Bridge::start(&broker).await;
    let edge = start(&broker, budget(1_000_000_000, AtLimit::Slow), folder).await;
    edge.append(5).await;
    eventually("they go", || edge.agent.balance().committed == 5).await;
    assert!(used(&edge).used < 1_000_000);
    edge.stop().await;
}

#[tokio::test]
async fn a_kill_leaves_the_account_as_it_was_kept() {
    let mut broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let text = std::fs::read_to_string(home.config()).unwrap();
    // It is kept after each 2,000 bytes: the handshake alone is more.
    let text = text + "[link]\nbudget = \"1MB\"\n";
    std::fs::write(home.config(), text).unwrap();
    let mut agent = home.start().await;
    assert_eq!(home.produce(1, 20).await, 20);
    let used = || {
        let shown = output(&["status", "--config", &home.config(), "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
        status["traffic"]["budget"]["used"].as_u64()
    };
    eventually("the handshake is counted", || used() > Some(4_000)).await;
    let kept = || {
        let file = std::fs::read(home.path("buffer.db-wal")).unwrap_or_default();
        file.windows(7).any(|bytes| bytes == b"\"used\":")
    };
    eventually("some of it is on disk", kept).await;
    agent.kill();
    broker.kill();
    let _again = home.start().await;
    eventually("it is known again", || used().is_some()).await;
    assert!(used() >= Some(2_000), "{:?}", used());
}
