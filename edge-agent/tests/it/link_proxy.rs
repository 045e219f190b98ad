//! An HTTP proxy on the way to the broker: one of the test that can be rude, and tinyproxy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::port::free_port;
use testkit::process::Guard;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;
use crate::process::{Home, output, stderr};

/// `plant:sesame`.
const AUTHORIZATION: &str = "proxy-authorization: Basic cGxhbnQ6c2VzYW1l";

/// How the proxy of the test answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// As it should, whoever knows the word.
    Connects,
    Says(&'static str),
    Closes,
    Waits,
}

struct Proxy {
    port: u16,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mood = Arc::new(Mutex::new(mood));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (moods, heard) = (Arc::clone(&mood), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mood = *moods.lock().unwrap();
                tokio::spawn(serve(socket, mood, Arc::clone(&heard)));
            }
        });
        Self {
            port,
            mood,
            asked,
            task,
        }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one CONNECT, and carries what follows.
async fn serve(socket: TcpStream, mood: Mood, asked: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(socket);
    let (mut first, mut is_known) = (String::new(), false);
    let mut line = String::new();
    while client
        .read_line(&mut line)
        .await
        .is_ok_and(|bytes| bytes > 2)
    {
        if first.is_empty() {
            first = line.trim_end().to_owned();
        }
        is_known |= line.trim_end().to_lowercase() == AUTHORIZATION.to_lowercase();
        line.clear();
    }
    asked.lock().unwrap().push(first.clone());
    match mood {
        Mood::Connects if !is_known => {
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
            let _ = client.write_all(answer).await;
        }
        Mood::Connects => {
            let target = first.split(' ').nth(1).unwrap();
            let mut broker = TcpStream::connect(target).await.unwrap();
            client
                .write_all(b"HTTP/1.1 200 Here you are\r\nVia: 1.1 x\r\n\r\n")
                .await
                .unwrap();
            let _ = copy_bidirectional(&mut client, &mut broker).await;
        }
        Mood::Says(answer) => {
            let _ = client.write_all(answer.as_bytes()).await;
        }
        Mood::Closes => {}
        Mood::Waits => {
            let _ = client.read_to_end(&mut Vec::new()).await;
        }
    }
}

async fn start(broker: &Broker, proxy: &str) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(broker, folder.path());
    config.link.proxy = Some(proxy.parse().unwrap());
    config.link.connect_timeout = Duration::from_secs(1);
    Edge::start_with(config, folder).await
}

#[tokio::test]
async fn readings_go_through_a_proxy_that_sees_the_broker_and_nothing_else() {
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let proxy = Proxy::start(Mood::Connects).await;
    let url = format!("http://plant:sesame@127.0.0.1:{}", proxy.port);
    let edge = start(&broker, &url).await;
    edge.append(100).await;
    eventually("all is committed", || edge.agent.balance().committed == 100).await;
    let asked = proxy.asked.lock().unwrap()[0].clone();
    assert_eq!(asked, format!("CONNECT 127.0.0.1:{} HTTP/1.1", broker.port));
    let status = edge.agent.status();
    assert_eq!(
        status.traffic.proxy,
        Some(format!("127.0.0.1:{}", proxy.port))
    );
    let shown = format!(
        "{status} {} {status:?}",
        serde_json::to_string(&status).unwrap()
    );
    assert!(
        !shown.contains("sesame") && !shown.contains("cGxhbnQ6"),
        "{shown}"
    );
    edge.stop().await;
}

#[tokio::test]
async fn what_a_proxy_does_wrong_is_named_and_its_mending_is_noticed() {
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let proxy = Proxy::start(Mood::Closes).await;
    let url = format!("http://plant:sesame@127.0.0.1:{}", proxy.port);
    let edge = start(&broker, &url).await;
    edge.append(3).await;
    for (mood, expected) in [
        (Mood::Closes, "closed the connection without an answer"),
        (
            Mood::Says("HTTP/1.1 407 Who are you\r\n\r\n"),
            "wants other credentials (407)",
        ),
        (
            Mood::Says("HTTP/1.1 403 Filtered\r\n\r\n"),
            "does not allow it (403 Filtered)",
        ),
        (
            Mood::Says("HTTP/1.0 502 Bad Gateway\r\n\r\n"),
            "could not connect there itself (502 Bad Gateway)",
        ),
        (
            Mood::Says("220 mail ready\r\n"),
            "did not answer as an HTTP proxy does",
        ),
        (
            Mood::Says("HTTP/1.1 200 OK\r\n\r\nHello, I am the broker"),
            "did not answer as an HTTP proxy does",
        ),
        (Mood::Waits, "no connection within 1 s"),
    ] {
        proxy.set(mood);
        eventually(expected, || {
            let error = edge.agent.status().last_error.unwrap_or_default();
            error.contains(expected) && error.contains("cannot reach 127.0.0.1:")
        })
        .await;
    }
    assert_eq!(edge.agent.balance().pending, 3);
    proxy.set(Mood::Connects);
    eventually("all is committed", || edge.agent.balance().committed == 3).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let broker = Broker::start();
    let port = free_port();
    let edge = start(&broker, &format!("http://127.0.0.1:{port}")).await;
    eventually("it is named", || {
        let error = edge.agent.status().last_error.unwrap_or_default();
        error.contains(&format!("proxy 127.0.0.1:{port} cannot be reached"))
    })
    .await;
    edge.stop().await;
}

/// Whose proxy: the agent's own settings, and those of the environment.
#[tokio::test]
async fn tinyproxy_connects_the_built_agent_and_no_secret_is_logged() {
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let settings = folder.path().join("tinyproxy.conf");
    let text = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nBasicAuth plant sesame\nConnectPort {}\n\
         LogLevel Error\nLogFile \"{}\"\n",
        broker.port,
        folder.path().join("log").display()
    );
    std::fs::write(&settings, text).unwrap();
    let mut command = std::process::Command::new("tinyproxy");
    let _proxy = Guard::spawn(command.arg("-d").arg("-c").arg(&settings));
    eventually("tinyproxy listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
    .await;
    for (in_settings, in_environment) in [
        (format!("http://plant:sesame@127.0.0.1:{port}"), None),
        (
            "environment".to_owned(),
            Some(format!("http://plant:sesame@127.0.0.1:{port}")),
        ),
    ] {
        let home = Home::new(broker.port);
        let text = std::fs::read_to_string(home.config()).unwrap();
        let with_proxy = format!("[mqtt]\nproxy = \"{in_settings}\"");
        let text = text.replace("[mqtt]", &with_proxy) + "[log]\nlevel = \"trace\"\n";
        std::fs::write(home.config(), text).unwrap();
        let _agent = home.spawn_with(|command| {
            if let Some(url) = &in_environment {
                command
                    .env("HTTPS_PROXY", url)
                    .env("NO_PROXY", "other.example");
            }
        });
        eventually("it is connected", || home.log().contains("connected")).await;
        let shown = || output(&["status", "--config", &home.config()]);
        eventually("it is connected through it", || {
            let shown = String::from_utf8(shown().stdout).unwrap();
            let through = format!("127.0.0.1:{port}");
            let mut lines = shown.lines();
            lines.any(|line| line.starts_with("proxy ") && line.ends_with(&through))
        })
        .await;
        let seen = home.log() + &stderr(&shown()) + &String::from_utf8(shown().stdout).unwrap();
        assert!(
            !seen.contains("sesame") && !seen.contains("cGxhbnQ6"),
            "{seen}"
        );
    }
}
