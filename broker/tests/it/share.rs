//! Shared subscriptions: each message to one member, all of them covered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use certs::Role;
use tokio::time::timeout;

use crate::client::Client;
use crate::raw::{self, Raw};
use testkit::wait::PATIENCE;

use crate::rig::Rig;

const DEVICES: usize = 24;
const SHARED: &str = "$share/bridges/tl/v1/+/up/#";

async fn devices(rig: &Rig) -> Vec<Raw> {
    let mut devices = Vec::new();
    for number in 0..DEVICES {
        devices.push(Raw::connect(rig, &format!("d{number}"), Role::Device).await);
    }
    devices
}

/// One message from each device; returns when the broker has them.
async fn publish(devices: &mut [Raw], round: u8) {
    for (number, device) in devices.iter_mut().enumerate() {
        let topic = format!("tl/v1/d{number}/up/telemetry");
        device.send(&raw::publish(topic, 1, false, &[round])).await;
    }
    for device in devices {
        device.expect(0x40, &[0, 1]).await;
    }
}

/// What each member saw of a round: how often each device's message.
type Seen = Vec<BTreeMap<String, usize>>;

/// Takes what comes for the members until every device's message of this round was seen, and
/// nothing more comes.
async fn collect(members: &mut [&mut Client], round: u8) -> Seen {
    let mut seen = vec![BTreeMap::new(); members.len()];
    let all = async {
        loop {
            let topics: BTreeSet<&String> = seen.iter().flat_map(BTreeMap::keys).collect();
            let covered = topics.len() == DEVICES;
            let mut quiet = true;
            for (member, seen) in members.iter_mut().zip(&mut seen) {
                let wait = Duration::from_millis(if covered { 100 } else { 5 });
                if let Ok(message) = timeout(wait, member.message()).await {
                    quiet = false;
                    if message.payload[..] == [round] {
                        *seen.entry(message.topic).or_default() += 1;
                    }
                }
            }
            if covered && quiet {
                return;
            }
        }
    };
    let covered = timeout(PATIENCE, all).await;
    assert!(
        covered.is_ok(),
        "round {round}: not all are covered: {seen:?}"
    );
    seen
}

fn is_disjoint(seen: &Seen) -> bool {
    seen.iter().flat_map(BTreeMap::values).sum::<usize>() == DEVICES
}

async fn join(rig: &Rig, client_id: &str) -> Client {
    let mut bridge = Client::connect_as(rig, "bridge", Role::Bridge, client_id, |_| {}).await;
    bridge.subscribe(SHARED).await;
    bridge
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_and_cover_for_each_other() {
    let rig = Rig::start().await;
    let mut devices = devices(&rig).await;
    let mut one = join(&rig, "bridge-1").await;
    publish(&mut devices, 0).await;
    let seen = collect(&mut [&mut one], 0).await;
    assert!(is_disjoint(&seen), "{seen:?}");

    let mut two = join(&rig, "bridge-2").await;
    // While shards change hands a message may come to both; then each goes to one member, and
    // both have some.
    let mut round = 1;
    loop {
        publish(&mut devices, round).await;
        let seen = collect(&mut [&mut one, &mut two], round).await;
        let even = seen.iter().all(|member| member.len() >= DEVICES / 8);
        if is_disjoint(&seen) && even {
            break;
        }
        round += 1;
        assert!(round < 50, "the group does not settle: {seen:?}");
    }

    // A device stays with its bridge.
    publish(&mut devices, 100).await;
    let first = collect(&mut [&mut one, &mut two], 100).await;
    publish(&mut devices, 101).await;
    assert_eq!(collect(&mut [&mut one, &mut two], 101).await, first);
    assert!(is_disjoint(&first), "{first:?}");

    // One leaves, without a word; what it had in hand is sent again by the devices.
    two.vanish();
    rig.await_metric("tideline_broker_connections", &["role=\"bridge\""], 1)
        .await;
    let covered = async {
        for round in 102.. {
            publish(&mut devices, round).await;
            let mut seen = 0;
            while let Ok(message) = timeout(Duration::from_millis(200), one.message()).await {
                seen += usize::from(message.payload[..] == [round]);
            }
            if seen == DEVICES {
                return;
            }
        }
    };
    timeout(PATIENCE, covered)
        .await
        .expect("the rest is not covered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_a_member_joins() {
    let rig = Rig::start().await;
    let mut devices = devices(&rig).await;
    let mut one = join(&rig, "bridge-1").await;
    let publishing = tokio::spawn(async move {
        for round in 0..40 {
            publish(&mut devices, round).await;
        }
    });
    let mut members = Vec::new();
    for number in 2..5 {
        members.push(join(&rig, &format!("bridge-{number}")).await);
    }
    publishing.await.unwrap();
    let mut seen = BTreeMap::new();
    let mut all: Vec<&mut Client> = members.iter_mut().chain([&mut one]).collect();
    let listening = async {
        while seen.len() < 40 * DEVICES {
            for member in &mut all {
                while let Some(message) = member.message_soon().await {
                    let round = message.payload[0];
                    *seen.entry((message.topic, round)).or_insert(0) += 1;
                }
            }
        }
    };
    let heard = timeout(PATIENCE, listening).await;
    assert!(heard.is_ok(), "{} of {}", seen.len(), 40 * DEVICES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_plain_subscribers_each_get_everything() {
    let rig = Rig::start().await;
    let mut devices = devices(&rig).await;
    let mut bridge = join(&rig, "bridge-1").await;
    let mut other = Client::connect_as(&rig, "bridge", Role::Bridge, "bridge-2", |_| {}).await;
    other.subscribe("$share/others/tl/v1/+/up/#").await;
    let mut plain = Client::connect_as(&rig, "bridge", Role::Bridge, "bridge-3", |_| {}).await;
    plain.subscribe("tl/v1/+/up/#").await;
    // An observer in a group of the same name takes nothing away from the bridges.
    let mut eye = Client::connect(&rig, "eye", Role::Observer).await;
    eye.subscribe(SHARED).await;
    publish(&mut devices, 7).await;
    for member in [&mut bridge, &mut other, &mut plain, &mut eye] {
        let seen = collect(&mut [member], 7).await;
        assert!(is_disjoint(&seen), "{seen:?}");
    }
}
