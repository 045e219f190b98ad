//! Settings changed on the device: by the built command line, with and without an agent that runs.

use std::time::Duration;

use schema::message::{ConfigEntry, DesiredConfig};
use schema::setting::Setting;
use schema::{Channel, Hlc};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::eventually;
use crate::process::{Home, output, stderr};

const KEY: &str = Setting::COMMANDS_PARALLEL;

impl Home {
    /// `edge-agent config …`, which is to succeed; what it printed.
    fn configure(&self, arguments: &[&str]) -> Value {
        let config = self.config();
        let mut all = vec!["config"];
        all.extend(arguments);
        all.extend(["--config", &config, "--json"]);
        let output = output(&all);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn http(&self, request: &str, headers: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.admin)).await.unwrap();
        let text = format!(
            "{request} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// The value and clock that the bridge was last told.
fn told(bridge: &Bridge) -> Option<(String, Hlc)> {
    let heard = bridge.heard();
    let entries = &heard.configs.last()?.entries;
    let entry = entries.iter().find(|entry| entry.key == KEY)?;
    Some((entry.value.clone(), entry.hlc))
}

fn desired(value: &str, hlc: Hlc) -> DesiredConfig {
    DesiredConfig {
        entries: vec![ConfigEntry {
            key: KEY.to_owned(),
            value: value.to_owned(),
            hlc,
        }],
    }
}

#[tokio::test]
async fn a_setting_made_without_an_agent_holds_from_its_start_on_and_is_told() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    assert_eq!(home.configure(&["show"]), json!({"keys": {}}));
    assert!(!std::path::Path::new(&home.path("buffer.db")).exists());
    let set = home.configure(&["set", KEY, "3"]);
    assert_eq!(set["keys"][KEY]["value"], 3);
    assert_eq!(set["keys"][KEY]["set_by"], "device");
    assert_eq!(set["keys"][KEY]["in_force"], Value::Null);
    let _agent = home.start().await;
    eventually("the bridge is told", || {
        told(&bridge).is_some_and(|(value, _)| value == "3")
    })
    .await;
    let shown = home.configure(&["show"]);
    assert_eq!(shown["keys"][KEY]["in_force"], true);
}

#[tokio::test]
async fn a_setting_made_with_an_agent_holds_and_is_told_at_once_and_the_later_wins() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let mut agent = home.start().await;
    // What the bridge wants carries a clock far ahead of this machine's.
    let ahead = Hlc::new(4_000_000_000_000, 0);
    eventually("the agent has it", || {
        bridge.say(Channel::Config, &desired("2", ahead));
        std::thread::sleep(Duration::from_millis(20));
        home.configure(&["show"])["keys"][KEY]["value"] == 2
    })
    .await;
    let set = home.configure(&["set", KEY, "4"]);
    assert_eq!(set["keys"][KEY]["in_force"], true);
    eventually("the bridge is told", || {
        told(&bridge).is_some_and(|(value, hlc)| value == "4" && hlc > ahead)
    })
    .await;
    let (_, hlc) = told(&bridge).unwrap();
    // What is older, or the same again, changes nothing; what is later does.
    bridge.say(Channel::Config, &desired("2", ahead));
    bridge.say(Channel::Config, &desired("5", hlc.next()));
    eventually("the later one holds", || {
        home.configure(&["show"])["keys"][KEY]["value"] == 5
    })
    .await;
    agent.kill();
    let kept = home.configure(&["show"]);
    assert_eq!(kept["keys"][KEY]["value"], 5);
    assert_eq!(kept["keys"][KEY]["set_by"], "bridge");
    home.configure(&["unset", KEY]);
    let _agent = home.start().await;
    eventually("the bridge is told that it is unset", || {
        told(&bridge).is_some_and(|(value, _)| value == "null")
    })
    .await;
}

#[tokio::test]
async fn the_log_level_changes_while_the_agent_runs() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    let _agent = home.start().await;
    assert!(!home.log().contains("DEBUG"));
    // Text needs no quotes of its own.
    home.configure(&["set", Setting::LOG_LEVEL, "trace"]);
    eventually("more is logged", || {
        // Something to log.
        home.configure(&["show"]);
        home.log().contains("DEBUG") || home.log().contains("TRACE")
    })
    .await;
}

#[test]
fn what_is_wrong_is_refused_with_the_reason() {
    let home = Home::new(1);
    let config = home.config();
    for (key, value, reason) in [
        (KEY, "9", "from 1 to 8"),
        ("no.such.key", "1", "is none of"),
        (Setting::LOG_LEVEL, "loud", "must be one of"),
    ] {
        let output = output(&["config", "set", key, value, "--config", &config]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains(key) && text.contains(reason), "{text}");
    }
    let keys = output(&["config", "keys"]);
    let text = String::from_utf8(keys.stdout).unwrap();
    for known in Setting::ALL {
        assert!(text.contains(known.key) && text.contains(known.bounds));
    }
    let table = output(&["config", "show", "--config", &config]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.contains(KEY), "{text}");
}

/// A page in a browser on this machine must not change its settings.
#[tokio::test]
async fn only_this_machine_may_ask_and_in_json() {
    let home = Home::new(1);
    let _agent = home.start().await;
    let (good, body) = ("Host: 127.0.0.1\r\n", "{\"commands.parallel\": 2}");
    let json = "Content-Type: application/json\r\n";
    let check = async |request: &str, headers: &str, body: &str, status: &str| {
        let answer = home.http(request, headers, body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request} {headers}: {answer}"
        );
        answer
    };
    let foreign = "Host: attacker.example\r\n";
    check("GET /config", foreign, "", "403").await;
    check("POST /config", &format!("{foreign}{json}"), body, "403").await;
    check("POST /config", good, body, "415").await;
    let form = format!("{good}Content-Type: text/plain\r\n");
    check("POST /config", &form, body, "415").await;
    let headers = format!("{good}{json}");
    for wrong in ["", "[]", "{}", "{\"commands.parallel\": 9}", "{\"no\": 1}"] {
        check("POST /config", &headers, wrong, "400").await;
    }
    let large = format!("{{\"commands.parallel\": {}1}}", " ".repeat(64 * 1024));
    check("POST /config", &headers, &large, "413").await;
    let nothing = check("GET /config", good, "", "200").await;
    assert!(nothing.ends_with("{\"keys\":{}}"), "{nothing}");
    check("POST /config", &headers, body, "200").await;
}
