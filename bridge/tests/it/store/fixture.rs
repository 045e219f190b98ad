//! A database of its own for each test, and values to put into it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bridge::store::fleet::{Author, Labelled};
use bridge::store::labels::{LabelChanges, Labels};
use bridge::store::location::Location;
use bridge::store::{Delivery, Order, Origin, Store, StoredReading, TelemetryQuery};
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, Epoch, Hlc, ObservedAt, Quality, Row, SensorName, SeqRange, Value};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tempfile::TempDir;

/// A fresh database.
#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    location: Location,
    /// The URL, when it is one.
    pub(crate) url: Option<String>,
    /// Whether [`Self::open`] brings the schema up to date.
    pub(crate) migrates: bool,
}

impl Fixture {
    /// A migrated store; several may be open at once.
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        let store = self.open_unmigrated().await;
        if self.migrates {
            store.migrate().await.unwrap();
        }
        store
    }

    /// The same, as it is.
    pub(crate) fn unmigrated(&self) -> Self {
        Self {
            migrates: false,
            ..self.clone()
        }
    }

    pub(crate) async fn open_unmigrated(&self) -> Arc<dyn Store> {
        self.location.open().await.unwrap()
    }

    /// Where an embedded store's file is.
    pub(crate) fn file(&self) -> &Path {
        match &self.location {
            Location::Embedded(path) => path,
            _ => panic!("a server has no file"),
        }
    }

    /// A connection to the server, beside the store.
    pub(crate) async fn connection(&self) -> PgConnection {
        let url = self.url.as_ref().unwrap();
        PgConnection::connect(url).await.unwrap()
    }

    /// What a query finds in its first column, beside the store.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Location::Embedded(path) = &self.location {
            let file = libsql::Builder::new_local(path).build().await.unwrap();
            let mut rows = file.connect().unwrap().query(sql, ()).await.unwrap();
            while let Some(row) = rows.next().await.unwrap() {
                found.push(row.get(0).unwrap());
            }
            return found;
        }
        let query = AssertSqlSafe(sql.to_owned());
        let rows = self.connection().await.fetch_all(query).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Runs SQL beside the store.
    pub(crate) async fn sql(&self, sql: &str) {
        if let Location::Embedded(path) = &self.location {
            let file = libsql::Builder::new_local(path).build().await.unwrap();
            file.connect().unwrap().execute_batch(sql).await.unwrap();
            return;
        }
        self.connection()
            .await
            .execute(AssertSqlSafe(sql.to_owned()))
            .await
            .unwrap();
    }
}

pub(crate) fn embedded<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("bridge.db");
    let fixture = Fixture {
        location: Location::Embedded(path),
        url: None,
        migrates: true,
    };
    runtime().block_on(test(fixture));
}

pub(crate) fn postgres<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    let admin = std::env::var("TIDELINE_TEST_POSTGRES_URL").expect(
        "TIDELINE_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`, \
         which starts a PostgreSQL",
    );
    on_server(&admin, test);
}

/// Without a cluster to test against there is nothing to run: none can be had on most machines.
pub(crate) fn cockroach<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    if let Ok(admin) = std::env::var("TIDELINE_TEST_COCKROACH_URL") {
        on_server(&admin, test);
    }
}

/// A PostgreSQL database that is made with these options.
pub(crate) fn postgres_with<F: Future<Output = ()> + Send + 'static>(
    options: &'static str,
    test: fn(Fixture) -> F,
) {
    let admin = std::env::var("TIDELINE_TEST_POSTGRES_URL").expect(
        "TIDELINE_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`, \
         which starts a PostgreSQL",
    );
    on_server_with(&admin, options, test);
}

fn on_server<F: Future<Output = ()> + Send + 'static>(admin: &str, test: fn(Fixture) -> F) {
    on_server_with(admin, "", test);
}

fn on_server_with<F: Future<Output = ()> + Send + 'static>(
    admin: &str,
    options: &'static str,
    test: fn(Fixture) -> F,
) {
    let name = format!("tideline_test_{:016x}", rand::random::<u64>());
    runtime().block_on(async {
        let mut connection = PgConnection::connect(admin).await.unwrap();
        let create = format!("CREATE DATABASE {name} {options}");
        connection.execute(AssertSqlSafe(create)).await.unwrap();
        let url = with_database(admin, &name);
        let fixture = Fixture {
            location: Location::parse(&url).unwrap(),
            url: Some(url),
            migrates: true,
        };
        let result = tokio::spawn(test(fixture)).await;
        // PostgreSQL: connections that a failed test left open must not keep the database.
        let drop_it = format!("DROP DATABASE {name} WITH (FORCE)");
        if connection.execute(AssertSqlSafe(drop_it)).await.is_err() {
            let drop_it = format!("DROP DATABASE {name} CASCADE");
            connection.execute(AssertSqlSafe(drop_it)).await.unwrap();
        }
        if let Err(error) = result {
            std::panic::resume_unwind(error.into_panic());
        }
    });
}

/// The admin's URL with another database.
pub(crate) fn with_database(url: &str, name: &str) -> String {
    let (url, query) = match url.split_once('?') {
        Some((url, query)) => (url, format!("?{query}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = url.split_once("://").unwrap();
    let authority = rest.split('/').next().unwrap();
    format!("{scheme}://{authority}/{name}{query}")
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

pub(crate) fn sensor(name: &str) -> SensorName {
    name.parse().unwrap()
}

pub(crate) fn epoch(number: u64) -> Epoch {
    Epoch::try_from(number).unwrap()
}

pub(crate) fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

pub(crate) fn ranges(set: &[(u64, u64)]) -> Vec<SeqRange> {
    set.iter()
        .map(|&(first, last)| range(first, last))
        .collect()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

pub(crate) fn alice(seconds: i64) -> Author {
    Author {
        name: "alice".to_owned(),
        at: at(seconds),
    }
}

/// Sets labels of a device, or with an empty value removes them. Returns whether its configuration
/// has changed.
pub(crate) async fn label(store: &dyn Store, name: &str, pairs: &[(&str, &str)]) -> bool {
    let changes: LabelChanges = pairs
        .iter()
        .map(|(key, value)| {
            let value = (!value.is_empty()).then(|| value.parse().unwrap());
            (key.parse().unwrap(), value)
        })
        .collect();
    let (device, author) = (device(name), alice(1_000));
    let done = store.change_labels(&device, &changes, &author).await;
    match done.unwrap() {
        Labelled::Done { is_configured, .. } => is_configured,
        Labelled::TooMany => panic!("too many labels"),
    }
}

pub(crate) fn at(seconds: i64) -> ReceivedAt {
    ReceivedAt::from_micros(seconds * 1_000_000)
}

/// A reading of the first sensor whose time, clock and value follow from its sequence.
pub(crate) fn row(seq: u64) -> Row {
    Row {
        sensor: 0,
        observed_at: ObservedAt::from_millis(1_700_000_000_000 + seq as i64 * 1000),
        hlc: Hlc::new(1_700_000_000_000 + seq * 1000, 0),
        seq,
        quality: Quality::Good,
        value: Value::F64(seq as f64 / 10.0),
    }
}

pub(crate) fn rows(first: u64, last: u64) -> Vec<Row> {
    (first..=last).map(row).collect()
}

/// A delivery of epoch 7 with one sensor, `temperature`.
pub(crate) fn delivery(from: &str, rows: Vec<Row>) -> Delivery {
    Delivery {
        device: device(from),
        batch: Batch {
            epoch: epoch(7),
            sensors: vec![sensor("temperature")],
            rows,
        },
        rejected: Vec::new(),
        received_at: at(1_700_100_000),
        origin: Origin::Device,
    }
}

/// Everything that is stored of a device, oldest first.
pub(crate) async fn everything(store: &dyn Store, of: &str) -> Vec<StoredReading> {
    let query = TelemetryQuery {
        device: device(of),
        sensor: None,
        from: ObservedAt::from_micros(i64::MIN),
        to: ObservedAt::from_micros(i64::MAX),
        limit: usize::MAX,
        order: Order::OldestFirst,
    };
    store.telemetry(&query).await.unwrap()
}

/// Checks that each committed range of a device holds what its digest says, and that ranges of one
/// kind are disjoint.
pub(crate) async fn check_ledger(store: &dyn Store, of: &str) {
    let ledger = store.ledger(&device(of)).await.unwrap();
    for record in &ledger.epochs {
        for kind in 0..4 {
            let of_kind = record.ranges.iter().filter(|r| number(r.kind) == kind);
            let mut last = 0;
            for stored in of_kind {
                assert!(stored.range.first() > last, "ranges overlap: {record:?}");
                last = stored.range.last();
            }
        }
        for stored in record.ranges.iter().filter(|r| number(r.kind) == 0) {
            let content = store
                .content(&ledger.device, record.epoch, stored.range)
                .await
                .unwrap();
            assert!(content.missing.is_empty(), "{stored:?}: {content:?}");
            assert_eq!(content.rows, stored.range.count(), "{stored:?}");
            assert_eq!(content.digest, stored.digest, "{stored:?}");
        }
    }
}

fn number(kind: bridge::store::Kind) -> u8 {
    use bridge::store::Kind;
    match kind {
        Kind::Committed => 0,
        Kind::Quarantined(_) => 1,
        Kind::Evicted => 2,
        Kind::Discarded { .. } => 3,
    }
}
