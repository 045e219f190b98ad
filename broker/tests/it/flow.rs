//! Backpressure: acknowledgements in any order, bounded windows, slow and silent clients.

use std::time::Duration;

use certs::Role;

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::Rig;

const UP: &str = "tl/v1/press-7/up/telemetry";

/// Publishes numbered messages and waits until the broker has them all.
async fn publish(device: &mut Raw, numbers: std::ops::Range<u16>, payload: &[u8]) {
    for number in numbers.clone() {
        device
            .send(&raw::publish(UP, number + 1, false, payload))
            .await;
    }
    for number in numbers {
        device.expect(0x40, &(number + 1).to_be_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_come_in_any_order() {
    let rig = Rig::with(|config| config.limits.service_in_flight_max = 10).await;
    let mut bridge = Raw::connect(&rig, "bridge", Role::Bridge).await;
    bridge.subscribe(&[("tl/v1/+/up/#", 1)]).await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    publish(&mut device, 0..25, b"x").await;
    let mut received = 0;
    for round in [10, 10, 5] {
        let mut ids = Vec::new();
        for _ in 0..round {
            ids.push(bridge.packet().await.unwrap().publish().1);
        }
        received += ids.len();
        // The window is full: nothing but the answer to this comes before acknowledgements do.
        bridge.ping().await;
        for id in ids.into_iter().rev() {
            bridge.send(&raw::puback(id)).await;
        }
        // One that was never sent does no harm.
        bridge.send(&raw::puback(4711)).await;
    }
    assert_eq!(received, 25);
    bridge.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_acknowledges_holds_up_nobody() {
    let rig = Rig::with(|config| config.limits.service_in_flight_max = 10).await;
    let mut stuck = Raw::connect(&rig, "bridge-a", Role::Bridge).await;
    stuck.subscribe(&[("tl/v1/+/up/#", 1)]).await;
    let mut bridge = Client::connect(&rig, "bridge-b", Role::Bridge).await;
    bridge.subscribe("tl/v1/+/up/#").await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    for round in 0..10 {
        publish(&mut device, round * 100..(round + 1) * 100, b"x").await;
    }
    for _ in 0..1000 {
        bridge.message().await;
    }
    for _ in 0..10 {
        assert_eq!(stuck.packet().await.unwrap().header, 0x32);
    }
    stuck.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_read_is_closed_and_the_rest_is_served() {
    let rig = Rig::with(|config| config.timeouts.stall = Duration::from_millis(500)).await;
    let mut slow = Raw::connect(&rig, "eye", Role::Observer).await;
    slow.subscribe(&[("#", 0)]).await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.subscribe("tl/v1/+/up/#").await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    let payload = vec![7; 100_000];
    let mut sent = 0;
    let closed = "reason=\"slow_consumer\"";
    while rig.metric("tideline_broker_connections_closed_total", &[closed]) == 0 {
        publish(&mut device, sent..sent + 1, &payload).await;
        sent += 1;
        let message = bridge.message().await;
        assert_eq!(message.payload.len(), payload.len());
    }
    // More than sockets, buffers and the backlog hold, and the broker did not keep it.
    assert!(sent > 20, "closed after {sent} messages");
    device.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_takes_nothing_is_closed() {
    let rig = Rig::start().await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    device.subscribe(&[("tl/v1/press-7/down/#", 1)]).await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    // It acknowledges nothing: its window fills, then its mailbox.
    for _ in 0..200 {
        bridge.publish("tl/v1/press-7/down/ack", "x").await;
    }
    let closed = "reason=\"slow_consumer\"";
    rig.await_metric("tideline_broker_connections_closed_total", &[closed], 1)
        .await;
    while device.packet().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_slowed_down_and_loses_nothing() {
    let rig = Rig::with(|config| {
        config.limits.device_packets_per_second = 100.try_into().unwrap();
    })
    .await;
    let mut bridge = Client::connect(&rig, "bridge", Role::Bridge).await;
    bridge.subscribe("tl/v1/+/up/#").await;
    let mut device = Raw::connect(&rig, "press-7", Role::Device).await;
    let begin = std::time::Instant::now();
    publish(&mut device, 0..200, b"x").await;
    // A burst of a hundred, then a hundred a second.
    assert!(
        begin.elapsed() > Duration::from_millis(800),
        "{:?}",
        begin.elapsed()
    );
    for _ in 0..200 {
        bridge.message().await;
    }
    assert!(rig.metric("tideline_broker_throttled_total", &[]) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_closed_unless_it_asked_for_no_keep_alive() {
    let rig = Rig::start().await;
    let mut patient = Raw::connect(&rig, "press-7", Role::Device).await;
    let mut silent = Raw::open(&rig, "press-8", Role::Device).await;
    silent.send(&raw::connect(4, "press-8", 1)).await;
    silent.expect(0x20, &[0, 0]).await;
    let begin = std::time::Instant::now();
    silent.expect_closed().await;
    let waited = begin.elapsed();
    assert!(
        waited >= Duration::from_millis(1400),
        "closed after {waited:?}"
    );
    assert!(waited < Duration::from_secs(6), "closed after {waited:?}");
    let closed = "reason=\"keep_alive\"";
    assert_eq!(
        rig.metric("tideline_broker_connections_closed_total", &[closed]),
        1
    );
    patient.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_end_is_ended() {
    let rig = Rig::with(|config| config.timeouts.handshake = Duration::from_millis(300)).await;
    let mut dumb = Raw::open(&rig, "press-7", Role::Device).await;
    dumb.expect_closed().await;
    let tcp = tokio::net::TcpStream::connect(rig.address).await.unwrap();
    let name = "tideline_broker_handshake_failures_total";
    rig.await_metric(name, &["reason=\"timeout\""], 2).await;
    drop(tcp);
}
