//! A disturbed system of real processes.

use std::time::Duration;

use loadtest::chaos::disturb;
use loadtest::scratch::Scratch;
use loadtest::stack::Plan;

use testkit::database::postgres_url;

/// Kills, pauses, cut links and files that may not grow; two bridges on one PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_reading_survives_two_minutes_of_faults() {
    let folder = tempfile::tempdir().unwrap();
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let plan = Plan {
        agents: 20,
        bridges: 2,
        database: Some(database.url().to_owned()),
    };
    let report = disturb(folder.path(), &plan, 7, Duration::from_secs(120))
        .await
        .unwrap();
    assert!(report.accepted > 10_000, "{report:?}");
    assert!(report.is_good(), "{report:?}");
    assert!(report.outcomes.commands["succeeded"] > 5, "{report:?}");
    database.drop_it().await.unwrap();
}

/// As above, with the file store and its one bridge.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_reading_survives_with_a_file_for_a_database() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        agents: 3,
        bridges: 1,
        database: None,
    };
    let report = disturb(folder.path(), &plan, 7, Duration::from_secs(15))
        .await
        .unwrap();
    assert!(report.accepted > 0, "{report:?}");
    assert!(report.is_good(), "{report:?}");
    assert!(report.outcomes.commands["succeeded"] > 5, "{report:?}");
}
