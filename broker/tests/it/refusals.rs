//! What is refused, how, and that the rest goes on.

use certs::Role;
use schema::limits::PAYLOAD_BYTES_MAX;

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::Rig;

/// Sends a packet that ends the connection, counted under `reason`.
async fn check_closes(rig: &Rig, name: &str, role: Role, packet: &[u8], reason: &str) {
    let label = format!("reason=\"{reason}\"");
    let before = rig.metric("tideline_broker_refused_total", &[&label]);
    let mut client = Raw::connect(rig, name, role).await;
    client.send(packet).await;
    client.expect_closed().await;
    let after = rig.metric("tideline_broker_refused_total", &[&label]);
    assert_eq!(after, before + 1, "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbidden_message_ends_the_connection_and_reaches_nobody() {
    let rig = Rig::start().await;
    let mut observer = Client::connect(&rig, "eye", Role::Observer).await;
    observer.subscribe("#").await;
    let publish = |topic: &str| raw::publish(topic, 1, true, b"forged");
    for (name, role, topic, reason) in [
        (
            "press-7",
            Role::Device,
            "tl/v1/press-8/up/telemetry",
            "publish",
        ),
        (
            "press-7",
            Role::Device,
            "tl/v1/press-7/down/command",
            "publish",
        ),
        ("press-7", Role::Device, "tl/v1/press-7/up/other", "topic"),
        ("press-7", Role::Device, "tl/v1/+/up/telemetry", "topic"),
        ("press-7", Role::Device, "$SYS/broker", "topic"),
        ("press-7", Role::Device, "", "topic"),
        ("press-7", Role::Device, "ü/v1/press-7/up/event", "topic"),
        (
            "bridge",
            Role::Bridge,
            "tl/v1/press-7/up/telemetry",
            "publish",
        ),
        ("bridge", Role::Bridge, "ü", "topic"),
        (
            "eye-2",
            Role::Observer,
            "tl/v1/press-7/down/command",
            "publish",
        ),
        ("eye-2", Role::Observer, "tl/v1/eye-2/up/event", "publish"),
    ] {
        check_closes(&rig, name, role, &publish(topic), reason).await;
    }
    // Nothing of it is on its way: what comes next was sent last, from each side.
    let mut device = Client::connect(&rig, "press-7", Role::Device).await;
    device.publish("tl/v1/press-7/up/event", "last").await;
    assert_eq!(observer.message().await.payload, "last");
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.publish("tl/v1/press-7/down/ack", "last").await;
    assert_eq!(observer.message().await.payload, "last");
    assert_eq!(rig.metric("tideline_broker_retained_messages", &[]), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbidden_filter_is_refused_and_the_connection_goes_on() {
    let rig = Rig::start().await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    let codes = device
        .subscribe(&[
            ("tl/v1/press-8/down/#", 1),
            ("tl/v1/+/down/#", 1),
            ("#", 1),
            ("tl/v1/press-7/up/#", 1),
            ("$share/g/tl/v1/press-7/down/#", 1),
            ("$SYS/#", 0),
            ("tl/v1/press-7/down/#", 1),
            ("a#", 1),
            ("ü/#", 1),
        ])
        .await;
    assert_eq!(codes, [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0x80, 0x80]);
    device.ping().await;
    let mut bridge = Raw::connect(&rig, "bridge", Role::Bridge).await;
    let codes = bridge
        .subscribe(&[("tl/v1/+/down/#", 1), ("#", 1), ("tl/v1/+/up/#", 1)])
        .await;
    assert_eq!(codes, [0x80, 0x80, 1]);
    bridge
        .send(&raw::publish(
            "tl/v1/press-8/down/ack",
            0,
            false,
            b"other's",
        ))
        .await;
    bridge
        .send(&raw::publish("tl/v1/press-7/down/ack", 0, false, b"own"))
        .await;
    assert_eq!(device.packet().await.unwrap().publish().2, b"own");
    assert_eq!(rig.metric("tideline_broker_refused_total", &[]), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_bounded_and_refused_before_it_is_read() {
    let rig = Rig::start().await;
    let topic = "tl/v1/press-7/up/telemetry";
    let mut observer = Raw::connect(&rig, "eye", Role::Observer).await;
    observer.subscribe(&[("#", 0)]).await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    for bytes in [PAYLOAD_BYTES_MAX - 1, PAYLOAD_BYTES_MAX] {
        device
            .send(&raw::publish(topic, 0, false, &vec![7; bytes]))
            .await;
        let packet = observer.packet().await.unwrap();
        assert_eq!(packet.publish().2.len(), bytes);
    }
    let over = vec![7; PAYLOAD_BYTES_MAX + 1];
    device.send(&raw::publish(topic, 0, false, &over)).await;
    device.expect_closed().await;
    // A length alone is enough: nothing of the body comes.
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    device.send(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await;
    device.expect_closed().await;
    assert_eq!(
        rig.metric("tideline_broker_refused_total", &["reason=\"oversize\""]),
        2
    );
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    device.send(&raw::publish(topic, 0, false, b"last")).await;
    assert_eq!(observer.packet().await.unwrap().publish().2, b"last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_out_of_place_end_the_connection() {
    let rig = Rig::start().await;
    let two = [0x34, 4, 0, 0, 0, 1];
    for (packet, reason) in [
        (&raw::connect(4, "press-7", 0)[..], "unexpected"),
        (&[0x20, 2, 0, 0], "unexpected"),
        (&[0x90, 3, 0, 1, 0], "unexpected"),
        (&[0xB0, 2, 0, 1], "unexpected"),
        (&[0x62, 2, 0, 1], "qos2"),
        (&[0x50, 2, 0, 1], "qos2"),
        (&two, "qos2"),
        (&[0x32, 4, 0, 0, 0, 0], "malformed"),
        (&[0x82, 2, 0, 1], "malformed"),
        (&[0x80, 2, 0, 1], "malformed"),
        (&[0x40, 2, 0, 0], "malformed"),
        (&[0x30, 0x80, 0x80, 0x80, 0x80, 1], "malformed"),
        (&[0xF0, 0], "auth_method"),
    ] {
        check_closes(&rig, "press-7", Role::Device, packet, reason).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_client_is_told_why() {
    let rig = Rig::start().await;
    let will = "tl/v1/press-8/up/status";
    for (name, role, packet, answer) in [
        (
            "press-7",
            Role::Device,
            raw::connect(4, "press-8", 0),
            &[0, 5][..],
        ),
        ("press-7", Role::Device, raw::connect(4, "a/b", 0), &[0, 2]),
        (
            "press-7",
            Role::Device,
            raw::connect(3, "press-7", 0),
            &[0, 1],
        ),
        (
            "press-7",
            Role::Device,
            raw::connect(6, "press-7", 0),
            &[0, 1],
        ),
        (
            "press-7",
            Role::Device,
            raw::connect_will("press-7", 0, will, b""),
            &[0, 5],
        ),
        (
            "press-7",
            Role::Device,
            raw::connect(5, "press-8", 0),
            &[0, 0x87, 0],
        ),
        (
            "press-7",
            Role::Device,
            raw::connect(5, "$", 0),
            &[0, 0x85, 0],
        ),
        (
            "bridge",
            Role::Bridge,
            raw::connect(4, "bridges", 0),
            &[0, 5],
        ),
        (
            "bridge",
            Role::Bridge,
            raw::connect(4, "bridge-#", 0),
            &[0, 2],
        ),
        (
            "eye",
            Role::Observer,
            raw::connect_will("eye", 0, will, b""),
            &[0, 5],
        ),
        ("eye", Role::Observer, vec![0xC0, 0], &[0, 5]),
    ] {
        let mut client = Raw::open(&rig, name, role).await;
        client.send(&packet).await;
        client.expect(0x20, answer).await;
        client.expect_closed().await;
    }
    assert_eq!(
        rig.metric("tideline_broker_connections_opened_total", &[]),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt_5_is_told_why_it_is_disconnected() {
    let rig = Rig::start().await;
    let mut device = Raw::open(&rig, "press-7", Role::Device).await;
    device.send(&raw::connect(5, "press-7", 0)).await;
    assert_eq!(device.packet().await.unwrap().header, 0x20);
    // Packet id, no properties, one filter of another device.
    let filter = b"tl/v1/press-8/down/#";
    let subscribe = [&[0, 1, 0, 0, filter.len() as u8][..], filter, &[1]].concat();
    device.send(&raw::packet(0x82, &subscribe)).await;
    device.expect(0x90, &[0, 1, 0, 0x87]).await;
    let topic = b"tl/v1/press-8/up/event";
    let publish = [&[0, topic.len() as u8][..], topic, &[0, 7, 0]].concat();
    device.send(&raw::packet(0x32, &publish)).await;
    device.expect(0xE0, &[0x87, 0]).await;
    device.expect_closed().await;
}
