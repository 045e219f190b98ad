//! A reading that the bridge will not store, with real processes: kept on its device, told of at both
//! ends, offered again, and given up by a person.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use daemon::{Clock, Health, Lifecycle, SystemClock};
use edge_agent::{Agent, Config, ProbePauses};
use loadtest::scratch::Scratch;
use loadtest::stack::device;
use schema::{ObservedAt, Quality, Reading, Value as Stored};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use testkit::wait::until;

use crate::commands::{Fleet, get};
use testkit::database::postgres_url;

use crate::certificate;

/// Sends lines to an agent, and waits until it has taken each.
fn hand_over(fleet: &Fleet, lines: &[Value]) {
    let mut stream = UnixStream::connect(fleet.stack.socket(0)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in lines {
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["accepted"].is_u64(), "{line}: {answer}");
    }
}

async fn ledger(fleet: &Fleet) -> Value {
    let api = &fleet.api;
    let url = format!("{api}/api/v1/devices/{}/ledger?verify=true", device(0));
    get(&url).await.unwrap_or_default()
}

/// Waits until the ledger counts so many in quarantine and as discarded beside the two that are
/// committed, and has nothing to say against it.
async fn counts(fleet: &Fleet, quarantined: u64, discarded: u64) -> Value {
    let committed = 2;
    until("both ends agree", async || {
        let found = ledger(fleet).await;
        let balance = &found["balance"];
        found["balanced"] == true
            && balance["committed"] == committed
            && balance["quarantined"] == quarantined
            && balance["discarded"] == discarded
            && balance["pending"] == 0
    })
    .await;
    ledger(fleet).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_reading_is_kept_offered_again_and_given_up() {
    let fleet = Fleet::start(1).await;
    // More than a day ahead: no bridge stores that, and no device frees it.
    let now = SystemClock::default().now_ms();
    let ahead = now + 2 * 86_400_000;
    hand_over(
        &fleet,
        &[
            json!({"sensor": "a", "value": 1}),
            json!({"sensor": "a", "value": 2, "observed_at": ahead}),
            json!({"sensor": "a", "value": 3, "observed_at": ahead + 1}),
            json!({"sensor": "a", "value": 4}),
        ],
    );
    let found = counts(&fleet, 2, 0).await;
    let held = found["quarantined"].as_array().unwrap();
    assert!(
        held.iter().all(|held| held["reason"] == "too_new"),
        "{found}"
    );

    // Offered again, it is judged anew: still too far ahead.
    let requeue = json!({"name": "requeue", "arguments": {"reason": "too_new"}});
    let requeued = fleet.ask(0, &requeue).await;
    fleet.state(&requeued, "succeeded").await;
    counts(&fleet, 2, 0).await;

    let discard = json!({"name": "discard", "arguments": {"reason": "too_new"}});
    let discarded = fleet.ask(0, &discard).await;
    fleet.state(&discarded, "succeeded").await;
    let found = counts(&fleet, 0, 2).await;
    let gone = found["discarded"].as_array().unwrap();
    assert!(gone.iter().all(|gone| gone["by"] == "person"), "{found}");
    assert_eq!(found["counted"]["verdict"], "sound", "{found}");
}

/// An operator's trigger refuses what one device takes, and is removed: nobody tells the device.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_refused_is_stored_by_itself_once_its_schema_is_mended() {
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let fleet = Fleet::start_on(1, Some(database.url().to_owned())).await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let refuse = "CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS \
         $f$ BEGIN IF NEW.sensor = 'site' THEN RAISE EXCEPTION 'no site'; END IF; RETURN NEW; END $f$; \
         CREATE TRIGGER refusing BEFORE INSERT ON telemetry_data FOR EACH ROW EXECUTE FUNCTION refusing()";
    connection.execute(AssertSqlSafe(refuse)).await.unwrap();

    let certs = certs::Folder::new(fleet.folder.path().join("certs"));
    let tls = certificate(&certs, "probing");
    let buffer = fleet.folder.path().join("probing.db");
    let port = fleet.stack.broker_addr().port();
    let mut config = Config::new("127.0.0.1", port, tls, buffer).unwrap();
    config.probes = ProbePauses {
        first: Duration::from_secs(1),
        max: Duration::from_secs(4),
    };
    let lifecycle = Lifecycle::new();
    let health = Health::default();
    let mut metrics = Default::default();
    let agent = Agent::start(config, &lifecycle, &health, &mut metrics)
        .await
        .unwrap();
    let now = i64::try_from(SystemClock::default().now_ms()).unwrap();
    let readings = (0..12).map(|n| Reading {
        sensor: "site".parse().unwrap(),
        observed_at: ObservedAt::from_millis(now - n),
        value: Stored::I64(n),
        quality: Quality::Good,
    });
    let readings: Vec<Reading> = readings.collect();
    agent.ingest().append(readings).await.unwrap();

    // That the database takes those of others shows whose fault it is.
    let others = || hand_over(&fleet, &[json!({"sensor": "a", "value": 1})]);
    until("all is in quarantine, or offered again", async || {
        others();
        let status = agent.status();
        status.quarantine.len() == 1 && status.balance.quarantined >= 8
    })
    .await;
    connection
        .execute("DROP TRIGGER refusing ON telemetry_data")
        .await
        .unwrap();
    until("all is stored", async || {
        others();
        agent.balance().committed == 12
    })
    .await;
    let stored: i64 =
        sqlx::query_scalar("SELECT count(*) FROM telemetry_data WHERE sensor = 'site'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(stored, 12);
    let url = format!("{}/api/v1/devices/probing/ledger?verify=true", fleet.api);
    until("the ledger agrees", async || {
        let found = get(&url).await.unwrap_or_default();
        found["balanced"] == true && found["balance"]["quarantined"] == 0
    })
    .await;
    lifecycle.finish(Duration::from_secs(5)).await.unwrap();
    connection.close().await.unwrap();
    drop(fleet);
    database.drop_it().await.unwrap();
}
