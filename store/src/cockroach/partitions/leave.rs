//! Old partitions out: whole, each row counted as expired of its device.
//!
//! ```text
//! telemetry_data ── one commit ──► telemetry_data_leaving ── one commit: counted per device, dropped ──►
//! ```
//!
//! Between the two its rows are asked for by nobody but the books, which count them as rows still
//! ([`crate::ledger::query`]); so `committed = rows + superseded + expired` holds at any moment, and whoever is interrupted goes on with
//! what lies there. The first commit waits for the table a second at most, and is tried again in the next
//! round. The second may count for long, and is in nobody's way.
//!
//! All that are old leave together, once a day: whose clock is years behind has a partition made for its readings, and must
//! not have it dropped and made again in each round.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::super::super::StoreError;
use super::super::super::sqlstate::Verdict;
use super::super::arguments::Micros;
use super::super::dialect::Purpose;
use super::super::failed::Failed;
use super::super::{Cockroach, rows};
use super::owner::{give, grant};
use super::{Found, Layout, Partition, bounds, change, look_to_change};

/// One bridge at a time counts.
const LOCK: &str = "LOCK TABLE telemetry_data_leaving IN SHARE UPDATE EXCLUSIVE MODE";

const LEAVING: &str = "SELECT i.inhrelid::regclass::TEXT FROM pg_inherits AS i \
     WHERE i.inhparent = to_regclass('telemetry_data_leaving')";

/// As if each had been deleted when it was too old. Devices do not go.
/// In the order of the devices, as all lock them.
const COUNT: &str = "WITH g AS MATERIALIZED ( \
         SELECT t.device_id, count(*) AS gone, max(t.observed_at) AS newest \
         FROM telemetry_data_leaving AS t GROUP BY t.device_id), \
     held AS MATERIALIZED (SELECT d.device_id FROM devices AS d JOIN g ON g.device_id = d.device_id \
         ORDER BY d.device_id FOR UPDATE OF d) \
     UPDATE devices SET expired = devices.expired + g.gone, \
         expired_before = greatest(devices.expired_before, g.newest + interval '1 microsecond') \
     FROM g JOIN held ON held.device_id = g.device_id \
     WHERE devices.device_id = g.device_id RETURNING g.gone";

/// Says of some devices that what was observed before a time is gone, or will be in a moment: ahead of it, so that nobody
/// misses a row of a month that has left and is not counted yet, nor reads its rollups.
const GONE: &str = "UPDATE devices SET expired_before = $1 WHERE device_id IN ( \
         SELECT d.device_id FROM devices AS d \
         WHERE d.expired_before IS NULL OR d.expired_before < $1 \
         ORDER BY d.device_id LIMIT $2 FOR UPDATE)";

/// Devices of one such statement.
const GONE_DEVICES: i64 = 1_000;

/// Whether all that were old have left within a day, by the database's clock.
const LEFT_LATELY: &str = "SELECT EXISTS (SELECT 1 FROM rounds AS r \
     WHERE r.name = 'old_partitions' AND r.begun_at <= now() \
         AND r.begun_at > now() - interval '1 day')";

const NOTE_LEFT: &str = "INSERT INTO rounds (name, begun_at, place) \
     VALUES ('old_partitions', now(), '') \
     ON CONFLICT (name) DO UPDATE SET begun_at = excluded.begun_at";

/// Nobody else has a partition leave meanwhile, and nothing leaves.
const LOCK_PLACE: &str = "LOCK TABLE telemetry_data_leaving IN ACCESS EXCLUSIVE MODE";

const DROP_PLACE: &str = "DROP TABLE telemetry_data_leaving";
const MAKE_PLACE: &str = "CREATE TABLE telemetry_data_leaving (LIKE telemetry_data) \
     PARTITION BY RANGE (observed_at)";

/// Makes the place anew, for a table as it is now, whatever columns it has got since. Who reads the table counts its rows.
pub(super) async fn make_place(
    connection: &mut PgConnection,
    found: &Found,
) -> Result<(), sqlx::Error> {
    connection.execute(DROP_PLACE).await?;
    connection.execute(MAKE_PLACE).await?;
    give(connection, found, "telemetry_data_leaving").await?;
    grant(connection, "telemetry_data_leaving", "telemetry_data").await
}

/// What came of having the oldest partition leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// One is on its way.
    One,
    /// There is none that is old.
    All,
    /// It is not a day yet since the others have left.
    Lately,
}

impl Cockroach {
    /// Drops partitions that end at a time or before it, unless that was done within a day. Returns how many rows went.
    /// Where they may not be dropped, rows are to be deleted.
    pub(in super::super) async fn drop_old(&self, before: Micros) -> Result<u64, StoreError> {
        let (mut rows, mut is_first) = (0, true);
        loop {
            let left = async {
                rows += self.drop_leaving().await?;
                let left = self.detach_oldest(before, is_first).await?;
                if left == Left::All && !is_first {
                    self.note_left().await?;
                }
                Ok(left)
            };
            match left.await {
                Ok(Left::One) => is_first = false,
                Ok(Left::All) => {
                    self.partitions.may_drop(true);
                    return Ok(rows);
                }
                Ok(Left::Lately) => return Ok(rows),
                Err(failed) => {
                    if let Some(error) = self.hindered(failed)?
                        && self.partitions.may_drop(false)
                    {
                        tracing::warn!(
                            error = error.explained(),
                            "old partitions cannot be dropped: their rows are deleted one by one; \
                             grant the role of the owner of telemetry_data to the bridge's"
                        );
                    }
                    return Ok(rows);
                }
            }
        }
    }

    /// Counts and drops what has left, whatever is to be kept now.
    pub(in super::super) async fn finish_leaving(&self) -> Result<(), StoreError> {
        match self.drop_leaving().await {
            Ok(_) => Ok(()),
            // That it may not be dropped, retention says.
            Err(failed) => self.hindered(failed).map(drop),
        }
    }

    /// Why a partition stays: nothing where somebody reads or writes, or another bridge is at it, and the next round will
    /// do; what the database says where it may not leave.
    fn hindered(&self, failed: Failed) -> Result<Option<StoreError>, StoreError> {
        let verdict = failed.verdict;
        if verdict == Verdict::Conflict {
            tracing::debug!("an old partition stays until the next round");
            return Ok(None);
        }
        let error = self.budget().given_up(failed);
        match verdict {
            Verdict::Refused | Verdict::Refusal => Ok(Some(error)),
            _ => Err(error),
        }
    }

    async fn note_left(&self) -> Result<(), Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let noted = lease.connection.execute(NOTE_LEFT).await.map(drop);
        lease.end(Ok(noted)).await
    }

    /// Has the oldest partition that is old leave; the first of them a day after the last ones.
    async fn detach_oldest(&self, before: Micros, is_first: bool) -> Result<Left, Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let announced = announce(&mut lease.connection, before, is_first).await;
        let (left, announced_to) = lease.end(Ok(announced)).await?;
        if left != Left::One {
            return Ok(left);
        }
        lease = self.cluster.lease(Purpose::Migrate).await?;
        let detached = async {
            let changing = change(&mut lease.connection, LOCK_PLACE).await?;
            let Some((mut transaction, found)) = changing else {
                return Ok(None);
            };
            let Some(Partition { name, period, .. }) = oldest(&mut transaction, before).await?
            else {
                transaction.rollback().await?;
                return Ok(None);
            };
            let is_announced = period.to <= announced_to;
            if !is_announced || !transaction.fetch_all(LEAVING).await?.is_empty() {
                // Another bridge was quicker: what it has put there goes first, and the next is said to go before it does.
                transaction.rollback().await?;
                return Ok(Some(None));
            }
            make_place(&mut transaction, &found).await?;
            let detach = format!("ALTER TABLE telemetry_data DETACH PARTITION {name}");
            transaction.execute(AssertSqlSafe(detach)).await?;
            // Every row is within: nothing is looked at.
            let attach = format!(
                "ALTER TABLE telemetry_data_leaving ATTACH PARTITION {name} \
                 FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
            );
            transaction.execute(AssertSqlSafe(attach)).await?;
            transaction.commit().await?;
            Ok(Some(Some(name)))
        };
        let detached = detached.await;
        let detached = lease.end(Ok(detached)).await?;
        if let Some(Some(partition)) = &detached {
            self.partitions.set(None);
            tracing::info!(partition, "a partition is older than readings are kept");
        }
        Ok(detached.map_or(Left::All, |_| Left::One))
    }

    /// Counts and drops what leaves.
    async fn drop_leaving(&self) -> Result<u64, Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let dropped = async {
            let Some((mut transaction, _)) = change(&mut lease.connection, LOCK).await? else {
                return Ok(0);
            };
            let leaving = transaction.fetch_all(LEAVING).await?;
            let mut gone = 0;
            for row in &leaving {
                // One, as there is one place.
                for counted in transaction.fetch_all(COUNT).await? {
                    gone += rows::number(&counted, 0)?;
                }
                let name: String = row.try_get(0)?;
                let drop_it = format!("DROP TABLE {name}");
                transaction.execute(AssertSqlSafe(drop_it)).await?;
            }
            transaction.commit().await?;
            Ok(gone)
        };
        let dropped = dropped.await;
        lease.end(Ok(dropped)).await
    }
}

/// The oldest partition that ends at a time or before it.
async fn oldest(
    connection: &mut PgConnection,
    before: Micros,
) -> Result<Option<Partition>, sqlx::Error> {
    let there = bounds(connection).await?.into_iter();
    let old = there.filter(|there| there.period.to <= before.0);
    Ok(old.min_by_key(|there| there.period.from))
}

/// Says that the oldest partition goes, if there is one that may. Returns also until when readings are said to be gone.
async fn announce(
    connection: &mut PgConnection,
    before: Micros,
    is_first: bool,
) -> Result<(Left, i64), sqlx::Error> {
    let found = look_to_change(connection).await?;
    let Some(Partition { period, .. }) = (match found {
        Some(found) if found.layout == Layout::Ours => oldest(connection, before).await?,
        _ => None,
    }) else {
        return Ok((Left::All, i64::MIN));
    };
    if is_first && connection.fetch_one(LEFT_LATELY).await?.try_get(0)? {
        return Ok((Left::Lately, i64::MIN));
    }
    loop {
        let gone = sqlx::query(GONE).bind(Micros(period.to)).bind(GONE_DEVICES);
        let devices = connection.execute(gone).await?.rows_affected();
        if devices < GONE_DEVICES.unsigned_abs() {
            return Ok((Left::One, period.to));
        }
    }
}
