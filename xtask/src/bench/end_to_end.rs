//! Readings a second all the way: 400 simulated devices with certificates of their own, broker, one
//! bridge, PostgreSQL; beside one COPY of the same rows into a plain table.
//!
//! ```text
//! peak       more than the machine takes, so that the bridge decides
//! overload   three times what the peak was: what the pipeline does when it cannot win
//! repeats    the same, and of a hundred scans three repeat a time: their readings meet others
//! mosquitto  the peak's load with Mosquitto in the broker's place
//! ```
//!
//! Devices, broker, bridge and database share the machine; COPY has it for itself. Each figure is the
//! better of two runs, taken in turn.

use std::path::Path;
use std::process::{Command, Stdio};

use daemon::{Class, Failure};
use futures_util::TryStreamExt as _;
use loadtest::process::binary;
use loadtest::scratch::Scratch;
use loadtest::stack::{Plan, Stack};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::mosquitto;
use testkit::port::free_port;

use super::{Figure, copy};

/// Devices, the sensors of each, and the readings that each keeps while the bridge is behind.
const DEVICES: usize = 400;
const SENSORS: usize = 8;
const BUFFER_ROWS: usize = 60_000;

/// Readings a second that are offered first: more than two cores have ever taken.
const OFFERED: f64 = 320_000.0;

/// The overload, as a multiple of the peak.
const OVERLOAD: f64 = 3.0;

/// Of a hundred scans that repeat a time, where some do.
const REPEATS: u8 = 3;

/// How long the devices read.
const READ_FOR: &str = "15s";

/// Each figure is the best of so many runs.
const ROUNDS: usize = 2;

/// Rows that COPY takes at most: they are held in memory.
const COPY_ROWS: i64 = 1_500_000;

/// Who carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broker {
    Tideline,
    Mosquitto,
}

/// One load.
#[derive(Debug, Clone, Copy)]
struct Load {
    broker: Broker,
    /// Readings a second of all devices.
    offered: f64,
    /// Scans of a hundred that repeat a time.
    repeats: u8,
}

/// What came of one load.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// Readings a second, from the first connection to the last acknowledgement.
    committed: f64,
    /// From a batch's publish to its acknowledgement.
    p99_seconds: f64,
    copy: f64,
}

/// Measures with databases on the server of `url`.
pub(crate) fn run(url: &str, mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    let mut best: [Outcome; 4] = Default::default();
    for round in 1..=ROUNDS {
        let mut measure = |at: usize, load: Load| -> Result<(), Failure> {
            let Load {
                broker, offered, ..
            } = load;
            eprintln!("round {round} of {ROUNDS}: {broker:?}, {offered:.0} readings/s offered");
            let outcome = runtime.block_on(measure(url, load))?;
            if outcome.committed > best[at].committed {
                let copy = best[at].copy.max(outcome.copy);
                best[at] = Outcome { copy, ..outcome };
            }
            Ok(())
        };
        let peak = Load {
            broker: Broker::Tideline,
            offered: OFFERED,
            repeats: 0,
        };
        measure(0, peak)?;
        let offered = OVERLOAD * OFFERED;
        measure(1, Load { offered, ..peak })?;
        let repeats = REPEATS;
        let repeating = Load {
            offered,
            repeats,
            ..peak
        };
        measure(2, repeating)?;
        let broker = Broker::Mosquitto;
        measure(3, Load { broker, ..peak })?;
    }
    // COPY of whichever run had the machine most for itself.
    let copy = best.iter().map(|outcome| outcome.copy).fold(0.0, f64::max);
    let [peak, overload, repeats, mosquitto] = best;
    let mut figure = |name: &str, value, unit: &str, beside: &str, reference| {
        let name = format!("end-to-end/{name}");
        emit(Figure::beside(name, value, unit, beside, reference));
    };
    for (name, outcome) in [
        ("peak", peak),
        ("overload", overload),
        ("overload, repeats", repeats),
        ("mosquitto", mosquitto),
    ] {
        figure(name, outcome.committed, "rows/s", "COPY", copy);
    }
    for (name, outcome) in [("overload", overload), ("overload, repeats", repeats)] {
        let name = format!("{name}/of the peak");
        figure(&name, outcome.committed, "rows/s", "peak", peak.committed);
    }
    for (name, outcome) in [("peak", peak), ("overload", overload)] {
        let name = format!("{name}/ack p99");
        let reference = mosquitto.p99_seconds;
        figure(&name, outcome.p99_seconds, "s", "mosquitto", reference);
    }
    Ok(())
}

async fn measure(url: &str, load: Load) -> Result<Outcome, Failure> {
    let scratch = Scratch::create(url).await.map_err(failed)?;
    let outcome = measure_in(scratch.url(), load).await;
    scratch.drop_it().await.map_err(failed)?;
    outcome
}

async fn measure_in(database: &str, load: Load) -> Result<Outcome, Failure> {
    let folder = tempfile::tempdir().map_err(failed)?;
    let folder = folder.path();
    let port = free_port();
    let plan = Plan {
        agents: 0,
        bridges: 1,
        database: Some(database.to_owned()),
    };
    let mut stack = Stack::prepare(folder, &plan, port, |_| port).map_err(failed)?;
    let foreign = match load.broker {
        Broker::Mosquitto => {
            let files = ["ca.pem", "server.pem", "server.key", "crl.pem"];
            let files = files.map(|file| folder.join("certs").join(file));
            let files = files.each_ref().map(|file| file.as_path());
            Some(mosquitto::start_shipped(folder, port, files))
        }
        Broker::Tideline => {
            stack.broker.start().map_err(failed)?;
            None
        }
    };
    stack.bridges[0].start().map_err(failed)?;
    let report = devices(folder, &stack.broker_addr().to_string(), load).await?;
    drop((stack, foreign));
    let committed = report["committed_per_second"].as_f64();
    let p99 = report["ack_latency_seconds"]["p99"].as_f64();
    let (Some(committed), Some(p99_seconds)) = (committed, p99) else {
        return Err(failed(format!("the devices report {report}")));
    };
    Ok(Outcome {
        committed,
        p99_seconds,
        copy: copy_again(database).await?,
    })
}

/// Runs the devices until all they could deliver is acknowledged.
async fn devices(folder: &Path, broker: &str, load: Load) -> Result<Value, Failure> {
    let mut command = Command::new(binary("loadtest").map_err(failed)?);
    command
        .args(["run", "--json", "--broker", broker, "--certs"])
        .arg(folder.join("certs"))
        .args(["--devices", &DEVICES.to_string()])
        .args(["--sensors", &SENSORS.to_string()])
        .args(["--buffer-rows", &BUFFER_ROWS.to_string()])
        .args(["--rate", &(load.offered / DEVICES as f64).to_string()])
        .args(["--repeats", &load.repeats.to_string()])
        .args(["--for", READ_FOR])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let ended = tokio::task::spawn_blocking(move || command.output()).await;
    let output = ended.map_err(failed)?.map_err(failed)?;
    // Under overload some of it is still under way at the end, and the exit code says so.
    serde_json::from_slice(&output.stdout).map_err(failed)
}

/// Rows a second of COPY, from memory into a table with the same columns and key.
async fn copy_again(database: &str) -> Result<f64, Failure> {
    let mut connection = PgConnection::connect(database).await.map_err(failed)?;
    let table = "CREATE TABLE copied (LIKE telemetry_data INCLUDING ALL)";
    connection.execute(table).await.map_err(failed)?;
    let select =
        format!("COPY (SELECT * FROM telemetry_data LIMIT {COPY_ROWS}) TO STDOUT (FORMAT binary)");
    let mut rows = Vec::new();
    let mut out = connection.copy_out_raw(&select).await.map_err(failed)?;
    while let Some(bytes) = out.try_next().await.map_err(failed)? {
        rows.extend_from_slice(&bytes);
    }
    drop(out);
    // What the run left to write would be written beside it.
    connection.execute("CHECKPOINT").await.map_err(failed)?;
    let copied = copy::copy_in(&mut connection, "copied", &rows).await;
    Ok(copied.map_err(failed)?.1)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Class::Storage, "measure end to end").because(error)
}
