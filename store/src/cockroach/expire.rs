//! Old rows out: by CockroachDB itself, where it does that, and elsewhere a device at a time. Whatever
//! row goes is counted in the statement that takes it, so that `committed = rows + superseded +
//! expired` holds at any moment.

use std::time::Duration;

use async_trait::async_trait;
use schema::{DeviceId, ObservedAt};
use sqlx::Executor as _;

use super::super::contract::UpkeepStore;
use super::super::fleet::DEVICE_IDS;
use super::super::ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
use super::super::retention::{COMMANDS, CONFLICTS, FAN_OUTS};
use super::super::{EXPIRE_DEVICES, EXPIRE_ROWS, Expired, StoreError};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::sql_int;
use super::partitions::Period;
use super::query::sensor_names;
use super::{Cockroach, merge, rows, ttl};

/// Readings that are kept so long go by whole months, where they are kept by month: a row costs nothing to drop, and stays a
/// third longer at most, and a day.
const BY_MONTH_MIN: Duration = Duration::from_secs(90 * 86_400);

/// Rows of one statement: short enough that no writer waits for long.
const ROWS: i64 = 1_000;

pub(super) const READINGS: &str = "WITH gone AS ( \
     DELETE FROM telemetry_data WHERE observed_at >= $5 AND observed_at < $3 \
         AND (device_id, sensor, observed_at) IN ( \
         SELECT r.device_id, r.sensor, r.observed_at FROM unnest($2::TEXT[]) AS s (sensor) \
         CROSS JOIN LATERAL ( \
             SELECT q.device_id, q.sensor, q.observed_at FROM telemetry_data AS q \
             WHERE q.device_id = $1 AND q.sensor = s.sensor \
                 AND q.observed_at >= $5 AND q.observed_at < $3 \
             ORDER BY q.observed_at LIMIT $4) AS r) \
         RETURNING 1) \
     UPDATE devices SET expired = devices.expired + g.gone, \
         expired_before = greatest(devices.expired_before, $3) \
     FROM (SELECT count(*) AS gone FROM gone) AS g \
     WHERE devices.device_id = $1 AND g.gone > 0 RETURNING g.gone";

/// The oldest letters, locked in the order of their keys as those lock them who keep letters.
pub(super) const DEAD_LETTERS: &str = "DELETE FROM dead_letters \
     WHERE (device_id, payload_digest) IN ( \
         SELECT k.device_id, k.payload_digest FROM dead_letters AS k \
         WHERE (k.device_id, k.payload_digest) IN ( \
             SELECT d.device_id, d.payload_digest FROM dead_letters AS d \
             WHERE d.received_at < $1 ORDER BY d.received_at LIMIT $2) \
         ORDER BY k.device_id, k.payload_digest FOR UPDATE)";

/// `delete!(store, all, statement)`: repeats a statement that deletes some rows at a time until none is left, or as many
/// are gone as a call may take; adds what is gone to `all`. A macro as [`run!`] is one.
macro_rules! delete {
    ($store:expr, $all:expr, $statement:expr) => {
        while *$all < EXPIRE_ROWS {
            let gone: u64 = run!($store, &mut $store.budget(), Purpose::Write, |connection| {
                Ok(connection.execute($statement).await?.rows_affected())
            })?;
            if gone == 0 {
                break;
            }
            *$all += gone;
        }
    };
}

#[async_trait]
impl UpkeepStore for Cockroach {
    async fn set_retention(&self, retention: Option<Duration>) -> Result<bool, StoreError> {
        self.retention.set(retention);
        let tables = run!(self, &mut self.budget(), Purpose::Migrate, |connection| {
            ttl::tables(connection).await
        })?;
        // Each has a budget of its own.
        for table in tables {
            run!(self, &mut self.budget(), Purpose::Migrate, |connection| {
                ttl::set_retention(connection, *table, retention).await
            })?;
        }
        Ok(retention.is_some() && !tables.is_empty())
    }

    async fn expire(
        &self,
        before: ObservedAt,
        after: Option<&DeviceId>,
    ) -> Result<Expired, StoreError> {
        let before = Micros(before.clamp(OBSERVED_AT_MIN, OBSERVED_AT_MAX).micros());
        let mut all: u64 = 0;
        let mut dropped = 0;
        if after.is_none() {
            dropped = self.drop_old(before).await?;
            delete!(
                self,
                &mut all,
                sqlx::query(DEAD_LETTERS).bind(before).bind(ROWS)
            );
            delete!(
                self,
                &mut all,
                sqlx::query(FAN_OUTS).bind(before).bind(ROWS)
            );
        }
        let devices = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let after = after.map_or("", DeviceId::as_str);
            let query = sqlx::query(DEVICE_IDS).bind(after);
            let found = connection
                .fetch_all(query.bind(EXPIRE_DEVICES as i64))
                .await?;
            found.iter().map(|row| rows::device(row, 0)).collect()
        })?;
        let devices: Vec<DeviceId> = devices;
        let is_by_month = self
            .retention
            .get()
            .is_some_and(|kept| kept >= BY_MONTH_MIN);
        let one_by_one = match is_by_month {
            true => run!(self, &mut self.budget(), Purpose::Read, |connection| {
                self.one_by_one(connection, before).await
            })?,
            false => Some(Period::before(before.0)),
        };
        let mut done = None;
        for device in &devices {
            self.expire_device(device, one_by_one, before, &mut all)
                .await?;
            if all >= EXPIRE_ROWS {
                break;
            }
            done = Some(device.clone());
        }
        let is_cut = all >= EXPIRE_ROWS;
        let has_more = is_cut || devices.len() == EXPIRE_DEVICES;
        Ok(Expired {
            rows: all + dropped,
            next: done.or_else(|| after.cloned()).filter(|_| has_more),
            is_cut,
        })
    }

    async fn make_partitions(&self) -> Result<u64, StoreError> {
        let made = self.make_ahead().await?;
        self.finish_leaving().await?;
        Ok(made)
    }

    async fn merge_ranges(&self, limit: usize) -> Result<u64, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            merge::merge(connection, limit).await
        })
    }
}

impl Cockroach {
    async fn expire_device(
        &self,
        device: &DeviceId,
        one_by_one: Option<Period>,
        before: Micros,
        all: &mut u64,
    ) -> Result<(), StoreError> {
        let id = device.as_str();
        if let Some(period) = one_by_one {
            self.expire_readings(device, period, all).await?;
        }
        self.expire_rollups(device, ObservedAt::from_micros(before.0))
            .await?;
        delete!(
            self,
            all,
            sqlx::query(CONFLICTS).bind(id).bind(before).bind(ROWS)
        );
        delete!(
            self,
            all,
            sqlx::query(COMMANDS).bind(id).bind(before).bind(ROWS)
        );
        Ok(())
    }

    /// Deletes a device's readings of some times, the oldest of each sensor first.
    async fn expire_readings(
        &self,
        device: &DeviceId,
        period: Period,
        all: &mut u64,
    ) -> Result<(), StoreError> {
        let id = device.as_str();
        let [from, to] = [period.from, period.to].map(|at| {
            let at = ObservedAt::from_micros(at);
            at.clamp(OBSERVED_AT_MIN, OBSERVED_AT_MAX)
        });
        let names = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let within = self.widened(connection, from, to).await?;
            sensor_names(connection, device, within).await
        })?;
        let [from, to] = [from, to].map(|at| Micros(at.micros()));
        let of_each = (ROWS / sql_int(names.len().max(1) as u64)).max(1);
        while *all < EXPIRE_ROWS && !names.is_empty() {
            let gone = run!(self, &mut self.budget(), Purpose::Write, |connection| {
                let delete = sqlx::query(READINGS).bind(id).bind(&names).bind(to);
                let delete = delete.bind(of_each).bind(from);
                let gone = connection.fetch_optional(delete).await?;
                gone.map_or(Ok(0), |row| rows::number(&row, 0))
            })?;
            if gone == 0 {
                break;
            }
            *all += gone;
        }
        Ok(())
    }
}
