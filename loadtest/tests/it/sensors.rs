//! What sensors are, through real processes: from the line of a producer and the settings of an agent into SQL, once per
//! change, whatever is killed in between.

use std::fs;
use std::time::{Duration, Instant};

use loadtest::scratch::Scratch;
use loadtest::stack::device;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row as _};
use testkit::database::postgres_url;
use testkit::wait::{PATIENCE, until};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::commands::{Fleet, get};

/// Hands lines over, each of which must be accepted.
async fn hand_over(fleet: &Fleet, lines: &[&str]) {
    let socket = fleet.stack.socket(0);
    until("the socket is there", async || {
        UnixStream::connect(&socket).await.is_ok()
    })
    .await;
    let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
    for line in lines {
        let line = format!("{line}\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        assert!(answer.contains("accepted"), "{line}: {answer}");
    }
}

/// Asks until an answer is as it should be.
async fn ask_until<T: std::fmt::Debug>(
    what: &str,
    connection: &mut PgConnection,
    ask: impl AsyncFn(&mut PgConnection) -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = ask(connection).await;
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: {found:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The one sensor, as SQL has it.
#[derive(Debug, Clone, PartialEq)]
struct Declared {
    unit: Option<String>,
    value_type: Option<String>,
    version: i64,
}

async fn declared(connection: &mut PgConnection) -> Option<Declared> {
    let sql = "SELECT unit, value_type, hlc FROM sensors WHERE sensor = 'oven/1'";
    let found = sqlx::query(sql).fetch_all(connection).await.unwrap();
    assert!(found.len() <= 1, "one row a sensor");
    let row = found.first()?;
    Some(Declared {
        unit: row.get(0),
        value_type: row.get(1),
        version: row.get(2),
    })
}

/// Waits until it has this unit; its version then.
async fn has_unit(connection: &mut PgConnection, unit: &str) -> i64 {
    let is_it = |found: &Option<Declared>| {
        let found = found.as_ref();
        found.is_some_and(|found| found.unit.as_deref() == Some(unit))
    };
    let found = ask_until("it has its unit", connection, declared, is_it).await;
    let found = found.unwrap();
    assert_eq!(found.value_type.as_deref(), Some("float"));
    found.version
}

/// Readings as they are stored.
async fn readings(connection: &mut PgConnection) -> Vec<(Option<f64>, i64)> {
    let sql =
        "SELECT value_f64, hlc FROM telemetry_data WHERE sensor = 'oven/1' ORDER BY observed_at";
    let found = sqlx::query(sql).fetch_all(connection).await.unwrap();
    found.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn has_readings(connection: &mut PgConnection, count: usize) -> Vec<(Option<f64>, i64)> {
    let are_they = |found: &Vec<_>| found.len() == count;
    ask_until("its readings are there", connection, readings, are_they).await
}

/// Has the settings say a unit from now on, beside what they said at first.
fn settings_say(fleet: &Fleet, plain: &str, unit: &str) {
    let file = fleet.folder.path().join("agent0.toml");
    let rule = format!("{plain}\n[[sensor]]\nsensor = \"oven/*\"\nunit = \"{unit}\"\n");
    fs::write(file, rule).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sensor_is_reaches_sql_once_per_change_whatever_is_killed() {
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let mut fleet = Fleet::start_on(1, Some(database.url().to_owned())).await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let plain = fs::read_to_string(fleet.folder.path().join("agent0.toml")).unwrap();
    let lines = [
        r#"{"sensor":"oven/1","value":20,"type":"float","unit":"Cel"}"#,
        r#"{"sensor":"oven/1","value":20.5}"#,
        r#"{"sensor":"oven/1","value":21}"#,
    ];
    hand_over(&fleet, &lines).await;
    let first = has_unit(&mut connection, "Cel").await;
    let stored = has_readings(&mut connection, 3).await;
    // One series of floats, whatever its producer wrote.
    let values: Vec<_> = stored.iter().map(|(value, _)| *value).collect();
    assert_eq!(values, [Some(20.0), Some(20.5), Some(21.0)]);

    // A restart says nothing again.
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.agents[0].start().unwrap();
    hand_over(&fleet, &[r#"{"sensor":"oven/1","value":22}"#]).await;
    let now = has_readings(&mut connection, 4).await;
    assert_eq!(now[3].0, Some(22.0), "it is still held to its type");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(has_unit(&mut connection, "Cel").await, first);

    // A change of the settings is one update, and waits for a bridge.
    fleet.stack.bridges[0].kill().unwrap();
    settings_say(&fleet, &plain, "K");
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.agents[0].start().unwrap();
    sleep(Duration::from_millis(500)).await;
    fleet.stack.bridges[0].start().unwrap();
    let mut last = has_unit(&mut connection, "K").await;
    assert!(last > first);

    // The bridge is killed at some moment between the agent's start and its answer.
    for (round, unit) in ["a", "b", "c", "d"].into_iter().enumerate() {
        settings_say(&fleet, &plain, unit);
        fleet.stack.agents[0].kill().unwrap();
        fleet.stack.agents[0].start().unwrap();
        sleep(Duration::from_millis(150 * round as u64)).await;
        fleet.stack.bridges[0].kill().unwrap();
        fleet.stack.bridges[0].start().unwrap();
        let now = has_unit(&mut connection, unit).await;
        assert!(now > last, "{unit}");
        last = now;
    }
    let api = format!("{}/api/v1/devices/{}/sensors", fleet.api, device(0));
    until("the API shows it", async || {
        let found = get(&api).await.unwrap_or_default();
        let sensors = found["sensors"].as_array().cloned().unwrap_or_default();
        let is_it = |of: &Value| of["sensor"] == "oven/1" && of["unit"] == "d";
        sensors.iter().any(is_it)
    })
    .await;
    // What was read before is as it was.
    assert_eq!(has_readings(&mut connection, 4).await, now);
    connection.close().await.unwrap();
    drop(fleet);
    database.drop_it().await.unwrap();
}
