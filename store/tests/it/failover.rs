//! A primary and a hot standby in one URL, and the standby promoted under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::location::Location;
use store::{Store, StoreError};
use testkit::database::runtime;
use testkit::readings::*;
use testkit::wait;
use tokio::task::JoinSet;

use crate::own_server::Postgres;
use crate::report::report;

/// A slow machine's time for what takes a second or two.
const GENEROUS: Duration = Duration::from_secs(10);

async fn open(url: &str) -> Arc<dyn Store> {
    Location::parse(url).unwrap().open().await.unwrap()
}

#[test]
fn a_standby_is_left_for_its_primary_in_whatever_is_asked() {
    runtime().block_on(async {
        let primary = Postgres::primary().await;
        let standby = primary.standby().await;
        let store = open(&Postgres::url_of(&[&standby, &primary])).await;
        store.migrate().await.unwrap();
        store.check().await.unwrap();
        for part in 0..10u64 {
            let one = delivery("d", rows(part * 10 + 1, part * 10 + 10));
            store.ingest(&[one]).await.unwrap();
            assert_eq!(store.counts().await.unwrap().telemetry, part * 10 + 10);
            store.sample_clock().await.unwrap();
            store.probe().await.unwrap();
        }

        let store = open(&standby.url()).await;
        for refused in [
            store.check().await,
            store.probe().await,
            store.counts().await.map(drop),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
            assert!(error.help().contains("primary"));
        }
    });
}

#[test]
fn with_a_synchronous_standby_a_promotion_loses_nothing() {
    runtime().block_on(async {
        let primary = Postgres::primary().await;
        let standby = primary.standby().await;
        // What a database is set to does not weaken what devices are told.
        primary
            .sql(
                "ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf(); \
                 ALTER DATABASE postgres SET synchronous_commit = off",
            )
            .await;
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait::until("commits wait", async || {
            primary.number(synchronous).await == 1
        })
        .await;
        let store = open(&Postgres::url_of(&[&primary, &standby])).await;
        store.migrate().await.unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            let acknowledged = Arc::clone(&acknowledged);
            writers.spawn(async move {
                let name = format!("device-{writer}");
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let one = delivery(&name, rows(last + 1, last + 20));
                    let ingested = store.ingest(&[one]).await.unwrap();
                    assert_eq!(
                        ingested.settled[0].committed,
                        ranges(&[(last + 1, last + 20)])
                    );
                    last += 20;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                (name, last)
            });
        }
        let progress = async |count: u64| {
            let before = acknowledged.load(Ordering::Relaxed);
            wait::until("writes go on", async || {
                acknowledged.load(Ordering::Relaxed) >= before + count
            })
            .await;
        };
        progress(40).await;
        primary.crash();
        standby.sql("SELECT pg_promote()").await;
        let promoted = Instant::now();
        progress(4).await;
        let took = promoted.elapsed();
        assert!(took < GENEROUS, "{took:?}");
        progress(40).await;
        stop.store(true, Ordering::Relaxed);
        for (name, last) in writers.join_all().await {
            assert_eq!(everything(&*store, &name).await.len() as u64, last);
            check_ledger(&*store, &name).await;
        }
        store.probe().await.unwrap();
    });
}

#[test]
fn with_an_asynchronous_standby_the_ledger_shows_what_a_promotion_lost() {
    runtime().block_on(async {
        let primary = Postgres::primary().await;
        let standby = primary.standby().await;
        let store = open(&Postgres::url_of(&[&primary, &standby])).await;
        store.migrate().await.unwrap();
        let bring = async |first, last| {
            let one = delivery("press-7", rows(first, last));
            let ingested = store.ingest(&[one]).await.unwrap();
            assert_eq!(ingested.settled[0].committed, ranges(&[(first, last)]));
        };
        bring(1, 100).await;
        let caught_up = "SELECT count(*) FROM pg_stat_replication \
             WHERE replay_lsn = pg_current_wal_lsn()";
        wait::until("the standby has it", async || {
            primary.number(caught_up).await == 1
        })
        .await;
        standby
            .sql("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")
            .await;
        let alone = "SELECT count(*) FROM pg_stat_replication";
        wait::until("the standby is cut off", async || {
            primary.number(alone).await == 0
        })
        .await;
        bring(101, 130).await;
        primary.crash();
        standby.sql("SELECT pg_promote()").await;
        bring(131, 150).await;

        let said = report("press-7", &[], 150, 0);
        store.report(&[said]).await.unwrap();
        let ledger = store.ledger(&device("press-7")).await.unwrap();
        let settlement = ledger.epochs[0].settle();
        assert_eq!(settlement.unaccounted, 30);
        assert_eq!(settlement.gaps.as_slice(), ranges(&[(101, 130)]));
        assert_eq!(settlement.balance.committed, 120);
        check_ledger(&*store, "press-7").await;
    });
}
