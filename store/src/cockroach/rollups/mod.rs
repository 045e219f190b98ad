//! Rollups on a cluster: hours that are over are given to them, and marked ones are computed, one device a transaction.
//!
//! ```text
//! advance   claim the device ─► move its active files' heads, so that whoever writes reads first how far marks go now
//!           ─► mark the hours in between that hold readings ─► rolled_until
//! compute   claim the device ─► read some of its marks ─► their readings ─► rollups ─► remove those very marks
//! ```
//!
//! A device is claimed by its row in `rollup_status`, which nobody locks who writes readings: who computes is in no
//! writer's way but for the moment in which it removes marks. Everything is locked in the order status, heads, devices,
//! marks, and marks in that of their keys, as writers do. Whose marks are computed next goes round ([`turns`]). [Why it is exact](../../../../docs/decisions/0028-rollups.md).

mod advance;
mod compute;
mod expire;
mod marks;
#[cfg(test)]
mod plans;
pub(super) mod read;
pub(super) mod sql;
mod turns;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use schema::DeviceId;
use schema::time::ReceivedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};

use super::super::StoreError;
use super::super::fleet::DEVICE_IDS;
use super::super::rollups::{
    ACTIVE, ADVANCE_DEVICES, Advanced, Computed, RollupStore, SETTLES, hour_from, hour_of,
    kept_from,
};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::sql_int;
use super::write;
use super::{Cockroach, rows};
use advance::Step;
pub(super) use marks::{marks, put_marks};
pub(super) use turns::Turns;

/// Devices with marks that one call looks at, and how long it computes hours of theirs before it looks up.
const DEVICES: usize = 200;
const CALL: Duration = Duration::from_secs(2);

/// Retention may take what is too old by so much later: until then the device is looked at again.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(2 * 3_600);

/// Which hours of a device have rollups, in microseconds: from the first, until the second. `None` until they have begun.
type Rolled = (Option<i64>, Option<i64>);

#[async_trait]
impl RollupStore for Cockroach {
    async fn advance_rollups(
        &self,
        now: ReceivedAt,
        after: Option<&DeviceId>,
    ) -> Result<Advanced, StoreError> {
        let until = Micros(hour_of(now.minus(SETTLES).micros()));
        let active = Micros(now.minus(ACTIVE).micros());
        let kept = self.retention.get().map(|kept| {
            let first = kept_from(now, kept).micros();
            Micros(first.saturating_add(hour_from(micros(LOOKED_AT_WITHIN))))
        });
        let (devices, due) = run!(self, &mut self.budget(), Purpose::RollUp, |connection| {
            let page = sqlx::query(DEVICE_IDS).bind(after.map_or("", DeviceId::as_str));
            let page = page.bind(sql_int(ADVANCE_DEVICES as u64));
            let devices = names(&connection.fetch_all(page).await?)?;
            connection
                .execute(sqlx::query(sql::ENTER).bind(&devices))
                .await?;
            if let Some(kept) = kept {
                let keep = sqlx::query(sql::KEEP_FROM).bind(&devices).bind(kept);
                connection.execute(keep).await?;
            }
            let due = sqlx::query(sql::DUE).bind(&devices).bind(until);
            let due = connection.fetch_all(due.bind(active)).await?;
            let due = due.iter().map(|row| rows::device(row, 0));
            Ok((devices, due.collect::<Result<_, _>>()?))
        })?;
        let due: Vec<DeviceId> = due;
        let mut advanced = Advanced {
            next: match devices.len() < ADVANCE_DEVICES {
                true => None,
                false => devices.last().and_then(|last| last.parse().ok()),
            },
            ..Advanced::default()
        };
        for device in due {
            let step = run!(self, &mut self.budget(), Purpose::RollUp, |connection| {
                let mut transaction = write::begin(connection, &self.dialect).await?;
                let step = advance::advance(self, &mut transaction, &device, until, active).await?;
                match step {
                    Step::Nothing => transaction.rollback().await?,
                    Step::Some | Step::All => transaction.commit().await?,
                }
                Ok(step)
            })?;
            advanced.devices += u64::from(step != Step::Nothing);
            advanced.has_more |= step == Step::Some;
        }
        Ok(advanced)
    }

    async fn compute_rollups(&self, rest: Duration) -> Result<Computed, StoreError> {
        let rest = micros(rest);
        let behind = self.turns.behind();
        let waiting = run!(self, &mut self.budget(), Purpose::RollUp, |connection| {
            let waiting = sqlx::query(sql::WAITING).bind(&behind).bind(rest);
            let waiting = waiting.bind(sql_int(DEVICES as u64));
            let found = connection.fetch_all(waiting).await?;
            let of = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
            found.iter().map(of).collect()
        })?;
        let waiting: Vec<(String, bool)> = waiting;
        let is_last = waiting.len() < DEVICES;
        let begun = Instant::now();
        let mut computed = Computed::default();
        for (device, has_rested) in &waiting {
            if begun.elapsed() >= CALL {
                computed.has_more = true;
                return Ok(computed);
            }
            self.turns.reached(device);
            if !has_rested || self.turns.is_put_off(device, Instant::now()) {
                continue;
            }
            match self.compute_some(device, rest).await {
                Ok(done) => {
                    self.turns.succeeded(device, done.has_more);
                    computed.hours += done.hours;
                }
                // Its hours are added up from the readings until then, and the others' are not.
                Err(error) if may_be_of_the_device(&error) => {
                    let pause = self.turns.failed(device, Instant::now());
                    tracing::warn!(
                        device,
                        error = error.explained(),
                        pause_s = pause.as_secs(),
                        "rollups of a device were not computed; its aggregates are added up from its readings"
                    );
                }
                // What was computed counts; where it is the database, the next call says so.
                Err(error) if computed.hours > 0 => {
                    tracing::debug!(
                        device,
                        error = error.explained(),
                        "rollups of a device were not computed"
                    );
                    computed.has_more = true;
                    return Ok(computed);
                }
                Err(error) => return Err(error),
            }
        }
        computed.has_more = match is_last {
            true => self.turns.begin_anew(),
            false => true,
        };
        Ok(computed)
    }

    async fn rollup_lag(&self) -> Result<Option<Duration>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let Some(row) = connection.fetch_optional(sqlx::query(sql::LAG)).await? else {
                return Ok(None);
            };
            let (now, marked) = (row.try_get::<Micros, _>(0)?, row.try_get::<Micros, _>(1)?);
            let lag = now.0.saturating_sub(marked.0).max(0);
            Ok(Some(Duration::from_micros(lag.unsigned_abs())))
        })
    }
}

impl Cockroach {
    /// Computes some of a device's hours. What is too slow is attempted once.
    async fn compute_some(&self, device: &str, rest: i64) -> Result<Computed, StoreError> {
        let mut budget = self.budget();
        loop {
            let attempted = attempt!(self, Purpose::RollUp, |connection| {
                let mut transaction = write::begin(connection, &self.dialect).await?;
                let done = compute::compute(&mut transaction, device, rest).await?;
                transaction.commit().await?;
                Ok(done)
            });
            match attempted {
                Ok(done) => return Ok(done),
                Err(failed) if failed.is_too_slow() => return Err(budget.given_up(failed)),
                Err(failed) => self.again(&mut budget, failed).await?,
            }
        }
    }
}

/// Whether the others may be computed all the same: nothing is known to be wrong with the database.
const fn may_be_of_the_device(error: &StoreError) -> bool {
    use StoreError::{Exhausted, Statement, Unreadable};
    matches!(
        error,
        Statement { .. } | Unreadable { .. } | Exhausted { .. }
    )
}

/// Claims a device's rollups until the transaction ends; `None` where somebody else has, or there are none.
async fn claim(connection: &mut PgConnection, device: &str) -> Result<Option<Rolled>, sqlx::Error> {
    let claim = sqlx::query(sql::CLAIM).bind(device);
    let Some(row) = connection.fetch_optional(claim).await? else {
        return Ok(None);
    };
    Ok(Some((time(&row, 0)?, time(&row, 1)?)))
}

/// The first hour of which nothing is gone, from when rollups begin and before when readings are gone.
fn first_kept(rolled_from: Option<i64>, expired_before: Option<i64>) -> i64 {
    let first = rolled_from.max(expired_before.map(hour_from));
    first.unwrap_or(i64::MIN)
}

fn time(row: &PgRow, at: usize) -> Result<Option<i64>, sqlx::Error> {
    Ok(row.try_get::<Option<Micros>, _>(at)?.map(|micros| micros.0))
}

/// Names in the first column.
fn names(rows: &[PgRow]) -> Result<Vec<String>, sqlx::Error> {
    rows.iter().map(|row| row.try_get(0)).collect()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
