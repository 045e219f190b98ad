//! Databases that refuse, for reasons of their own, what they took a minute ago: nothing is settled, nobody is stopped by
//! another's reading, and it flows again when it is mended. And databases that end: readiness follows them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemon::{Clock as _, SystemClock};
use reqwest::{Method, StatusCode};
use schema::Value as Reading;
use serde_json::{Value, json};
use store::StoreError;
use store::location::Location;

use testkit::database::*;
use testkit::port::free_port;
use testkit::process::{Guard, Signal};
use testkit::readings::*;
use testkit::wait::{blocking, until, until_ok};

use crate::api::Served;

/// A device that hands in readings over HTTP, one batch after the other, each until it is settled.
struct Sender {
    done: tokio::task::JoinHandle<BTreeSet<u64>>,
    settled: Arc<AtomicU64>,
}

/// What one sender's batches hold.
const BATCH: u64 = 10;

impl Sender {
    /// Sends until told to stop; returns the sequences that were rejected. The value of a reading is its sequence.
    fn start(served: &Arc<Served>, device: String, stop: &Arc<AtomicBool>) -> Self {
        let (served, stop) = (Arc::clone(served), Arc::clone(stop));
        let settled = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&settled);
        let done = tokio::spawn(async move {
            let mut rejected = BTreeSet::new();
            let base = SystemClock::default().now_micros() - 3_600_000_000;
            let path = format!("/api/v1/devices/{device}/readings");
            let mut first = 1;
            while !stop.load(Ordering::Relaxed) {
                let readings: Vec<Value> = (first..first + BATCH)
                    .map(|seq| json!({"sensor": "s", "observed_at": base + seq as i64 * 1000, "value": seq as f64}))
                    .collect();
                let body =
                    json!({"epoch": "00c0ffee0001", "first_seq": first, "readings": readings});
                let mut open: BTreeSet<u64> = (first..first + BATCH).collect();
                while !open.is_empty() && !stop.load(Ordering::Relaxed) {
                    let answer = served
                        .request(Method::POST, &path)
                        .json(&body)
                        .send()
                        .await
                        .unwrap();
                    let status = answer.status();
                    let answer: Value = answer.json().await.unwrap_or_default();
                    if status == StatusCode::OK {
                        let committed = answer["committed"].as_array().unwrap().iter();
                        for range in committed {
                            open.retain(|seq| !span(range).contains(seq));
                        }
                        for rejection in answer["rejected"].as_array().unwrap() {
                            let seq = rejection["seq"].as_u64().unwrap();
                            assert_eq!(rejection["reason"], "unstorable");
                            rejected.insert(seq);
                            open.remove(&seq);
                        }
                    } else {
                        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
                    }
                    tokio::time::sleep(Duration::from_millis(if open.is_empty() {
                        20
                    } else {
                        100
                    }))
                    .await;
                }
                if open.is_empty() {
                    counted.fetch_add(BATCH, Ordering::Relaxed);
                }
                first += BATCH;
            }
            rejected
        });
        Self { done, settled }
    }
}

/// Devices that put no row into the table: one hands in again what is known, one what is from the future.
fn bystanders(served: &Arc<Served>, stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u32>> {
    let now = SystemClock::default().now_micros();
    let start = |device: &'static str, observed_at: i64| {
        let (served, stop) = (Arc::clone(served), Arc::clone(stop));
        tokio::spawn(async move {
            let path = format!("/api/v1/devices/{device}/readings");
            let reading = json!({"sensor": "s", "observed_at": observed_at, "value": 1});
            let body = json!({"epoch": "00c0ffee0001", "first_seq": 1, "readings": [reading]});
            let mut settled = 0;
            while !stop.load(Ordering::Relaxed) {
                let asked = served.request(Method::POST, &path).json(&body);
                settled += u32::from(asked.send().await.unwrap().status() == StatusCode::OK);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            settled
        })
    };
    vec![
        start("knows", now - 3_600_000_000),
        start("ahead", now + 30 * 86_400_000_000),
    ]
}

fn span(range: &Value) -> std::ops::RangeInclusive<u64> {
    range["first"].as_u64().unwrap()..=range["last"].as_u64().unwrap()
}

/// Where a part of the bridge stands, and why.
async fn database_state(served: &Served) -> (String, String) {
    let answer = served.bare(Method::GET, "/readyz").send().await.unwrap();
    let states: Value = answer.json().await.unwrap();
    let state = &states["bridge-database"];
    let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

/// Waits until what the bridge says of its database is so.
async fn until_database(served: &Served, what: &str, is: fn(&str, &str) -> bool) {
    until_ok(what, async || {
        let (state, reason) = database_state(served).await;
        match is(&state, &reason) {
            true => Ok(()),
            false => Err((state, reason)),
        }
    })
    .await;
}

/// Waits until all senders have had so many readings settled.
async fn until_settled(senders: &[Sender], what: &str, least: &[u64]) {
    until_ok(&format!("{what}: {least:?} are settled"), async || {
        let counts = counts(senders);
        match counts.iter().zip(least).all(|(now, least)| now >= least) {
            true => Ok(()),
            false => Err(counts),
        }
    })
    .await;
}

fn counts(senders: &[Sender]) -> Vec<u64> {
    let settled = |sender: &Sender| sender.settled.load(Ordering::Relaxed);
    senders.iter().map(settled).collect()
}

fn more(senders: &[Sender], than: u64) -> Vec<u64> {
    counts(senders)
        .into_iter()
        .map(|count| count + than)
        .collect()
}

fn is_ready(state: &str, _: &str) -> bool {
    state == "ready"
}

fn is_waiting(state: &str, _: &str) -> bool {
    state == "waiting"
}

fn refuses_all(state: &str, reason: &str) -> bool {
    state == "waiting" && reason.contains("refuses all readings")
}

async fn alerts(served: &Served) -> Vec<Value> {
    let found = served.get("/api/v1/alerts?state=firing").await;
    let alerts = found["alerts"].as_array().unwrap().iter();
    alerts
        .filter(|alert| alert["rule"] == "store_refuses")
        .cloned()
        .collect()
}

/// What an operator or a fault may do to the tables, and what mends it.
const FAULTS: [(&str, &str); 12] = [
    (
        "ALTER TABLE telemetry_data ADD COLUMN site TEXT NOT NULL DEFAULT ''; \
         ALTER TABLE telemetry_data ALTER COLUMN site DROP DEFAULT",
        "ALTER TABLE telemetry_data ALTER COLUMN site SET DEFAULT ''",
    ),
    (
        // As a missing partition: no row has a place.
        "ALTER TABLE telemetry_data ADD CONSTRAINT nowhere CHECK (false) NOT VALID",
        "ALTER TABLE telemetry_data DROP CONSTRAINT nowhere",
    ),
    (
        "ALTER TABLE telemetry_data RENAME TO telemetry_gone",
        "ALTER TABLE telemetry_gone RENAME TO telemetry_data",
    ),
    (
        "ALTER TABLE telemetry_data RENAME COLUMN quality TO grade",
        "ALTER TABLE telemetry_data RENAME COLUMN grade TO quality",
    ),
    (
        "ALTER TABLE ledger ADD CONSTRAINT shut CHECK (false) NOT VALID",
        "ALTER TABLE ledger DROP CONSTRAINT shut",
    ),
    ("CALL refuse('P0001')", "CALL mend()"),
    ("CALL refuse('0A000')", "CALL mend()"),
    ("CALL refuse('XX001')", "CALL mend()"),
    ("CALL refuse('58030')", "CALL mend()"),
    // As a function that nests too deeply: smaller statements do not help.
    ("CALL refuse('54000')", "CALL mend()"),
    ("CALL refuse('54001')", "CALL mend()"),
    // As a trigger that always waits for longer than a statement may take.
    ("CALL refuse('57014')", "CALL mend()"),
];

/// Triggers that refuse readings, with a code, all or those that `condition` names.
fn procedures(condition: &str) -> String {
    let condition = condition.replace('\'', "''");
    format!(
        "CREATE PROCEDURE refuse(code TEXT) LANGUAGE plpgsql AS $p$ BEGIN \
             EXECUTE format('CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN \
                 IF {condition} THEN RAISE EXCEPTION ''no'' USING ERRCODE = %L; END IF; RETURN NEW; END $f$', code); \
             CREATE TRIGGER refusing BEFORE INSERT ON telemetry_data FOR EACH ROW EXECUTE FUNCTION refusing(); \
         END $p$; \
         CREATE PROCEDURE mend() LANGUAGE plpgsql AS $p$ BEGIN \
             DROP TRIGGER refusing ON telemetry_data; DROP FUNCTION refusing(); END $p$"
    )
}

#[test]
fn what_refuses_everything_settles_nothing_and_flows_again_when_it_is_mended() {
    postgres(|fixture: Fixture| async move {
        fixture.open().await.close().await;
        fixture.sql(&procedures("true")).await;
        let location = Location::parse(fixture.url.as_ref().unwrap()).unwrap();
        let served = Arc::new(Served::start_on(location, |_| {}).await);
        let stop = Arc::new(AtomicBool::new(false));
        let senders: Vec<Sender> = (0..6)
            .map(|at| Sender::start(&served, format!("press-{at}"), &stop))
            .collect();
        let bystanders = bystanders(&served, &stop);
        until_settled(&senders, "readings are committed", &[2 * BATCH; 6]).await;
        for (at, (fault, mend)) in FAULTS.into_iter().enumerate() {
            fixture.sql(fault).await;
            until_database(&served, fault, refuses_all).await;
            if at == 0 {
                until("there is an alert", async || {
                    !alerts(&served).await.is_empty()
                })
                .await;
                let found = alerts(&served).await;
                assert_eq!(found.len(), 1, "{found:?}");
                let detail = found[0]["detail"].as_str().unwrap();
                assert!(
                    detail.contains("site") && detail.contains("23502"),
                    "{detail}"
                );
            }
            fixture.sql(mend).await;
            until_settled(&senders, fault, &more(&senders, 2 * BATCH)).await;
            until_database(&served, fault, is_ready).await;
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            assert!(
                sender.done.await.unwrap().is_empty(),
                "a reading was rejected"
            );
        }
        for bystander in bystanders {
            assert!(bystander.await.unwrap() > 100);
        }
        let fleet = served.store.fleet_ledger().await.unwrap();
        assert_eq!(fleet.unaccounted, 0, "{fleet:?}");
    });
}

#[test]
fn a_reading_that_is_refused_stops_nobody_and_is_set_aside_once_it_is_shown_to_be_the_one() {
    postgres(|fixture| one_reading_is_refused(fixture, "23514"));
}

/// A standby, too, refuses what it cannot do with this code.
#[test]
fn a_reading_that_a_trigger_cannot_do_stops_nobody() {
    postgres(|fixture| one_reading_is_refused(fixture, "0A000"));
}

async fn one_reading_is_refused(fixture: Fixture, code: &str) {
    fixture.open().await.close().await;
    fixture
        .sql(&procedures(
            "NEW.device_id = 'press-0' AND NEW.value_f64 = 25",
        ))
        .await;
    fixture.sql(&format!("CALL refuse('{code}')")).await;
    let location = Location::parse(fixture.url.as_ref().unwrap()).unwrap();
    let served = Arc::new(Served::start_on(location, |_| {}).await);
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<Sender> = (0..6)
        .map(|at| Sender::start(&served, format!("press-{at}"), &stop))
        .collect();
    // The others go on while the one is tried, and it goes on once its reading is set aside.
    until_settled(&senders, "all go on", &[10 * BATCH; 6]).await;
    stop.store(true, Ordering::Relaxed);
    let mut rejected = Vec::new();
    for sender in senders {
        rejected.push(sender.done.await.unwrap());
    }
    assert_eq!(rejected[0], BTreeSet::from([25]));
    assert!(rejected[1..].iter().all(BTreeSet::is_empty), "{rejected:?}");
    let epoch = schema::Epoch::try_from(0x00c0_ffee_0001).unwrap();
    let press = device("press-0");
    let held = served.store.known_ranges(&press, epoch).await.unwrap();
    assert!(held.contains(24) && !held.contains(25) && held.contains(26));
}

#[test]
fn a_refusal_settles_nothing_and_says_what_the_database_said() {
    postgres(|fixture: Fixture| async move {
        let store = fixture.open().await;
        fixture
            .sql("ALTER TABLE telemetry_data ADD CHECK (value_f64 <> 66.6)")
            .await;
        let mut sent = rows(1, 20);
        sent[10].value = Reading::F64(66.6);
        let refused = store
            .ingest(&[delivery("d", sent.clone())])
            .await
            .unwrap_err();
        assert!(
            refused.is_refusal() && refused.explained().contains("23514"),
            "{refused:?}"
        );
        sent.remove(10);
        let taken = store.ingest(&[delivery("d", sent)]).await.unwrap();
        assert!(taken.settled[0].rejected.is_empty());
    });
}

#[test]
fn a_file_refuses_as_a_server_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    runtime().block_on(async {
        let served = Arc::new(Served::start_on(Location::Embedded(path.clone()), |_| {}).await);
        let stop = Arc::new(AtomicBool::new(false));
        let senders: Vec<Sender> = (0..4)
            .map(|at| Sender::start(&served, format!("press-{at}"), &stop))
            .collect();
        until_settled(&senders, "readings are committed", &[BATCH; 4]).await;
        sqlite(
            &path,
            "CREATE TRIGGER refusing BEFORE INSERT ON telemetry_data BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .await;
        until_database(&served, "readiness tells", refuses_all).await;
        sqlite(&path, "DROP TRIGGER refusing").await;
        until_settled(&senders, "readings flow again", &more(&senders, BATCH)).await;
        until_database(&served, "it is ready", is_ready).await;
        // Gone: what is written to it goes nowhere.
        std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        until_database(&served, "a file that is gone is told", is_waiting).await;
        std::fs::rename(folder.path().join("elsewhere"), &path).unwrap();
        until_database(&served, "it is back", is_ready).await;
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            assert!(sender.done.await.unwrap().is_empty());
        }
    });
}

async fn sqlite(path: &Path, sql: &str) {
    let database = libsql::Builder::new_local(path).build().await.unwrap();
    let connection = database.connect().unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection.execute_batch(sql).await.unwrap();
}

#[test]
fn a_database_that_cannot_hold_all_text_is_refused_by_name() {
    let latin = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    postgres_with(latin, |fixture| async move {
        let store = fixture.open_unmigrated().await;
        let refused = store.migrate().await.unwrap_err();
        assert!(
            matches!(refused, StoreError::Encoding { .. }),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("LATIN1"), "{refused}");
        store.close().await;
    });
}

#[test]
fn a_silent_fleet_does_not_hide_whether_the_database_is_there() {
    runtime().block_on(async {
        let mut server = Server::start();
        let location = Location::parse(&server.url()).unwrap();
        let served = Served::start_on(location, |_| {}).await;
        // Nobody has written anything.
        until_database(&served, "it is ready", is_ready).await;
        let base = SystemClock::default().now_micros() - 3_600_000_000;
        let reading = json!({"sensor": "s", "observed_at": base, "value": 1});
        let known = json!({"epoch": "00c0ffee0001", "first_seq": 1, "readings": [reading]});
        let hand_in = async |expected: StatusCode| {
            let asked = served.request(Method::POST, "/api/v1/devices/knows/readings");
            let answer = asked.json(&known).send().await.unwrap();
            assert_eq!(answer.status(), expected);
        };
        hand_in(StatusCode::OK).await;
        server.stop();
        let stopped = Instant::now();
        until_database(&served, "its end is told", is_waiting).await;
        assert!(
            stopped.elapsed() < Duration::from_secs(15),
            "{:?}",
            stopped.elapsed()
        );
        // What was known a moment ago is not answered from memory, and says nothing of the database.
        hand_in(StatusCode::SERVICE_UNAVAILABLE).await;
        let (state, reason) = database_state(&served).await;
        assert!(is_waiting(&state, &reason), "{state} {reason}");
        server.run();
        until_database(&served, "it is ready again", is_ready).await;
        // A server that takes no writes is no better.
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
        server.sql("SELECT pg_reload_conf()");
        until_database(&served, "read-only is told", |_, reason| {
            reason.contains("read-only")
        })
        .await;
        server.sql("ALTER SYSTEM RESET default_transaction_read_only");
        server.sql("SELECT pg_reload_conf()");
        until_database(&served, "it takes writes again", is_ready).await;
    });
}

/// A PostgreSQL of our own, in a folder that goes with it.
struct Server {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Guard>,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tideline-pg-")
            .tempdir()
            .unwrap();
        let port = free_port();
        if let Some((user, group)) = other_user() {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let mut server = Self {
            folder,
            port,
            process: None,
        };
        let made = server
            .command("initdb")
            .args([
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(server.folder.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        server.run();
        server
    }

    fn command(&self, program: &str) -> std::process::Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new(program);
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        command.current_dir(self.folder.path());
        command
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn run(&mut self) {
        let mut command = self.command("postgres");
        let process = command
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args([
                "-p",
                &self.port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "fsync=off",
            ])
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                self.folder.path().display()
            ))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        self.process = Some(Guard::spawn(process));
        blocking::until("PostgreSQL answers", || self.try_sql("SELECT 1"));
    }

    fn try_sql(&self, sql: &str) -> bool {
        let asked = self
            .command("psql")
            .args(["--no-psqlrc", "--quiet", "-d", &self.url(), "-c", sql])
            .output()
            .unwrap();
        asked.status.success()
    }

    fn sql(&self, sql: &str) {
        assert!(self.try_sql(sql), "{sql}");
    }

    /// Ends it as a crash does.
    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.ends_on(Signal::QUIT);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// PostgreSQL refuses to run as root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let account = |name: &str| {
        let line = accounts
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2).map(|id| id.parse().unwrap());
        Some((fields.next()?, fields.next()?))
    };
    account("postgres").or_else(|| account("nobody"))
}
