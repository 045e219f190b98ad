//! Rollups of what retention has removed, or keeps a while longer because its month has not ended: `rolled_from` says first
//! that none of them is read any more. So this may be done whenever there is time, before the readings go or after.

use schema::{DeviceId, ObservedAt};
use sqlx::Executor as _;

use super::super::super::StoreError;
use super::super::super::rollups::hour_from;
use super::super::Cockroach;
use super::super::arguments::Micros;
use super::super::dialect::Purpose;
use super::super::ingest::sql_int;
use super::{names, sql};

/// Rows of one statement, and statements of one call: what is left goes with the next.
const ROWS: u64 = 1_000;
const STATEMENTS: usize = 8;

impl Cockroach {
    /// Removes rollups of a device of hours that begin before a time, some rows at a time.
    pub(in super::super) async fn expire_rollups(
        &self,
        device: &DeviceId,
        before: ObservedAt,
    ) -> Result<(), StoreError> {
        let rolled = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let names_of = sqlx::query(sql::ROLLED_NAMES).bind(device.as_str());
            names(&connection.fetch_all(names_of).await?)
        })?;
        if rolled.is_empty() {
            return Ok(());
        }
        // Whoever looks does not read them from now on, whatever its own retention is; the hour that holds the time, too.
        let from = Micros(hour_from(before.micros()));
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let keep = sqlx::query(sql::KEEP_FROM).bind(vec![device.as_str()]);
            connection.execute(keep.bind(from)).await
        })?;
        let of_each = (ROWS / rolled.len() as u64).max(1);
        // Minutes first: what is left of a sensor is found by its hours.
        for expire in [sql::EXPIRE_MINUTES, sql::EXPIRE_HOURS] {
            for _ in 0..STATEMENTS {
                let gone = run!(self, &mut self.budget(), Purpose::Write, |connection| {
                    let expire = sqlx::query(expire).bind(device.as_str()).bind(&rolled);
                    let expire = expire.bind(Micros(before.micros()));
                    let done = connection.execute(expire.bind(sql_int(of_each)));
                    Ok(done.await?.rows_affected())
                })?;
                if gone < of_each {
                    break;
                }
            }
        }
        Ok(())
    }
}
