//! Thousands of packets that no honest client sends. After each round the broker still serves
//! everybody else.

use certs::Role;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::Rig;

/// Packets in all, over as many connections as it takes.
const PACKETS: usize = 6000;

/// Text that a router would stumble over, and text that it would not.
fn hostile_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("tl/v1/press-7/up/telemetry".to_owned()),
        Just("tl/v1/press-7/up/status".to_owned()),
        Just("tl/v1/press-7/down/#".to_owned()),
        Just("tl/v1/press-8/up/telemetry".to_owned()),
        Just("$share/bridges/tl/v1/+/up/#".to_owned()),
        Just("$share//#".to_owned()),
        Just("üöä/☃".to_owned()),
        Just("$SYS/#".to_owned()),
        Just(String::new()),
        "[a-z/+#$]{0,12}",
        ".{0,20}",
        Just("/".repeat(300)),
        Just("x".repeat(70_000)),
    ]
}

fn text_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn hostile_packet() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    let publish =
        (hostile_text(), any::<u16>(), 0..16u8, payload).prop_map(|(topic, id, flags, payload)| {
            let body = [text_bytes(&topic), id.to_be_bytes().to_vec(), payload].concat();
            raw::packet(0x30 | flags, &body)
        });
    let subscribe = (
        prop_oneof![Just(0x82u8), Just(0xA2), Just(0x80)],
        any::<u16>(),
        prop::collection::vec((hostile_text(), any::<u8>()), 0..4),
    )
        .prop_map(|(header, id, filters)| {
            let mut body = id.to_be_bytes().to_vec();
            for (filter, options) in filters {
                body.extend(text_bytes(&filter));
                body.push(options);
            }
            raw::packet(header, &body)
        });
    let connect = (
        any::<u8>(),
        hostile_text(),
        any::<u8>(),
        hostile_text(),
        hostile_text(),
    )
        .prop_map(|(version, id, flags, will, message)| {
            let rest = [text_bytes(&will), text_bytes(&message)].concat();
            raw::connect_with(version, &id, 0, flags, &rest)
        });
    let any_body = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(header, body)| raw::packet(header, &body));
    let rubbish = prop::collection::vec(any::<u8>(), 1..40);
    let length = (any::<u8>(), prop::array::uniform4(any::<u8>()))
        .prop_map(|(header, length)| [&[header][..], &length].concat());
    prop_oneof![4 => publish, 4 => subscribe, 2 => connect, 3 => any_body, 1 => rubbish, 1 => length]
}

/// A packet, perhaps with a few bytes changed or cut off.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (
        hostile_packet(),
        mutations,
        any::<prop::sample::Index>(),
        0..8u8,
    )
        .prop_map(|(mut packet, mutations, cut, whether)| {
            for (at, byte) in mutations {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            if whether == 0 {
                packet.truncate(cut.index(packet.len()) + 1);
            }
            packet
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_stop_the_broker() {
    let rig = Rig::with(|config| {
        config.limits.device_packets_per_second = 100_000.try_into().unwrap();
        config.routers.count = 2;
    })
    .await;
    let mut observer = Client::connect(&rig, "eye", Role::Observer).await;
    observer.subscribe("tl/v1/honest/#").await;
    let mut honest = Client::connect(&rig, "honest", Role::Device).await;
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
    let packets = mutated();
    let attackers = [
        ("press-7", Role::Device),
        ("bridge", Role::Bridge),
        ("spy", Role::Observer),
    ];
    let (mut sent, mut round) = (0, 0u32);
    while sent < PACKETS {
        let (name, role) = attackers[round as usize % attackers.len()];
        round += 1;
        let mut attacker = if round.is_multiple_of(5) {
            // Straight from TLS, without a CONNECT of its own.
            Raw::open(&rig, name, role).await
        } else if round.is_multiple_of(4) {
            let mut attacker = Raw::open(&rig, name, role).await;
            attacker.send(&raw::connect(5, name, 0)).await;
            attacker
        } else {
            Raw::connect(&rig, name, role).await
        };
        // In one piece, so that a whole round is a few system calls.
        let mut bytes = Vec::new();
        for _ in 0..20 {
            bytes.extend(packets.new_tree(&mut runner).unwrap().current());
            sent += 1;
        }
        attacker.send(&bytes).await;
        if round.is_multiple_of(20) {
            honest
                .publish("tl/v1/honest/up/event", round.to_be_bytes())
                .await;
            let message = observer.message().await;
            assert_eq!(message.payload, &round.to_be_bytes()[..]);
        }
    }
    assert!(rig.metric("tideline_broker_refused_total", &[]) > u64::from(round) / 4);
    assert!(rig.health.is_ready());
    // Every router still is there: each device's message arrives.
    observer.subscribe("tl/v1/+/up/event").await;
    for number in 0..8 {
        let name = format!("after-{number}");
        let mut device = Client::connect(&rig, &name, Role::Device).await;
        device
            .publish(&format!("tl/v1/{name}/up/event"), name.clone())
            .await;
        assert_eq!(observer.message().await.payload, name.as_bytes());
    }
}
