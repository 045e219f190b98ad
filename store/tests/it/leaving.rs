//! How old readings leave their partitions, on PostgreSQL: whoever is killed at whichever statement, beside whom ever, and whatever times
//! devices send; each is counted once, and nobody makes and drops tables all day long.

use std::sync::Arc;
use std::time::Duration;

use schema::{ObservedAt, Row};
use sqlx::{Connection as _, Executor as _};
use store::Store;
use store::verify::verify;
use testkit::database::*;
use testkit::proxy::Proxy;
use testkit::readings::*;

use super::partitions::{DAY, now, number, of, partitions, row_count};

/// As long as all were dropped.
const A_DAY_LATER: &str =
    "UPDATE rounds SET begun_at = begun_at - interval '1 day' WHERE name = 'old_partitions'";

async fn keeping(store: &Arc<dyn Store>, days: u64) {
    let kept = Duration::from_secs(days * 86_400);
    store.set_retention(Some(kept)).await.unwrap();
}

fn before(now: i64, days: i64) -> ObservedAt {
    ObservedAt::from_micros(now - days * DAY)
}

async fn check_books(store: &dyn Store, name: &str, before: ObservedAt) {
    row_count(store, name).await;
    let ledger = store.ledger(&device(name)).await.unwrap();
    let found = verify(store, &ledger, Some(before), true).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
}

/// A partition of these times.
async fn make(fixture: &Fixture, name: &str, from: i64, to: i64) {
    let bound = |at: i64| format!("to_timestamp({}.0)", at / 1_000_000);
    let (from, to) = (bound(from), bound(to));
    let make = format!(
        "DO $$ BEGIN EXECUTE format('CREATE TABLE {name} PARTITION OF telemetry_data \
         FOR VALUES FROM (%L) TO (%L)', {from}, {to}); END $$"
    );
    fixture.sql(&make).await;
}

/// As where what was a plain table, or a wrong clock's year, is among months.
#[test]
fn what_is_old_in_a_long_partition_goes_one_by_one_whatever_months_are_before_it() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await / 1_000_000 * 1_000_000;
        make(&fixture, "a_month", now - 330 * DAY, now - 300 * DAY).await;
        make(&fixture, "a_year", now - 300 * DAY, now - 60 * DAY).await;
        let month: Vec<i64> = (0..10).map(|at| now - 330 * DAY + 3 * at * DAY).collect();
        let year: Vec<i64> = (0..24).map(|at| now - 300 * DAY + 10 * at * DAY).collect();
        for name in ["d", "e"] {
            store.ingest(&[of(name, 1, &month)]).await.unwrap();
            store.ingest(&[of(name, 11, &year)]).await.unwrap();
        }
        keeping(&store, 100).await;
        let before = before(now, 100);
        // Of 10, 20 … 300 days ago those that are older than a hundred.
        let old = year.iter().filter(|at| **at < before.micros()).count() as u64;
        assert_eq!(old, 20);

        // Somebody reads, and no month can leave: it is not taken apart, and the year is not kept because of it.
        let mut reader = fixture.connection().await;
        let mut held = reader.begin().await.unwrap();
        held.execute("SELECT count(*) FROM telemetry_data")
            .await
            .unwrap();
        store.expire(before, None).await.unwrap();
        held.rollback().await.unwrap();
        for name in ["d", "e"] {
            assert_eq!(row_count(&*store, name).await, (34, 34 - old, Some(old)));
            check_books(&*store, name, before).await;
        }
        let whole = "SELECT count(*)::TEXT FROM a_month";
        assert_eq!(number(&fixture, whole).await, 20);

        store.expire(before, None).await.unwrap();
        let made = partitions(&fixture).await;
        assert!(!made.contains(&"a_month".to_owned()), "{made:?}");
        assert!(made.contains(&"a_year".to_owned()), "{made:?}");
        // A late reading has a month made before it once more, which stays for the day; the year goes on.
        make(&fixture, "a_late_month", now - 330 * DAY, now - 300 * DAY).await;
        store.ingest(&[of("d", 35, &month[..1])]).await.unwrap();
        let later = ObservedAt::from_micros(before.micros() + 10 * DAY);
        store.expire(later, None).await.unwrap();
        assert_eq!(row_count(&*store, "d").await, (35, 4, Some(31)));
        assert_eq!(row_count(&*store, "e").await, (34, 3, Some(31)));
        for name in ["d", "e"] {
            check_books(&*store, name, later).await;
        }
        // When all of it is old it leaves as a whole.
        fixture.sql(A_DAY_LATER).await;
        let end = ObservedAt::from_micros(now - 60 * DAY);
        store.expire(end, None).await.unwrap();
        let made = partitions(&fixture).await;
        assert!(!made.iter().any(|name| name.starts_with("a_")), "{made:?}");
        assert_eq!(row_count(&*store, "d").await, (35, 0, Some(35)));
        assert_eq!(row_count(&*store, "e").await, (34, 0, Some(34)));
    });
}

/// A clock that is years behind what is kept.
#[test]
fn what_is_late_for_ever_has_its_partition_made_and_dropped_once_a_day() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        keeping(&store, 100).await;
        let before = before(now, 100);
        let first_of_2023 = 1_672_531_200_000_000;
        let oid = "SELECT coalesce(to_regclass('telemetry_data_2023')::OID::TEXT, '0')";
        let mut seq = 0;
        let mut late = async |store: &Arc<dyn Store>| {
            seq += 1;
            let one = of("d", seq, &[first_of_2023 + seq as i64 * 1_000_000]);
            let ingested = store.ingest(&[one]).await.unwrap();
            assert_eq!(ingested.rows.inserted, 1, "it is committed, however late");
            store.expire(before, None).await.unwrap();
            seq
        };
        // What nobody has looked at for a day leaves at once.
        late(&store).await;
        assert_eq!(fixture.texts(oid).await, ["0"]);
        assert_eq!(row_count(&*store, "d").await, (1, 0, Some(1)));
        // From then on it stays for the day, whichever bridge looks.
        let mut seen = Vec::new();
        for round in 0..6 {
            let other = fixture.open().await;
            keeping(&other, 100).await;
            let sent = late([&store, &other][round % 2]).await;
            seen.extend(fixture.texts(oid).await);
            assert_eq!(row_count(&*store, "d").await, (sent, sent - 1, Some(1)));
            check_books(&*store, "d", before).await;
            assert!(partitions(&fixture).await.len() <= 209);
        }
        seen.dedup();
        assert!(seen.len() == 1 && seen[0] != "0", "made anew: {seen:?}");
        // A minute less than a day, a day, and a time that has not come, as where the database's clock was wrong.
        for (begun, leaves) in [
            ("now() - interval '23 hours 59 minutes'", false),
            ("now() - interval '1 day'", true),
            ("now() + interval '1 hour'", true),
        ] {
            let set = format!("UPDATE rounds SET begun_at = {begun} WHERE name = 'old_partitions'");
            fixture.sql(&set).await;
            let sent = late(&store).await;
            let is_gone = fixture.texts(oid).await == ["0"];
            assert_eq!(is_gone, leaves, "{begun}");
            if leaves {
                assert_eq!(row_count(&*store, "d").await, (sent, 0, Some(sent)));
            }
            check_books(&*store, "d", before).await;
        }
        // Where rows go to the day, that they do; their partition stays.
        keeping(&store, 30).await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            let sent = late(&store).await;
            seen.extend(fixture.texts(oid).await);
            assert_eq!(row_count(&*store, "d").await, (sent, 0, Some(sent)));
        }
        seen.dedup();
        assert!(seen.len() == 1 && seen[0] != "0", "made anew: {seen:?}");
    });
}

/// A month of readings that is too old, and the time before which it is.
struct Old {
    start: i64,
    before: ObservedAt,
    sent: u64,
}

impl Old {
    async fn new(fixture: &Fixture) -> Self {
        let now = now(fixture).await;
        let start = "SELECT (extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC' - interval '200 days')) \
             * 1000000)::INT8::TEXT";
        // More devices than one statement announces to.
        let many = "INSERT INTO devices (device_id, first_seen, last_seen, online, expired) \
             SELECT 'x' || x, now(), now(), false, 0 FROM generate_series(1, 1001) AS x";
        fixture.sql(many).await;
        // What the test itself does beside what was cut off and is not over yet.
        let plainly = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I \
             SET default_transaction_isolation = %L', current_database(), 'read committed'); END $$";
        fixture.sql(plainly).await;
        Self {
            start: number(fixture, start).await,
            before: before(now, 150),
            sent: 0,
        }
    }

    /// Ten readings more of each device, which nothing was said of.
    async fn fill(&mut self, fixture: &Fixture, store: &Arc<dyn Store>) {
        let first = self.sent + 1;
        let rows = (0..10).map(|at| Row {
            observed_at: ObservedAt::from_micros(self.start + (first + at) as i64 * 60_000_000),
            ..row(first + at)
        });
        let rows: Vec<Row> = rows.collect();
        for name in ["d", "e"] {
            let one = delivery(name, rows.clone());
            assert_eq!(store.ingest(&[one]).await.unwrap().rows.inserted, 10);
        }
        self.sent += 10;
        fixture
            .sql(
                "DELETE FROM rounds WHERE name = 'old_partitions'; \
                 UPDATE devices SET expired_before = NULL",
            )
            .await;
    }

    /// Holds at any moment.
    async fn check(&self, fixture: &Fixture, store: &dyn Store, cut: u64) {
        for name in ["d", "e"] {
            let (committed, rows, expired) = row_count(store, name).await;
            assert_eq!(committed, self.sent, "cut {cut}");
            let gone = expired.unwrap();
            assert!(
                rows <= 10 && gone + rows == committed,
                "cut {cut}: {rows} {gone}"
            );
            check_books(store, name, self.before).await;
        }
        // Nothing leaves that was not announced to all.
        let unsaid = "SELECT count(*)::TEXT FROM devices AS d \
             WHERE EXISTS (SELECT 1 FROM telemetry_data_leaving) \
                 AND coalesce(d.expired_before <= (SELECT max(l.observed_at) FROM telemetry_data_leaving AS l), true)";
        assert_eq!(number(fixture, unsaid).await, 0, "cut {cut}");
    }

    /// By one bridge or by two at once, until all is gone; counted once.
    async fn finish(&self, fixture: &Fixture, stores: [&Arc<dyn Store>; 2], cut: u64) {
        let [one, two] = stores;
        let is_there = "SELECT ((SELECT count(*) FROM telemetry_data) \
             + (SELECT count(*) FROM telemetry_data_leaving))::TEXT";
        for _ in 0..100 {
            match cut % 3 {
                0 => drop(one.expire(self.before, None).await.unwrap()),
                1 => {
                    one.make_partitions().await.unwrap();
                    self.check(fixture, &**one, cut).await;
                    one.expire(self.before, None).await.unwrap();
                }
                _ => {
                    let finish = async {
                        two.make_partitions().await.unwrap();
                        two.expire(self.before, None).await.unwrap();
                    };
                    let (first, ()) = tokio::join!(one.expire(self.before, None), finish);
                    first.unwrap();
                }
            }
            self.check(fixture, &**two, cut).await;
            if number(fixture, is_there).await == 0 {
                for name in ["d", "e"] {
                    let counts = row_count(&**one, name).await;
                    assert_eq!(counts, (self.sent, 0, Some(self.sent)), "cut {cut}");
                }
                return;
            }
        }
        panic!("cut {cut}: it does not come to an end");
    }
}

/// Cuts a bridge's connections behind the `cut`th thing that it asks for. Returns whether it asked for so much.
async fn is_cut(proxy: &Proxy, cut: u64, work: impl Future<Output = ()>) -> bool {
    let lost = proxy.lost_answers();
    proxy.lose_answer_after(cut);
    work.await;
    proxy.lose_answer_after(u64::MAX - 1);
    proxy.lost_answers() > lost
}

#[test]
fn whoever_is_cut_off_at_any_statement_while_a_month_leaves_is_gone_on_from() {
    postgres(|fixture| async move {
        let (one, two) = (fixture.open().await, fixture.open().await);
        let mut old = Old::new(&fixture).await;
        let (proxy, location) = behind_proxy(fixture.url.as_ref().unwrap()).await;
        for store in [&one, &two] {
            keeping(store, 150).await;
        }
        let mut cut = 0;
        loop {
            old.fill(&fixture, &one).await;
            let killed = location.open().await.unwrap();
            // Tried again where it is cut, as what is deleted behind the partitions is; these are not.
            keeping(&killed, 150).await;
            let expire = async {
                let _ = killed.expire(old.before, None).await;
            };
            assert!(is_cut(&proxy, cut, expire).await);
            let noted = "SELECT count(*)::TEXT FROM rounds WHERE name = 'old_partitions'";
            let is_over = number(&fixture, noted).await > 0;
            old.check(&fixture, &*one, cut).await;
            old.finish(&fixture, [&one, &two], cut).await;
            killed.close().await;
            if is_over {
                break;
            }
            cut += 1;
        }
        // Looks at the tables, two announcements, two changes, a count and a note.
        assert!(cut > 30, "only {cut} statements");
    });
}

#[test]
fn whoever_is_cut_off_while_a_month_is_counted_is_gone_on_from() {
    postgres(|fixture| async move {
        let (one, two) = (fixture.open().await, fixture.open().await);
        let mut old = Old::new(&fixture).await;
        let (proxy, location) = behind_proxy(fixture.url.as_ref().unwrap()).await;
        for store in [&one, &two] {
            keeping(store, 150).await;
        }
        let mut cut = 0;
        loop {
            old.fill(&fixture, &one).await;
            // Who counts is held up once.
            fixture
                .sql(
                    "CREATE OR REPLACE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS \
                         $$ BEGIN RAISE EXCEPTION 'held' USING ERRCODE = '55P03'; END $$; \
                     CREATE TRIGGER held BEFORE UPDATE OF expired ON devices FOR EACH ROW \
                         WHEN (OLD.expired IS DISTINCT FROM NEW.expired) EXECUTE FUNCTION held()",
                )
                .await;
            one.expire(old.before, None).await.unwrap();
            fixture.sql("DROP TRIGGER held ON devices").await;
            let leaving = "SELECT count(*)::TEXT FROM telemetry_data_leaving";
            assert_eq!(number(&fixture, leaving).await, 20);
            let killed = location.open().await.unwrap();
            let was_cut = is_cut(&proxy, cut, async {
                let _ = killed.make_partitions().await;
            });
            let was_cut = was_cut.await;
            old.check(&fixture, &*one, cut).await;
            old.finish(&fixture, [&one, &two], cut).await;
            killed.close().await;
            if !was_cut {
                break;
            }
            cut += 1;
        }
        assert!(cut > 10, "only {cut} statements");
    });
}
