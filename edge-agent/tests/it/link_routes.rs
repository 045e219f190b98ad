//! Several brokers, names with several addresses, and IPv6: nothing is lost, whichever of them dies.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, TlsConfiguration, Transport};
use testkit::port::free_port;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::bridge::Bridge;
use crate::broker::{Broker, certificates};
use crate::edge::{Edge, config, config_at};
use crate::eventually;
use crate::process::Home;

fn address(host: &str, port: u16) -> schema::BrokerAddress {
    let host = host.to_owned();
    schema::BrokerAddress { host, port }
}

/// An agent that knows these brokers.
async fn start(brokers: Vec<schema::BrokerAddress>, first_again: Option<Duration>) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config_at(brokers[0].port, folder.path());
    config.link.brokers = brokers;
    config.link.prefer_first_after = first_again;
    config.link.connect_timeout = Duration::from_secs(2);
    Edge::start_with(config, folder).await
}

fn in_use(edge: &Edge, broker: &Broker, place: u64) -> bool {
    let status = edge.agent.status();
    let shown = status.traffic.broker.unwrap_or_default();
    status.connected
        && shown == address("127.0.0.1", broker.port).to_string()
        && edge.metric(&format!("tideline_agent_link_broker{{place=\"{place}\"}}")) == 1
}

/// Takes connections as a dead machine behind a switch does: not at all.
struct BlackHole {
    port: u16,
    _held: (tokio::net::TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    async fn open() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(taken)) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            held.push(taken);
            assert!(held.len() < 100, "its queue is never full");
        }
        Self {
            port: address.port(),
            _held: (listener, held),
        }
    }
}

#[tokio::test]
async fn a_first_broker_that_refuses_swallows_or_is_mute_costs_only_its_time() {
    let hole = BlackHole::open().await;
    // Its kernel takes connections that it never looks at.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = (mute.local_addr().unwrap().port(), mute);
    for dead in [free_port(), hole.port, mute.0] {
        let broker = Broker::start();
        let bridge = Bridge::start(&broker).await;
        let brokers = vec![
            address("127.0.0.1", dead),
            address("127.0.0.1", broker.port),
        ];
        let edge = start(brokers, None).await;
        edge.append(50).await;
        eventually("all is committed", || edge.agent.balance().committed == 50).await;
        assert!(in_use(&edge, &broker, 2));
        let shown = edge.agent.status().traffic.broker;
        assert_eq!(shown, Some(format!("127.0.0.1:{}", broker.port)));
        assert!(edge.metric("tideline_agent_connection_failures_total{class=\"network\"}") >= 1);
        assert_eq!(bridge.heard().rows.len(), 50);
        edge.stop().await;
    }
}

#[tokio::test]
async fn a_broker_that_dies_under_load_and_comes_back_loses_nothing() {
    let (mut first, second) = (Broker::start(), Broker::start());
    let (near, far) = (Bridge::start(&first).await, Bridge::start(&second).await);
    let brokers = vec![
        address("127.0.0.1", first.port),
        address("127.0.0.1", second.port),
    ];
    let edge = start(brokers, Some(Duration::from_millis(500))).await;
    eventually("the first is used", || in_use(&edge, &first, 1)).await;
    let mut appended = 0;
    for round in 0..60 {
        edge.append(100).await;
        appended += 100;
        if round == 20 {
            first.kill();
        }
    }
    eventually("the second is used", || in_use(&edge, &second, 2)).await;
    edge.append(100).await;
    appended += 100;
    eventually("all is committed", || {
        edge.agent.balance().committed == appended
    })
    .await;
    assert!(!far.heard().rows.is_empty());
    // It returns while readings come, and is preferred again.
    first.restart();
    let mut returned = false;
    for _ in 0..2_000 {
        edge.append(5).await;
        appended += 5;
        if in_use(&edge, &first, 1) {
            returned = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(returned, "{:?}", edge.agent.status());
    edge.append(10).await;
    appended += 10;
    eventually("all is committed", || {
        edge.agent.balance().committed == appended
    })
    .await;
    let balance = edge.agent.balance();
    assert!(balance.is_balanced());
    assert_eq!((balance.pending, balance.evicted), (0, 0));
    let mut known = near.heard().rows.clone();
    known.extend(far.heard().rows.clone());
    assert_eq!(known.len() as u64, appended);
    edge.stop().await;
}

#[tokio::test]
async fn a_broker_that_works_is_kept_until_it_fails() {
    let (mut first, mut second) = (Broker::start(), Broker::start());
    let _bridges = (Bridge::start(&first).await, Bridge::start(&second).await);
    first.kill();
    let brokers = vec![
        address("127.0.0.1", first.port),
        address("127.0.0.1", second.port),
    ];
    let edge = start(brokers, None).await;
    eventually("the second is used", || in_use(&edge, &second, 2)).await;
    first.restart();
    edge.append(20).await;
    eventually("all is committed", || edge.agent.balance().committed == 20).await;
    assert!(in_use(&edge, &second, 2), "nothing was wrong with it");
    second.kill();
    eventually("the first is used", || in_use(&edge, &first, 1)).await;
    edge.append(20).await;
    eventually("all is committed", || edge.agent.balance().committed == 40).await;
    edge.stop().await;
}

#[tokio::test]
async fn each_broker_must_prove_the_host_that_its_address_names() {
    // Its certificate holds 127.0.0.1, and not 127.0.0.2.
    let broker = Broker::start_at(&["127.0.0.1", "127.0.0.2"]);
    let _bridge = Bridge::start(&broker).await;
    let brokers = vec![
        address("127.0.0.2", broker.port),
        address("127.0.0.1", broker.port),
    ];
    let edge = start(brokers, None).await;
    eventually("the second is used", || in_use(&edge, &broker, 2)).await;
    let refused = "tideline_agent_connection_failures_total{class=\"authentication\"}";
    assert!(edge.metric(refused) >= 1);
    edge.stop().await;
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // Where localhost is ::1 first, nobody listens there.
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let edge = start(vec![address("localhost", broker.port)], None).await;
    edge.append(5).await;
    eventually("all is committed", || edge.agent.balance().committed == 5).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_broker_is_reached_by_its_ipv6_address() {
    let broker = Broker::start_at(&["127.0.0.1", "::1"]);
    let bridge = Bridge::start(&broker).await;
    let written: schema::BrokerAddress = format!("[::1]:{}", broker.port).parse().unwrap();
    let edge = start(vec![written], None).await;
    edge.append(25).await;
    eventually("all is committed", || edge.agent.balance().committed == 25).await;
    assert_eq!(bridge.heard().rows.len(), 25);
    let shown = edge.agent.status().traffic.broker;
    assert_eq!(shown, Some(format!("[::1]:{}", broker.port)));
    edge.stop().await;
}

/// What the bridge, and the source of that kind, leave to the client library.
#[tokio::test]
async fn the_mqtt_client_takes_an_ipv6_address_as_it_stands_in_an_address() {
    let broker = Broker::start_at(&["127.0.0.1", "::1"]);
    certs::tls::install_crypto_provider();
    let tls = certs::tls::client_config(&certificates().bridge).unwrap();
    let written: schema::BrokerAddress = format!("[::1]:{}", broker.port).parse().unwrap();
    let mut options = MqttOptions::new("someone", written.host, written.port);
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    let (_client, mut events) = AsyncClient::new(options, 10);
    let connected = timeout(Duration::from_secs(20), events.poll())
        .await
        .unwrap();
    assert!(
        matches!(connected, Ok(Event::Incoming(Packet::ConnAck(_)))),
        "{connected:?}"
    );
}

#[tokio::test]
async fn bytes_and_readings_are_counted() {
    let broker = Broker::start();
    let _bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start_with(config(&broker, folder.path()), folder).await;
    edge.append(1_000).await;
    eventually("all is committed", || {
        edge.agent.balance().committed == 1_000
    })
    .await;
    let link = edge.agent.status().traffic;
    let sent = edge.metric("tideline_agent_link_bytes_total{direction=\"sent\"}");
    let received = edge.metric("tideline_agent_link_bytes_total{direction=\"received\"}");
    assert!(
        sent >= link.bytes_sent && link.bytes_sent > 1_000,
        "{link:?}"
    );
    assert!(
        received >= link.bytes_received && link.bytes_received > 500,
        "{link:?}"
    );
    assert_eq!(link.readings_sent, 1_000);
    let each = link.bytes_per_reading.unwrap();
    let whole = (link.bytes_sent + link.bytes_received) as f64 / 1_000.0;
    assert!((each - whole).abs() < 1.0, "{each} {whole}");
    assert!(link.bytes_per_reading_hour.is_some());
    let payload = edge.metric("tideline_agent_batches_sent_bytes_total");
    assert!(link.bytes_sent > payload, "TLS and handshakes are counted");
    let text = edge.agent.status().to_string();
    assert!(
        text.contains("traffic") && text.contains("bytes a reading"),
        "{text}"
    );
    edge.stop().await;
}

#[tokio::test]
async fn each_broker_that_fails_is_warned_of_once() {
    let home = Home::new(1);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let ports = [free_port(), free_port()];
    let addresses = ports.map(|port| format!("127.0.0.1:{port}"));
    let text = text.replace(
        "address = \"127.0.0.1:1\"",
        &format!("addresses = {addresses:?}"),
    );
    std::fs::write(home.config(), text + "[log]\nlevel = \"debug\"\n").unwrap();
    let _agent = home.spawn();
    let failures = |level: &str| {
        let log = home.log();
        let lines = log.lines().filter(|line| line.contains(level));
        lines
            .filter(|line| line.contains("no connection to the broker"))
            .count()
    };
    eventually("it goes round", || failures("DEBUG") >= 8).await;
    assert_eq!(failures("WARN"), 2, "{}", home.log());
}
