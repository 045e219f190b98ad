//! Messages find their way, with the quality and the retained state that MQTT promises.

use std::collections::BTreeSet;

use certs::Role;
use rumqttc::QoS;

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_devices_messages_reach_the_bridge_in_order() {
    let rig = Rig::start().await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.subscribe("tl/v1/+/up/#").await;
    let mut device = Client::connect(&rig, "press-7", Role::Device).await;
    for number in 0..200u32 {
        let payload = number.to_be_bytes().to_vec();
        device.publish("tl/v1/press-7/up/telemetry", payload).await;
    }
    for number in 0..200u32 {
        let message = bridge.message().await;
        assert_eq!(message.payload, &number.to_be_bytes()[..]);
        assert_eq!(message.topic, "tl/v1/press-7/up/telemetry");
        assert_eq!(message.qos, QoS::AtLeastOnce);
        assert!(!message.retain);
    }
    let (name, device) = ("tideline_broker_publishes_total", "role=\"device\"");
    assert_eq!(rig.metric(name, &[device, "direction=\"in\""]), 200);
    let bridge = "role=\"bridge\"";
    assert_eq!(rig.metric(name, &[bridge, "direction=\"out\""]), 200);
    let bytes = "tideline_broker_publish_bytes_total";
    assert_eq!(rig.metric(bytes, &[bridge, "direction=\"out\""]), 800);
    assert!(rig.health.is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bridges_messages_reach_their_device_alone() {
    let rig = Rig::start().await;
    let mut one = Client::connect(&rig, "one", Role::Device).await;
    one.subscribe("tl/v1/one/down/#").await;
    let mut two = Client::connect(&rig, "two", Role::Device).await;
    two.subscribe("tl/v1/two/down/command").await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.publish("tl/v1/one/down/ack", "for one").await;
    bridge.publish("tl/v1/two/down/ack", "not asked for").await;
    bridge.publish("tl/v1/two/down/command", "for two").await;
    assert_eq!(one.message().await.payload, "for one");
    assert_eq!(two.message().await.payload, "for two");
    // Nothing else is on its way: what comes next was sent last.
    for (name, device) in [("one", &mut one), ("two", &mut two)] {
        let topic = format!("tl/v1/{name}/down/command");
        bridge.publish(&topic, "last").await;
        assert_eq!(device.message().await.payload, "last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_has_the_lower_of_both_qualities() {
    let rig = Rig::start().await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    let granted = device
        .subscribe(&[("tl/v1/press-7/down/ack", 0), ("tl/v1/press-7/down/#", 2)])
        .await;
    assert_eq!(granted, [0, 1]);
    let mut bridge = Raw::connect(&rig, "bridge", Role::Bridge).await;
    let topic = "tl/v1/press-7/down/ack";
    bridge.send(&raw::publish(topic, 0, false, b"zero")).await;
    bridge.send(&raw::publish(topic, 9, false, b"one")).await;
    bridge.expect(0x40, &[0, 9]).await;
    let (zero, one) = (
        device.packet().await.unwrap(),
        device.packet().await.unwrap(),
    );
    assert_eq!((zero.header, zero.publish().2), (0x30, &b"zero"[..]));
    assert_eq!((one.header, one.publish().2), (0x32, &b"one"[..]));
    // Two filters match, and it comes once.
    bridge.send(&raw::publish(topic, 0, false, b"last")).await;
    assert_eq!(device.packet().await.unwrap().publish().2, b"last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_is_retained_replaced_and_cleared() {
    let rig = Rig::start().await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    let topic = "tl/v1/press-7/down/config";
    bridge.publish_with(topic, "old", true).await;
    bridge.publish_with(topic, "new", true).await;
    // Commands are never retained, whatever their publisher asks for.
    bridge
        .publish_with("tl/v1/press-7/down/command", "once", true)
        .await;
    {
        let mut device = Client::connect(&rig, "press-7", Role::Device).await;
        device.subscribe("tl/v1/press-7/down/#").await;
        let message = device.message().await;
        assert_eq!((&message.payload[..], message.retain), (&b"new"[..], true));
        bridge.publish_with(topic, "newest", true).await;
        let message = device.message().await;
        assert_eq!(
            (&message.payload[..], message.retain),
            (&b"newest"[..], false)
        );
        bridge.publish("tl/v1/press-7/down/ack", "last").await;
        assert_eq!(device.message().await.payload, "last");
    }
    assert_eq!(rig.metric("tideline_broker_retained_messages", &[]), 1);
    // An empty payload clears only when it is to be retained itself.
    bridge.publish_with(topic, "", false).await;
    assert_eq!(rig.metric("tideline_broker_retained_messages", &[]), 1);
    bridge.publish_with(topic, "", true).await;
    assert_eq!(rig.metric("tideline_broker_retained_messages", &[]), 0);
    let mut device = Client::connect(&rig, "press-7", Role::Device).await;
    device.subscribe("tl/v1/press-7/down/#").await;
    bridge.publish("tl/v1/press-7/down/ack", "last").await;
    assert_eq!(device.message().await.payload, "last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_sees_every_retained_message_of_every_router() {
    const DEVICES: usize = 1000;
    let rig = Rig::start().await;
    let mut bridge = Raw::connect(&rig, "bridge", Role::Bridge).await;
    for number in 0..DEVICES {
        let topic = format!("tl/v1/d{number}/down/config");
        bridge.send(&raw::publish(topic, 0, true, b"x")).await;
    }
    rig.await_metric("tideline_broker_retained_messages", &[], DEVICES as u64)
        .await;
    let mut observer = Client::connect(&rig, "eye", Role::Observer).await;
    observer.subscribe("#").await;
    let mut seen = BTreeSet::new();
    while seen.len() < DEVICES {
        let message = observer.message().await;
        assert!(message.retain && seen.insert(message.topic));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_unsubscribed_comes_no_more() {
    let rig = Rig::start().await;
    let mut observer = Raw::connect(&rig, "eye", Role::Observer).await;
    observer
        .subscribe(&[("tl/v1/a/up/#", 1), ("tl/v1/b/up/#", 1)])
        .await;
    let unsubscribe = [&[0, 7, 0, 12][..], b"tl/v1/a/up/#"].concat();
    observer.send(&raw::packet(0xA2, &unsubscribe)).await;
    observer.expect(0xB0, &[0, 7]).await;
    let mut a = Client::connect(&rig, "a", Role::Device).await;
    a.publish("tl/v1/a/up/event", "a").await;
    let mut b = Client::connect(&rig, "b", Role::Device).await;
    b.publish("tl/v1/b/up/event", "b").await;
    let packet = observer.packet().await.unwrap();
    assert_eq!(packet.publish().0, "tl/v1/b/up/event");
    a.publish("tl/v1/a/up/event", "a").await;
    b.publish("tl/v1/b/up/event", "last").await;
    assert_eq!(observer.packet().await.unwrap().publish().2, b"last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribing_again_queues_no_retained_message_twice() {
    const DEVICES: usize = 50;
    let rig = Rig::with(|config| config.limits.service_in_flight_max = 1).await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    for number in 0..DEVICES {
        let topic = format!("tl/v1/d{number}/down/config");
        bridge.publish_with(&topic, "x", true).await;
    }
    let mut observer = Raw::connect(&rig, "eye", Role::Observer).await;
    const TIMES: usize = 20;
    for _ in 0..TIMES {
        observer.send(&raw::subscribe(&[("#", 1)])).await;
    }
    let (mut answers, mut messages, mut seen) = (0, 0, BTreeSet::new());
    while answers < TIMES || seen.len() < DEVICES {
        let packet = observer.packet().await.unwrap();
        if packet.header == 0x90 {
            answers += 1;
            continue;
        }
        let (topic, id, _) = packet.publish();
        messages += 1;
        seen.insert(topic);
        observer.send(&raw::puback(id)).await;
    }
    while let Some(packet) = observer.soon().await {
        messages += 1;
        observer.send(&raw::puback(packet.publish().1)).await;
    }
    // Each round may send one before the next round begins.
    assert!(messages <= DEVICES + TIMES, "{messages} messages");
}
