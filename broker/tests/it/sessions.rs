//! Sessions: wills, take-overs, names, the end of the broker.

use std::time::Instant;

use certs::Role;

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::Rig;

const STATUS: &str = "tl/v1/press-7/up/status";

async fn observer(rig: &Rig) -> Client {
    let mut observer = Client::connect(rig, "eye", Role::Observer).await;
    observer.subscribe("tl/v1/+/up/#").await;
    observer
}

async fn device_with_will(rig: &Rig, will: &[u8]) -> Raw {
    let mut device = Raw::open(rig, "press-7", Role::Device).await;
    device
        .send(&raw::connect_will("press-7", 0, STATUS, will))
        .await;
    device.expect(0x20, &[0, 0]).await;
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_published_when_the_connection_breaks_and_retained() {
    let rig = Rig::start().await;
    let mut early = observer(&rig).await;
    let device = device_with_will(&rig, b"gone").await;
    drop(device);
    let message = early.message().await;
    assert_eq!(
        (message.topic.as_str(), &message.payload[..]),
        (STATUS, &b"gone"[..])
    );
    assert!(!message.retain);
    let mut late = Client::connect_as(&rig, "eye", Role::Observer, "late", |_| {}).await;
    late.subscribe("tl/v1/+/up/#").await;
    let message = late.message().await;
    assert!(message.retain && message.payload == "gone");
    assert_eq!(rig.metric("tideline_broker_wills_total", &[]), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_published_when_the_client_breaks_a_rule() {
    let rig = Rig::start().await;
    let mut observer = observer(&rig).await;
    let mut device = device_with_will(&rig, b"gone").await;
    device.send(&[0xF0, 0]).await;
    device.expect_closed().await;
    assert_eq!(observer.message().await.payload, "gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_takes_the_will_along() {
    let rig = Rig::start().await;
    let mut observer = observer(&rig).await;
    let mut device = device_with_will(&rig, b"gone").await;
    device.send(&raw::DISCONNECT).await;
    device.expect_closed().await;
    let mut again = Client::connect(&rig, "press-7", Role::Device).await;
    again.publish(STATUS, "last").await;
    assert_eq!(observer.message().await.payload, "last");
    assert_eq!(rig.metric("tideline_broker_wills_total", &[]), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_client_takes_over_after_the_will_of_the_one_before() {
    let rig = Rig::start().await;
    let mut observer = observer(&rig).await;
    for round in 0..10 {
        let mut old = device_with_will(&rig, b"gone").await;
        let mut new = Client::connect(&rig, "press-7", Role::Device).await;
        old.expect_closed().await;
        new.publish_with(STATUS, format!("born {round}"), true)
            .await;
        assert_eq!(observer.message().await.payload, "gone");
        assert_eq!(observer.message().await.payload, format!("born {round}"));
        new.disconnect().await;
    }
    let closed = "reason=\"taken_over\"";
    assert_eq!(
        rig.metric("tideline_broker_connections_closed_total", &[closed]),
        10
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_client_id_of_another_identity_is_another_client() {
    let rig = Rig::start().await;
    let mut device = Client::connect(&rig, "press-7", Role::Device).await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    let _eye = Client::connect_as(&rig, "eye", Role::Observer, "press-7", |_| {}).await;
    let _second = Client::connect_as(&rig, "eye", Role::Observer, "bridge", |_| {}).await;
    device.publish("tl/v1/press-7/up/event", "x").await;
    bridge.publish("tl/v1/press-7/down/ack", "x").await;
    let connections = "tideline_broker_connections";
    assert_eq!(rig.metric(connections, &["role=\"observer\""]), 2);
    assert_eq!(rig.metric(connections, &[]), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_an_id_gets_one() {
    let rig = Rig::start().await;
    let mut eyes = Vec::new();
    for _ in 0..3 {
        let mut eye = Raw::open(&rig, "eye", Role::Observer).await;
        eye.send(&raw::connect(4, "", 0)).await;
        eye.expect(0x20, &[0, 0]).await;
        eyes.push(eye);
    }
    for eye in &mut eyes {
        eye.ping().await;
    }
    // Without a clean session there is nothing to find the session again by.
    let mut eye = Raw::open(&rig, "eye", Role::Observer).await;
    eye.send(&raw::connect_with(4, "", 0, 0, &[])).await;
    eye.expect(0x20, &[0, 2]).await;
    // MQTT 5 is told which.
    let mut eye = Raw::open(&rig, "eye", Role::Observer).await;
    eye.send(&raw::connect(5, "", 0)).await;
    let answer = eye.packet().await.unwrap();
    assert_eq!((answer.header, &answer.body[..2]), (0x20, &[0, 0][..]));
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(body.contains("eye.auto-"), "{body:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unclean_session_is_served_as_a_clean_one() {
    let rig = Rig::start().await;
    for _ in 0..2 {
        let mut device = Raw::open(&rig, "press-7", Role::Device).await;
        device
            .send(&raw::connect_with(4, "press-7", 0, 0, &[]))
            .await;
        device.expect(0x20, &[0, 0]).await;
        device.subscribe(&[("tl/v1/press-7/down/#", 1)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_every_connection_soon() {
    let rig = Rig::start().await;
    let mut device = device_with_will(&rig, b"gone").await;
    let mut bridge = Raw::open(&rig, "bridge", Role::Bridge).await;
    bridge.send(&raw::connect(5, "bridge", 0)).await;
    assert_eq!(bridge.packet().await.unwrap().header, 0x20);
    let mut lobby = Raw::open(&rig, "press-8", Role::Device).await;
    let begin = Instant::now();
    rig.stop().await;
    assert!(begin.elapsed().as_millis() < 1900, "{:?}", begin.elapsed());
    device.expect_closed().await;
    bridge.expect(0xE0, &[0x8B, 0]).await;
    lobby.expect_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_by_role() {
    let rig = Rig::with(|config| {
        config.limits.devices_max = 2;
        config.limits.services_max = 1;
    })
    .await;
    let _one = Client::connect(&rig, "one", Role::Device).await;
    let two = Client::connect(&rig, "two", Role::Device).await;
    let mut three = Raw::open(&rig, "three", Role::Device).await;
    three.send(&raw::connect(4, "three", 0)).await;
    three.expect(0x20, &[0, 3]).await;
    three.expect_closed().await;
    // Devices do not take the bridges' places, and the other way round.
    let _bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    let mut eye = Raw::open(&rig, "eye", Role::Observer).await;
    eye.send(&raw::connect(4, "eye", 0)).await;
    eye.expect(0x20, &[0, 3]).await;
    // A place that is free is given again, and a device may always take over its own.
    two.disconnect().await;
    rig.await_metric("tideline_broker_connections", &["role=\"device\""], 1)
        .await;
    let _three = Client::connect(&rig, "three", Role::Device).await;
    let _again = Client::connect(&rig, "one", Role::Device).await;
    assert_eq!(
        rig.metric("tideline_broker_refused_total", &["reason=\"full\""]),
        2
    );
}
