//! P6 beside telemetry: what one device says, with a certificate of its own, is in nobody else's way.

use certs::Folder;
use loadtest::scratch::Scratch;
use schema::message::{
    CommandId, CommandProgress, CommandState, ConfigEntry, Event, ReportedConfig, Status,
};
use schema::{Epoch, Hlc, envelope};
use serde_json::json;

use testkit::wait::until;

use crate::commands::{Fleet, get};
use testkit::database::postgres_url;

use crate::{certificate, mosquitto, with_input};

/// Messages that can be read, and that PostgreSQL cannot hold.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let birth = Status::Online {
        session: 1,
        epoch: Epoch::from_random(7),
        agent_version: "1.0\0".to_owned(),
    };
    // Random enough that no compression makes it fit a key of an index.
    let key: String = (0..4_000u32)
        .map(|n| char::from(b'!' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 90))
        .collect();
    let config = Event::Config(ReportedConfig {
        entries: vec![ConfigEntry {
            key,
            value: "1".to_owned(),
            hlc: Hlc::new(1, 0),
        }],
        failed: Vec::new(),
    });
    let word = Event::Command(CommandProgress {
        id: CommandId::from_bits(1),
        state: CommandState::Failed,
        percent: 0,
        output: "\0".to_owned(),
    });
    vec![
        ("status", envelope::encode(&birth).unwrap()),
        ("event", envelope::encode(&config).unwrap()),
        ("event", envelope::encode(&word).unwrap()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_database_can_hold_is_set_aside_and_others_are_served() {
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let fleet = Fleet::start_on(1, Some(database.url().to_owned())).await;
    let files = certificate(&Folder::new(fleet.folder.path().join("certs")), "rogue");
    let port = fleet.stack.broker_addr().port();
    for (channel, payload) in messages() {
        let mut publish = mosquitto("mosquitto_pub", port, &files);
        let publish = publish.args(["-i", "rogue", "-q", "1", "-s", "-r"]);
        let publish = publish.args(["-t", &format!("tl/v1/rogue/up/{channel}")]);
        assert!(with_input(publish, &payload).status.success());
    }
    let letters = format!("{}/api/v1/dead-letters?device=rogue", fleet.api);
    until("all are set aside", async || {
        let found = get(&letters).await.unwrap_or_default();
        found["dead_letters"]
            .as_array()
            .is_some_and(|all| all.len() == 3)
    })
    .await;
    let pinged = fleet.ask(0, &json!({"name": "ping"})).await;
    fleet.state(&pinged, "succeeded").await;
    drop(fleet);
    database.drop_it().await.unwrap();
}
