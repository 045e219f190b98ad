//! Commands: statements of one row each, or of a claim. At the pace of people, not of readings.

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use sqlx::postgres::PgRow;
use sqlx::{Executor as _, Row as _};

use super::super::commands::{
    AGAIN_SECONDS, AGAIN_SECONDS_MAX, ASK_AGAIN_SECONDS, CommandRecord, CommandStore, CommandWord,
    DueCommand, EXPIRY_GRACE_MICROS, NewCommand, Queued, STEP_ENDED, State, last_words, step,
};
use super::super::requests::{Repeated, RequestKey};
use super::super::{QUERY_ROWS_MAX, StoreError};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::micros;
use super::{Cockroach, rows};

/// Commands that are given up at a time.
const EXPIRE_MAX: i64 = 1_000;

/// Tells whether the device is retired: then nothing is kept. Nor is it when id or key are taken.
const QUEUE: &str = "WITH put AS ( \
         INSERT INTO commands (device_id, id, name, arguments, priority, state, step, percent, \
             output, created_at, created_by, expires_at, sent_times, cancel, due_at, \
             request_key, request_digest) \
         SELECT $1::TEXT, $2::TEXT, $3::TEXT, $4::TEXT, $5::INT8, 'queued', 0, 0, '', \
             $6::TIMESTAMPTZ, $7::TEXT, $8::TIMESTAMPTZ, 0, false, $6::TIMESTAMPTZ, $9::TEXT, \
             $10::INT8 \
         WHERE NOT EXISTS (SELECT 1 FROM devices \
             WHERE device_id = $1 AND retired_at IS NOT NULL) \
         ON CONFLICT DO NOTHING RETURNING 1) \
     SELECT EXISTS (SELECT 1 FROM devices WHERE device_id = $1 AND retired_at IS NOT NULL)";

/// What is there under the key of a request.
const REPEATED: &str = "SELECT id, request_digest FROM commands \
     WHERE device_id = $1 AND created_by = $2 AND request_key = $3";

pub(super) const CLAIM: &str = "UPDATE commands SET \
         state = CASE WHEN step = 0 THEN 'sent' ELSE state END, \
         step = CASE WHEN step = 0 THEN 1::INT2 ELSE step END, \
         sent_times = sent_times + 1, sent_at = $1, \
         due_at = $1 + least($3::INT8, $4::INT8 * (sent_times + 1)) * interval '1 second' \
     WHERE (device_id, id) IN ( \
         SELECT device_id, id FROM commands WHERE due_at <= $1 \
         ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
     RETURNING device_id, id, name, arguments, priority, expires_at, cancel, step >= 2";

const RECALL: &str = "UPDATE commands SET due_at = $2 \
     WHERE device_id = ANY($1) AND due_at IS NOT NULL AND due_at > $2 AND step > 0";

const WORD: &str = "UPDATE commands SET state = $3, step = $4::INT8, percent = $5::INT8, \
         output = $6, heard_at = $7, \
         ended_at = CASE WHEN $4::INT8 >= $8::INT8 THEN $7 ELSE NULL END, \
         due_at = CASE WHEN $4::INT8 >= $8::INT8 OR EXISTS (SELECT 1 FROM devices AS v \
                 WHERE v.device_id = $1 AND v.retired_at IS NOT NULL) THEN NULL \
             WHEN cancel THEN coalesce(due_at, $7) \
             ELSE $7 + $9::INT8 * interval '1 second' END \
     WHERE device_id = $1 AND id = $2 \
         AND (step < $4::INT8 OR (step = $4::INT8 AND $4::INT8 < $8::INT8))";

const CANCEL_QUEUED: &str = "UPDATE commands SET state = 'cancelled', step = $4::INT8, \
         ended_at = $3, due_at = NULL \
     WHERE device_id = $1 AND id = $2 AND step = 0";

const CANCEL_SENT: &str = "UPDATE commands SET cancel = true, due_at = $3 \
     WHERE device_id = $1 AND id = $2 AND step < $4::INT8 AND ended_at IS NULL";

/// By the index of what expires, and so many at a time that nobody waits long for it.
pub(super) const EXPIRE: &str = "UPDATE commands SET state = 'expired', step = 1, ended_at = $2, \
         due_at = NULL \
     WHERE (device_id, id) IN ( \
         SELECT device_id, id FROM commands \
         WHERE step <= 1 AND ended_at IS NULL AND expires_at < $1 \
         ORDER BY expires_at LIMIT $3)";

/// The columns that [`record`] reads.
macro_rules! record_columns {
    ($rest:literal) => {
        concat!(
            "SELECT device_id, id, name, arguments, priority, expires_at, cancel, state, percent, \
             output, created_at, created_by, sent_times, sent_at, heard_at, ended_at \
             FROM commands ",
            $rest
        )
    };
}

pub(super) use record_columns;

const ONE: &str = record_columns!("WHERE device_id = $1 AND id = $2");
const LATEST: &str = record_columns!("WHERE device_id = $1 ORDER BY id DESC LIMIT $2");

#[async_trait]
impl CommandStore for Cockroach {
    async fn queue_command(&self, new: &NewCommand) -> Result<Queued, StoreError> {
        let Command {
            id,
            name,
            arguments,
            expires_at_ms,
            priority,
        } = &new.command;
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let insert = sqlx::query(QUEUE)
                .bind(new.device.as_str())
                .bind(id.to_string())
                .bind(name)
                .bind(arguments)
                .bind(i64::from(*priority))
                .bind(micros(new.created_at))
                .bind(&new.created_by)
                .bind(Micros(expires_at_ms.saturating_mul(1000)))
                .bind(new.request.as_ref().map(RequestKey::key))
                .bind(new.request.as_ref().map(RequestKey::digest));
            let is_retired = connection.fetch_one(insert).await?.try_get(0)?;
            let Some(request) = &new.request else {
                return Ok(match is_retired {
                    true => Queued::Retired,
                    false => Queued::Kept,
                });
            };
            // Whatever the statement did, or an earlier attempt of it whose answer was lost.
            let query = sqlx::query(REPEATED).bind(new.device.as_str());
            let query = query.bind(&new.created_by).bind(request.key());
            let found = connection.fetch_optional(query).await?;
            let found = found.as_ref().map(|row| repeated(row, request));
            Ok(Queued::of(*id, found.transpose()?))
        })
    }

    async fn claim_commands(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<DueCommand>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let claim = sqlx::query(CLAIM).bind(micros(now));
            let claim = claim.bind(i64::try_from(limit).unwrap_or(i64::MAX));
            let claim = claim.bind(AGAIN_SECONDS_MAX).bind(AGAIN_SECONDS);
            let claimed = connection.fetch_all(claim).await?;
            let known = |row: &PgRow| {
                Ok(DueCommand {
                    is_known: row.try_get(7)?,
                    ..due(row)?
                })
            };
            claimed.iter().map(known).collect()
        })
    }

    async fn recall_commands(
        &self,
        devices: &[DeviceId],
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        let devices: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let recall = sqlx::query(RECALL).bind(&devices).bind(micros(now));
            Ok(connection.execute(recall).await?.rows_affected())
        })
    }

    async fn command_words(&self, words: &[CommandWord]) -> Result<u64, StoreError> {
        let mut budget = self.budget();
        let mut changed = 0;
        for word in last_words(words) {
            let progress = &word.progress;
            changed += run!(self, &mut budget, Purpose::Write, |connection| {
                let update = sqlx::query(WORD)
                    .bind(word.device.as_str())
                    .bind(progress.id.to_string())
                    .bind(progress.state.as_str())
                    .bind(step(progress.state))
                    .bind(i64::from(progress.percent))
                    .bind(&progress.output)
                    .bind(micros(word.received_at))
                    .bind(STEP_ENDED)
                    .bind(ASK_AGAIN_SECONDS);
                Ok(connection.execute(update).await?.rows_affected())
            })?;
        }
        Ok(changed)
    }

    async fn cancel_command(
        &self,
        device: &DeviceId,
        id: CommandId,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let (device, id) = (device.as_str(), id.to_string());
        let mut budget = self.budget();
        for sql in [CANCEL_QUEUED, CANCEL_SENT] {
            let done = run!(self, &mut budget, Purpose::Write, |connection| {
                let cancel = sqlx::query(sql).bind(device).bind(&id);
                let cancel = cancel.bind(micros(now)).bind(STEP_ENDED);
                Ok(connection.execute(cancel).await?.rows_affected())
            })?;
            if done > 0 {
                break;
            }
        }
        Ok(())
    }

    async fn expire_commands(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        let before = Micros(now.micros().saturating_sub(EXPIRY_GRACE_MICROS));
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let expire = sqlx::query(EXPIRE).bind(before).bind(micros(now));
            let expire = expire.bind(EXPIRE_MAX);
            Ok(connection.execute(expire).await?.rows_affected())
        })
    }

    async fn command(
        &self,
        device: &DeviceId,
        id: CommandId,
    ) -> Result<Option<CommandRecord>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(ONE).bind(device.as_str()).bind(id.to_string());
            let found = connection.fetch_optional(query).await?;
            found.as_ref().map(record).transpose()
        })
    }

    async fn commands(
        &self,
        device: &DeviceId,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let limit = i64::try_from(limit.min(QUERY_ROWS_MAX)).unwrap_or(i64::MAX);
            let query = sqlx::query(LATEST).bind(device.as_str()).bind(limit);
            let found = connection.fetch_all(query).await?;
            found.iter().map(record).collect()
        })
    }
}

/// From two columns: id, request_digest.
pub(super) fn repeated(row: &PgRow, request: &RequestKey) -> Result<Repeated, sqlx::Error> {
    let id: &str = row.try_get(0)?;
    let digest: Option<i64> = row.try_get(1)?;
    let id = id.parse().map_err(rows::bad(0))?;
    Ok(request.repeated(id, digest.unwrap_or_default()))
}

/// From seven columns: device_id, id, name, arguments, priority, expires_at, cancel.
fn due(row: &PgRow) -> Result<DueCommand, sqlx::Error> {
    let id: &str = row.try_get(1)?;
    let priority: i16 = row.try_get(4)?;
    Ok(DueCommand {
        device: rows::device(row, 0)?,
        command: Command {
            id: id.parse().map_err(rows::bad(1))?,
            name: row.try_get(2)?,
            arguments: row.try_get(3)?,
            expires_at_ms: row.try_get::<Micros, _>(5)?.0.div_euclid(1000),
            priority: u8::try_from(priority).map_err(rows::bad(4))?,
        },
        cancel: row.try_get(6)?,
        is_known: false,
    })
}

pub(super) fn record(row: &PgRow) -> Result<CommandRecord, sqlx::Error> {
    let DueCommand {
        device,
        command,
        cancel,
        ..
    } = due(row)?;
    let state: &str = row.try_get(7)?;
    let percent: i16 = row.try_get(8)?;
    Ok(CommandRecord {
        device,
        command,
        state: State::parse(state).ok_or_else(|| rows::bad(7)("no state of a command"))?,
        percent: u8::try_from(percent).map_err(rows::bad(8))?,
        output: row.try_get(9)?,
        created_at: rows::received(row, 10)?,
        created_by: row.try_get(11)?,
        sent_times: rows::number(row, 12)?,
        sent_at: rows::maybe_received(row, 13)?,
        heard_at: rows::maybe_received(row, 14)?,
        ended_at: rows::maybe_received(row, 15)?,
        cancel,
    })
}
