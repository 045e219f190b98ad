//! Ingest of both stores in rows a second, beside one COPY of the same rows into the same table.
//!
//! What is measured is `Store::ingest` as the bridge calls it: deliveries of many devices, rows and
//! ledger in one commit. COPY keeps no ledger, resolves no conflict and commits once; it is what
//! the database can take at most from one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use loadtest::scratch::Scratch;
use schema::{Batch, Epoch, Hlc, ObservedAt, Quality, ReceivedAt, Row, SensorName, Value};
use sqlx::{Connection as _, PgConnection};
use store::location::{Database, Location};
use store::{Delivery, Origin, Store};
use tokio::task::JoinSet;

use super::{Figure, copy};

/// A fleet that fills 400,000 rows.
const DEVICES: u64 = 100;
const SENSORS: u64 = 10;
const BATCHES: u64 = 8;
const BATCH_ROWS: u64 = 500;
const ROWS: u64 = DEVICES * BATCHES * BATCH_ROWS;

/// In microseconds.
const HOUR: i64 = 3_600_000_000;

/// Batches that the bridge hands to the store at once.
const CALL_BATCHES: usize = 10;

/// Connections that write at once.
const WRITERS: [usize; 3] = [1, 2, 4];

/// Each figure is the best of so many rounds, taken in turn, so that a busy moment of the machine
/// does not count for one of them alone.
const ROUNDS: usize = 3;

/// Measures against the PostgreSQL of `url`, whose user may create databases.
pub(crate) fn run(url: &str, mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    let fleet = fleet();
    let copy = copy_data(&fleet);
    let mut best = Best::default();
    for _ in 0..ROUNDS {
        runtime.block_on(round(url, &fleet, &copy, &mut best))?;
    }
    let of_writers = WRITERS.iter().zip(best.writers);
    let of_writers = of_writers.map(|(writers, rate)| (format!("writers={writers}"), rate));
    let others = [
        ("partitioned", best.partitioned),
        ("retransmitted", best.known),
        ("contested", best.contested),
        ("late", best.late),
        ("next hour", best.next_hour),
    ];
    let others = others.map(|(what, rate)| (what.to_owned(), rate));
    for (what, rate) in of_writers.chain(others) {
        let name = format!("ingest/postgresql/{what}");
        emit(Figure::beside(name, rate, "rows/s", "COPY", best.copy));
    }
    emit(Figure::beside(
        "ingest/postgresql/next hour with rollups",
        best.rolled,
        "rows/s",
        "without",
        best.next_hour,
    ));
    let embedded = best.embedded;
    emit(Figure::beside(
        "ingest/embedded",
        embedded,
        "rows/s",
        "COPY",
        best.copy,
    ));
    Ok(())
}

#[derive(Debug, Default)]
struct Best {
    copy: f64,
    writers: [f64; WRITERS.len()],
    partitioned: f64,
    known: f64,
    contested: f64,
    late: f64,
    next_hour: f64,
    rolled: f64,
    embedded: f64,
}

async fn round(url: &str, fleet: &[Delivery], copy: &[u8], best: &mut Best) -> Result<(), Failure> {
    let database = Scratch::create(url).await.map_err(failed)?;
    let rate = copy_in(database.url(), copy).await?;
    best.copy = best.copy.max(rate);
    database.drop_it().await.map_err(failed)?;

    for (at, writers) in WRITERS.into_iter().enumerate() {
        let database = Scratch::create(url).await.map_err(failed)?;
        let store = open(database.url(), writers, Table::Plain).await?;
        let rate = ingest(&store, fleet, writers).await?;
        best.writers[at] = best.writers[at].max(rate);
        if writers == 2 {
            let rate = ingest(&store, fleet, writers).await?;
            best.known = best.known.max(rate);
            let newer = newer(fleet);
            let rate = ingest(&store, &newer, writers).await?;
            best.contested = best.contested.max(rate);
        }
        store.close().await;
        database.drop_it().await.map_err(failed)?;
    }

    let database = Scratch::create(url).await.map_err(failed)?;
    let store = open(database.url(), 2, Table::ByMonth).await?;
    let rate = ingest(&store, fleet, 2).await?;
    best.partitioned = best.partitioned.max(rate);
    store.close().await;
    database.drop_it().await.map_err(failed)?;

    let database = Scratch::create(url).await.map_err(failed)?;
    let store = open(database.url(), 2, Table::Plain).await?;
    let rate = ingest(&store, &late(fleet), 2).await?;
    best.late = best.late.max(rate);
    store.close().await;
    database.drop_it().await.map_err(failed)?;

    let rate = next_hour(url, fleet, Rollups::Wait).await?;
    best.next_hour = best.next_hour.max(rate);
    let rate = next_hour(url, fleet, Rollups::Computed).await?;
    best.rolled = best.rolled.max(rate);

    let folder = tempfile::TempDir::new().map_err(failed)?;
    let location = Location::Embedded(folder.path().join("bridge.db"));
    let store = location.open().await.map_err(failed)?;
    store.migrate().await.map_err(failed)?;
    let rate = ingest(&store, fleet, 1).await?;
    best.embedded = best.embedded.max(rate);
    store.close().await;
    Ok(())
}

/// How readings are kept. All is measured with a plain table, as COPY is, and its one partitioned figure beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Plain,
    ByMonth,
}

/// What becomes of the hour before while the next one comes in.
#[derive(Debug, Clone, Copy)]
enum Rollups {
    Wait,
    Computed,
}

pub(super) async fn open(
    url: &str,
    writers: usize,
    table: Table,
) -> Result<Arc<dyn Store>, Failure> {
    let nodes = store::cockroach::Nodes::parse([url]).map_err(failed)?;
    let mut database = Database::new(nodes);
    database.partitions = table == Table::ByMonth;
    database.writers_max = u32::try_from(writers).unwrap_or(u32::MAX);
    let store = Location::Cockroach(database).open().await.map_err(failed)?;
    store.migrate().await.map_err(failed)?;
    Ok(store)
}

/// Each writer has its share of the devices, as each bridge has.
async fn ingest(
    store: &Arc<dyn Store>,
    fleet: &[Delivery],
    writers: usize,
) -> Result<f64, Failure> {
    let mut shares = vec![Vec::new(); writers];
    for delivery in fleet {
        let name = delivery.device.as_str();
        let number: usize = name.trim_start_matches("device-").parse().unwrap_or(0);
        shares[number % writers].push(delivery.clone());
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for share in shares {
        let store = store.clone();
        tasks.spawn(async move {
            for call in share.chunks(CALL_BATCHES) {
                store.ingest(call).await?;
            }
            Ok::<_, store::StoreError>(())
        });
    }
    for done in tasks.join_all().await {
        done.map_err(failed)?;
    }
    Ok(ROWS as f64 / started.elapsed().as_secs_f64())
}

/// An hour of readings of devices whose rollups have begun, while the hour before is computed or while it is not: until all is done counts.
async fn next_hour(url: &str, fleet: &[Delivery], rollups: Rollups) -> Result<f64, Failure> {
    let database = Scratch::create(url).await.map_err(failed)?;
    let store = open(database.url(), 2, Table::Plain).await?;
    let (first, rest) = fleet.split_at(usize::try_from(DEVICES).map_err(failed)?);
    ingest(&store, first, 2).await?;
    let begun = first[0].received_at;
    roll_up(&store, begun).await?;
    ingest(&store, rest, 2).await?;
    let over = ReceivedAt::from_micros(begun.micros() + HOUR + HOUR / 4);
    advance(&store, over).await?;
    let next = an_hour_later(fleet);
    let started = Instant::now();
    match rollups {
        Rollups::Wait => {
            ingest(&store, &next, 2).await?;
        }
        Rollups::Computed => {
            let (_, hours) = tokio::try_join!(ingest(&store, &next, 2), compute(&store))?;
            if hours != DEVICES * SENSORS {
                return Err(failed(format!("{hours} hours were computed")));
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    store.close().await;
    database.drop_it().await.map_err(failed)?;
    Ok(ROWS as f64 / seconds)
}

/// Gives hours that are over to rollups, and computes them. Returns how many.
pub(super) async fn roll_up(store: &Arc<dyn Store>, now: ReceivedAt) -> Result<u64, Failure> {
    advance(store, now).await?;
    compute(store).await
}

/// Gives hours that are over to rollups.
async fn advance(store: &Arc<dyn Store>, now: ReceivedAt) -> Result<(), Failure> {
    let (mut after, mut has_more) = (None, false);
    loop {
        let advanced = store.advance_rollups(now, after.as_ref()).await;
        let advanced = advanced.map_err(failed)?;
        after = advanced.next;
        has_more |= advanced.has_more;
        if after.is_none() && !std::mem::take(&mut has_more) {
            return Ok(());
        }
    }
}

/// Computes marked hours until there are none.
async fn compute(store: &Arc<dyn Store>) -> Result<u64, Failure> {
    let mut hours = 0;
    loop {
        let computed = store
            .compute_rollups(Duration::ZERO)
            .await
            .map_err(failed)?;
        hours += computed.hours;
        if !computed.has_more {
            return Ok(hours);
        }
    }
}

async fn copy_in(url: &str, data: &[u8]) -> Result<f64, Failure> {
    // The tables are the store's own.
    open(url, 1, Table::Plain).await?.close().await;
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    let (rows, rate) = copy::copy_in(&mut connection, "telemetry_data", data)
        .await
        .map_err(failed)?;
    if rows != ROWS {
        return Err(failed(format!("COPY took {rows} rows of {ROWS}")));
    }
    Ok(rate)
}

/// Batches as they arrive: scans of all sensors, in turn from all devices.
fn fleet() -> Vec<Delivery> {
    let sensors: Vec<SensorName> = (0..SENSORS)
        .map(|number| {
            let name = format!("line/{number}/temperature");
            name.parse().expect("a sensor's name")
        })
        .collect();
    let mut fleet = Vec::new();
    for batch in 0..BATCHES {
        for number in 0..DEVICES {
            let rows = (0..BATCH_ROWS)
                .map(|at| row(batch * BATCH_ROWS + at))
                .collect();
            fleet.push(Delivery {
                device: format!("device-{number}").parse().expect("a device's id"),
                batch: Batch {
                    epoch: Epoch::from_random(number + 1),
                    sensors: sensors.clone(),
                    rows,
                },
                rejected: Vec::new(),
                received_at: ReceivedAt::from_micros(1_700_000_000_000_000),
                origin: Origin::Device,
            });
        }
    }
    fleet
}

fn row(number: u64) -> Row {
    let scan = number / SENSORS;
    let millis = 1_700_000_000_000 + scan * 1000;
    Row {
        sensor: u16::try_from(number % SENSORS).expect("few sensors"),
        observed_at: ObservedAt::from_millis(millis.cast_signed()),
        hlc: Hlc::new(
            millis,
            u16::try_from(number % SENSORS).expect("few sensors"),
        ),
        seq: number + 1,
        quality: Quality::Good,
        value: Value::F64(20.0 + (number % 977) as f64 / 64.0),
    }
}

/// The same keys from another buffer file, with higher clocks: every row meets an older version.
fn newer(fleet: &[Delivery]) -> Vec<Delivery> {
    let mut newer = fleet.to_vec();
    for delivery in &mut newer {
        let epoch = delivery.batch.epoch.get() + 1_000_000;
        delivery.batch.epoch = Epoch::from_random(epoch);
        for row in &mut delivery.batch.rows {
            row.hlc = Hlc::new(row.hlc.millis() + 1, row.hlc.counter());
        }
    }
    newer
}

/// What the fleet sends in the next hour.
fn an_hour_later(fleet: &[Delivery]) -> Vec<Delivery> {
    let mut later = fleet.to_vec();
    for delivery in &mut later {
        delivery.received_at = ReceivedAt::from_micros(delivery.received_at.micros() + HOUR);
        for row in &mut delivery.batch.rows {
            row.observed_at = ObservedAt::from_micros(row.observed_at.micros() + HOUR);
            row.hlc = Hlc::new(
                row.hlc.millis() + HOUR.unsigned_abs() / 1000,
                row.hlc.counter(),
            );
            row.seq += BATCHES * BATCH_ROWS;
        }
    }
    later
}

/// The last scan of each batch repeats the time of an earlier one: in each write some rows of each device meet others.
fn late(fleet: &[Delivery]) -> Vec<Delivery> {
    let mut late = fleet.to_vec();
    for delivery in &mut late {
        let rows = &mut delivery.batch.rows;
        let (last, earlier) = (rows.len() - SENSORS as usize, rows.len() / 2);
        for at in 0..SENSORS as usize {
            rows[last + at].observed_at = rows[earlier + at].observed_at;
        }
    }
    late
}

/// The fleet's rows in COPY's binary format, the fastest that PostgreSQL reads.
fn copy_data(fleet: &[Delivery]) -> Vec<u8> {
    const SINCE_2000: i64 = 946_684_800_000_000;
    let mut data = b"PGCOPY\n\xff\r\n\0".to_vec();
    data.extend_from_slice(&[0; 8]);
    let field = |data: &mut Vec<u8>, bytes: &[u8]| {
        let length = i32::try_from(bytes.len()).expect("a short field");
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(bytes);
    };
    for delivery in fleet {
        let received = delivery.received_at.micros() - SINCE_2000;
        for row in &delivery.batch.rows {
            data.extend_from_slice(&12i16.to_be_bytes());
            field(&mut data, delivery.device.as_str().as_bytes());
            field(&mut data, delivery.batch.sensor(row).as_str().as_bytes());
            let observed = row.observed_at.micros() - SINCE_2000;
            field(&mut data, &observed.to_be_bytes());
            if let Value::F64(number) = row.value {
                field(&mut data, &number.to_bits().to_be_bytes());
            }
            for _ in 0..3 {
                data.extend_from_slice(&(-1i32).to_be_bytes());
            }
            field(&mut data, &i16::from(u8::from(row.quality)).to_be_bytes());
            field(&mut data, &row.hlc.bits().to_be_bytes());
            field(&mut data, &delivery.batch.epoch.get().to_be_bytes());
            field(&mut data, &row.seq.to_be_bytes());
            field(&mut data, &received.to_be_bytes());
        }
    }
    data.extend_from_slice(&(-1i16).to_be_bytes());
    data
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Class::Storage, "measure ingest").because(error)
}
