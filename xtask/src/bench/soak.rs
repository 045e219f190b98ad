//! Whether what is asked often costs the same when a table has grown tenfold: `cargo xtask bench soak`,
//! with ten million rows unless `--rows` says otherwise.
//!
//! ```text
//! a few sensors, a reading a minute for a year      what a chart of a year is made of
//! a fleet beside them, the rest of the rows         what pages, the ledger and the rounds read
//! ```
//!
//! Filled through `Store::ingest` by two writers, by time, as a year would. Each question is asked after a
//! tenth of the rows and after all: the ratio of the two is the figure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use loadtest::scratch::Scratch;
use schema::{
    Batch, DeviceId, Epoch, Hlc, ObservedAt, Quality, ReceivedAt, Row, SensorName, Value,
};
use sqlx::{Connection as _, PgConnection};
use store::alerts::{AlertBounds, Rule};
use store::history::{AggregateQuery, BucketWidth};
use store::{Delivery, FleetBooks, Order, Origin, Readers, Store, TelemetryQuery};
use tokio::task::JoinSet;

use super::Figure;
use super::ingest::{Table, open, roll_up};

/// Rows when nobody says how many.
pub(super) const ROWS: u64 = 10_000_000;

/// The device that reads every minute, and its sensors.
const DENSE_SENSORS: u64 = 4;
const MINUTES: u64 = 365 * 24 * 60;

/// The fleet beside it.
const DEVICES: u64 = 400;
const SENSORS: u64 = 8;

const BATCH_ROWS: u64 = 480;
const CALL_BATCHES: usize = 10;
const WRITERS: usize = 2;

/// When the year ends: far enough back for every reading to be in the past.
const END_MS: u64 = 1_790_000_000_000;
const YEAR_MS: u64 = MINUTES * 60_000;

/// How often each question is asked; the median counts.
const ASKED: usize = 7;

/// How much of the year is kept in the end.
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// Milliseconds of each question, in the order of [`NAMES`].
type Answers = [f64; NAMES.len()];

const NAMES: [&str; 10] = [
    "page of a sensor",
    "page of all sensors",
    "latest",
    "conflicts",
    "devices",
    "fleet ledger",
    "look at the books",
    "rows of a device",
    "round of alerts",
    "chart of a day by minutes",
];

/// Measures with a database on the server of `url`.
pub(super) fn run(url: &str, rows: u64, mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    runtime.block_on(async {
        let scratch = Scratch::create(url).await.map_err(failed)?;
        let soaked = soak(scratch.url(), rows, &mut emit).await;
        scratch.drop_it().await.map_err(failed)?;
        soaked
    })
}

async fn soak(url: &str, rows: u64, emit: &mut impl FnMut(Figure)) -> Result<(), Failure> {
    let store = open(url, WRITERS, Table::ByMonth).await?;
    let tenth = fill(&store, rows, 0..1).await?;
    let few = ask(&store, 1).await?;
    fill(&store, rows, 1..9).await?;
    let last = fill(&store, rows, 9..10).await?;
    let all = ask(&store, 10).await?;
    emit(Figure::beside(
        "soak/ingest of the last tenth",
        last,
        "rows/s",
        "the first tenth",
        tenth,
    ));
    for ((name, all), few) in NAMES.iter().zip(all).zip(few) {
        let name = format!("soak/{name}");
        emit(Figure::beside(name, all, "ms", "a tenth of the rows", few));
    }
    let started = Instant::now();
    let hours = roll_up(&store, at(END_MS)).await? as f64;
    let rate = hours / started.elapsed().as_secs_f64();
    emit(Figure::alone("soak/rollups", rate, "hours/s"));
    charts(&store, url, emit).await?;
    let started = Instant::now();
    let gone = retain(&store).await?;
    let rate = gone as f64 / started.elapsed().as_secs_f64();
    emit(Figure::alone("soak/retention of 90 days", rate, "rows/s"));
    store.close().await;
    Ok(())
}

/// Writes some tenths of the year. Returns rows a second.
async fn fill(
    store: &Arc<dyn Store>,
    rows: u64,
    tenths: std::ops::Range<u64>,
) -> Result<f64, Failure> {
    eprintln!("filling tenths {tenths:?} of {rows} rows");
    let dense = DENSE_SENSORS * MINUTES;
    let scans = rows.saturating_sub(dense) / (DEVICES * SENSORS);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let mut written = 0;
    for writer in 0..WRITERS as u64 {
        let mut deliveries = Vec::new();
        for number in (writer..=DEVICES).step_by(WRITERS) {
            let (sensors, scans) = match number {
                0 => (DENSE_SENSORS, MINUTES),
                _ => (SENSORS, scans),
            };
            let of = scans * tenths.start / 10..scans * tenths.end / 10;
            written += (of.end - of.start) * sensors;
            let by = (BATCH_ROWS / sensors).max(1);
            let mut from = of.start;
            while from < of.end {
                let to = of.end.min(from + by);
                deliveries.push((from, number, sensors, scans, to));
                from = to;
            }
        }
        // By time, all devices in turn.
        deliveries.sort_unstable_by_key(|(from, _, _, scans, _)| {
            u128::from(*from) * 1_000_000 / u128::from(*scans)
        });
        let store = store.clone();
        tasks.spawn(async move {
            for call in deliveries.chunks(CALL_BATCHES) {
                let call: Vec<Delivery> = call.iter().map(|of| delivery(*of)).collect();
                store.ingest(&call).await?;
            }
            Ok::<_, store::StoreError>(())
        });
    }
    for done in tasks.join_all().await {
        done.map_err(failed)?;
    }
    Ok(written as f64 / started.elapsed().as_secs_f64())
}

/// Scans `from..to` of a device, of `scans` in the year.
fn delivery((from, number, sensors, scans, to): (u64, u64, u64, u64, u64)) -> Delivery {
    let rows = (from..to).flat_map(|scan| {
        let millis = END_MS - YEAR_MS + scan * (YEAR_MS / scans);
        (0..sensors).map(move |sensor| Row {
            sensor: u16::try_from(sensor).expect("few sensors"),
            observed_at: ObservedAt::from_millis(millis.cast_signed()),
            hlc: Hlc::new(millis, u16::try_from(sensor).expect("few sensors")),
            seq: scan * sensors + sensor + 1,
            quality: Quality::Good,
            value: Value::F64(20.0 + ((scan + sensor) % 977) as f64 / 64.0),
        })
    });
    Delivery {
        device: device(number),
        batch: Batch {
            epoch: Epoch::from_random(number + 1),
            sensors: (0..sensors).map(sensor).collect(),
            rows: rows.collect(),
        },
        rejected: Vec::new(),
        received_at: at(END_MS),
        origin: Origin::Device,
    }
}

fn at(millis: u64) -> ReceivedAt {
    ReceivedAt::from_micros(millis.cast_signed() * 1000)
}

fn device(number: u64) -> DeviceId {
    format!("device-{number}").parse().expect("a device's id")
}

fn sensor(number: u64) -> SensorName {
    format!("line/{number}/temperature")
        .parse()
        .expect("a sensor's name")
}

/// Asks each question some times, when so many tenths are filled.
async fn ask(store: &Arc<dyn Store>, tenths: u64) -> Result<Answers, Failure> {
    let store = store.clone().read_by(Readers::Api);
    let now_ms = END_MS - YEAR_MS + YEAR_MS * tenths / 10;
    let now = at(now_ms);
    let bounds = AlertBounds::default();
    let mut books = FleetBooks::default();
    store.look_at_books(&mut books).await.map_err(failed)?;
    let mut taken: Vec<Answers> = Vec::new();
    for asked in 0..ASKED as u64 {
        let device = device(1 + asked * 53 % DEVICES);
        let page = TelemetryQuery {
            device: device.clone(),
            sensor: Some(sensor(asked % SENSORS)),
            from: ObservedAt::from_millis(0),
            to: ObservedAt::from_millis(now_ms.cast_signed()),
            limit: 500,
            order: Order::NewestFirst,
        };
        let whole = TelemetryQuery {
            sensor: None,
            ..page.clone()
        };
        let day = chart(now_ms, 1, 60);
        let mut times = Vec::new();
        macro_rules! time {
            ($question:expr) => {{
                let started = Instant::now();
                let answer = $question.await.map_err(failed)?;
                times.push(started.elapsed().as_secs_f64() * 1000.0);
                answer
            }};
        }
        let page = time!(store.telemetry(&page));
        expect("a page of a sensor", !page.is_empty())?;
        let whole = time!(store.telemetry(&whole));
        expect("a page of all sensors", !whole.is_empty())?;
        let latest = time!(store.latest(&device));
        expect("a latest reading a sensor", latest.len() as u64 == SENSORS)?;
        time!(store.conflicts(&device, None, 100));
        let devices = time!(store.devices(None, 100));
        expect("a page of devices", devices.len() == 100)?;
        time!(store.fleet_ledger());
        time!(store.look_at_books(&mut books));
        time!(store.row_count(&device));
        time!(async {
            for rule in [
                Rule::DeviceOffline,
                Rule::DeadLetters,
                Rule::SettingNotInForce,
                Rule::ClockSkewed,
            ] {
                store.findings(rule, now, &bounds, None).await?;
            }
            Ok::<_, store::StoreError>(())
        });
        let day = time!(store.aggregates(&day));
        expect("a chart of a day", day.buckets.len() > 1_000)?;
        taken.push(times.try_into().expect("an answer for each name"));
    }
    Ok(std::array::from_fn(|at| {
        median(taken.iter().map(|answers| answers[at]).collect())
    }))
}

/// A chart of the dense device's first sensor, some days back from a time.
fn chart(to_ms: u64, days: u64, bucket_seconds: u64) -> AggregateQuery {
    AggregateQuery {
        device: device(0),
        sensor: sensor(0),
        from: ObservedAt::from_millis((to_ms - days * 86_400_000).cast_signed()),
        to: ObservedAt::from_millis(to_ms.cast_signed()),
        bucket: BucketWidth::from_seconds(bucket_seconds).expect("a bucket's width"),
        limit: 10_000,
        worst: Quality::Bad,
    }
}

/// A year by days and by hours, beside one GROUP BY over the same readings.
async fn charts(
    store: &Arc<dyn Store>,
    url: &str,
    emit: &mut impl FnMut(Figure),
) -> Result<(), Failure> {
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    let group_by = "SELECT floor(extract(epoch FROM observed_at) / $3::FLOAT8), count(*), \
         min(value_f64), max(value_f64), avg(value_f64) FROM telemetry_data \
         WHERE device_id = $1 AND sensor = $2 GROUP BY 1 ORDER BY 1";
    for (name, seconds) in [("days", 86_400), ("hours", 3_600)] {
        let query = chart(END_MS, 364, seconds);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ASKED {
            let started = Instant::now();
            let answer = store.aggregates(&query).await.map_err(failed)?;
            ours.push(started.elapsed().as_secs_f64() * 1000.0);
            expect("a chart of a year", answer.buckets.len() > 360)?;
            let started = Instant::now();
            let select = sqlx::query(group_by)
                .bind(query.device.as_str())
                .bind(query.sensor.as_str())
                .bind(seconds as f64);
            select.fetch_all(&mut connection).await.map_err(failed)?;
            theirs.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        let name = format!("soak/chart of a year by {name}");
        let beside = "GROUP BY of its readings";
        emit(Figure::beside(
            name,
            median(ours),
            "ms",
            beside,
            median(theirs),
        ));
    }
    Ok(())
}

/// Has all go that is older than is kept. Returns how many rows.
async fn retain(store: &Arc<dyn Store>) -> Result<u64, Failure> {
    store.set_retention(Some(KEPT)).await.map_err(failed)?;
    let kept_ms = u64::try_from(KEPT.as_millis()).expect("a few days");
    let before = ObservedAt::from_millis((END_MS - kept_ms).cast_signed());
    let (mut gone, mut after) = (0, None);
    loop {
        let expired = store.expire(before, after.as_ref()).await;
        let expired = expired.map_err(failed)?;
        gone += expired.rows;
        if expired.next.is_none() && !expired.is_cut {
            return Ok(gone);
        }
        after = expired.next;
    }
}

fn expect(what: &str, holds: bool) -> Result<(), Failure> {
    match holds {
        true => Ok(()),
        false => Err(failed(format!("the database does not give {what}"))),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Class::Storage, "soak the database").because(error)
}
