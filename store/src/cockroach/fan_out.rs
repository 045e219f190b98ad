//! One command to many devices. Whoever advances one holds its row, so that no device has two turns.

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::StoreError;
use super::super::commands::{CommandRecord, STEP_ENDED, State};
use super::super::fan_out::{
    FAN_OUT_LATE_MICROS, FAN_OUT_LEASE_MICROS, FAN_OUT_PAGE, FanOut, FanOutStore, Head, NewFanOut,
    Step, Turn, withdrawals,
};
use super::super::fleet::DeviceFilter;
use super::super::labels::{from_json, to_json};
use super::super::requests::{Repeated, RequestKey};
use super::arguments::{Columns, Micros};
use super::commands::{record, record_columns, repeated};
use super::dialect::Purpose;
use super::ingest::{micros, sql_int};
use super::query::limited;
use super::{Cockroach, fleet, rows};

/// Fan-outs whose missed turns are looked for at a time: more than ever run at once.
const RUNNING_MAX: i64 = 256;

const ORDER: &str = "INSERT INTO fan_outs (id, name, arguments, priority, labels, \
         interval_micros, ttl_micros, created_at, created_by, devices, after_device, next_due_at, \
         expires_at, spread, unfinished, touched_at, request_key, request_digest) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', $8, $10, false, true, $8, $11, $12) \
     ON CONFLICT DO NOTHING";

const REPEATED: &str = "SELECT id, request_digest FROM fan_outs \
     WHERE created_by = $1 AND request_key = $2";

macro_rules! head_columns {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, arguments, priority, labels, interval_micros, ttl_micros, \
             created_at, created_by, devices, after_device, next_due_at, spread, cancelled_at, \
             unfinished FROM fan_outs ",
            $rest
        )
    };
}

const HEAD: &str = head_columns!("WHERE id = $1");
const HOLD: &str = head_columns!("WHERE id = $1 FOR UPDATE");

const SPREAD: &str = "INSERT INTO commands (device_id, id, name, arguments, priority, state, step, \
         percent, output, created_at, created_by, expires_at, sent_times, cancel, due_at) \
     SELECT t.device_id, f.id, f.name, f.arguments, f.priority, 'queued', 0, 0, '', \
         f.created_at, f.created_by, t.expires_at, 0, false, t.due_at \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[]) \
         AS t (device_id, due_at, expires_at) \
     CROSS JOIN fan_outs AS f WHERE f.id = $1 \
     ON CONFLICT (device_id, id) DO NOTHING";

const PASS: &str = "UPDATE fan_outs SET devices = devices + $2, after_device = $3, \
         next_due_at = $4, expires_at = greatest(expires_at, $5), spread = $6, unfinished = NOT $6, touched_at = $7 \
     WHERE id = $1";

const CANCEL: &str = "UPDATE fan_outs SET cancelled_at = $2, unfinished = true, touched_at = $2 \
     WHERE id = $1 AND cancelled_at IS NULL";

const TOUCH: &str = "UPDATE fan_outs SET unfinished = $2, touched_at = $3 WHERE id = $1";

const WITHDRAW_QUEUED: &str = "UPDATE commands SET state = 'cancelled', step = $3::INT8, \
         ended_at = $2, due_at = NULL \
     WHERE (device_id, id) IN (SELECT device_id, id FROM commands \
         WHERE id = $1 AND state = 'queued' LIMIT $4)";

const TO_TELL: &str = "SELECT device_id FROM commands \
     WHERE id = $1 AND state = ANY($2) AND NOT cancel AND ended_at IS NULL LIMIT $3";

const TELL: &str = "UPDATE commands SET cancel = true, due_at = t.due_at \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS t (device_id, due_at) \
     WHERE commands.device_id = t.device_id AND commands.id = $1";

const UNFINISHED: &str = "SELECT id FROM fan_outs \
     WHERE unfinished AND touched_at < $1 ORDER BY touched_at LIMIT $2";

const RUNNING: &str = "SELECT id FROM fan_outs WHERE expires_at > $1 AND cancelled_at IS NULL \
     ORDER BY id DESC LIMIT $2";

const MISSED: &str = "SELECT device_id FROM commands WHERE id = $1 AND state = 'queued' \
     AND due_at < $2 AND expires_at > $3 ORDER BY device_id LIMIT $4";

const POSTPONE: &str = "UPDATE commands SET due_at = t.due_at \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS t (device_id, due_at) \
     WHERE commands.device_id = t.device_id AND commands.id = $1 AND commands.step = 0";

const NEXT_TURN: &str = "UPDATE fan_outs SET next_due_at = $2 WHERE id = $1";

pub(super) const STATES: &str =
    "SELECT state, count(*) FROM commands WHERE id = $1 GROUP BY state ORDER BY state";

pub(super) const IN_STATE: &str =
    record_columns!("WHERE id = $1 AND state = $2 AND device_id > $3 ORDER BY device_id LIMIT $4");

#[async_trait]
impl FanOutStore for Cockroach {
    async fn order_fan_out(&self, new: &NewFanOut) -> Result<Option<Repeated>, StoreError> {
        let command = &new.command;
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let insert = sqlx::query(ORDER)
                .bind(command.id.to_string())
                .bind(&command.name)
                .bind(&command.arguments)
                .bind(i16::from(command.priority))
                .bind(to_json(&new.labels))
                .bind(new.interval_micros)
                .bind(new.ttl_micros)
                .bind(micros(new.created_at))
                .bind(&new.created_by)
                .bind(Micros(command.expires_at_ms.saturating_mul(1000)))
                .bind(new.request.as_ref().map(RequestKey::key))
                .bind(new.request.as_ref().map(RequestKey::digest));
            connection.execute(insert).await
        })?;
        match &new.request {
            Some(request) => self.repeated_fan_out(&new.created_by, request).await,
            None => Ok(None),
        }
    }

    async fn repeated_fan_out(
        &self,
        created_by: &str,
        request: &RequestKey,
    ) -> Result<Option<Repeated>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(REPEATED).bind(created_by).bind(request.key());
            let found = connection.fetch_optional(query).await?;
            found.as_ref().map(|row| repeated(row, request)).transpose()
        })
    }

    async fn advance_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        let id = id.to_string();
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let hold = transaction
                .fetch_optional(sqlx::query(HOLD).bind(&id))
                .await?;
            let Some(head) = hold.as_ref().map(head).transpose()? else {
                return Ok(false);
            };
            let more = match head.step() {
                Step::Nothing => false,
                Step::Spread => spread(&mut transaction, &id, &head, now).await?,
                Step::Withdraw => withdraw(&mut transaction, &id, now).await?,
            };
            transaction.commit().await?;
            Ok(more)
        })
    }

    async fn unfinished_fan_outs(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<CommandId>, StoreError> {
        let before = Micros(now.micros().saturating_sub(FAN_OUT_LEASE_MICROS));
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(UNFINISHED).bind(before).bind(limited(limit));
            let found = connection.fetch_all(query).await?;
            found.iter().map(command_id).collect()
        })
    }

    async fn postpone_fan_outs(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        let running = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(RUNNING).bind(micros(now)).bind(RUNNING_MAX);
            let found = connection.fetch_all(query).await?;
            found.iter().map(command_id).collect::<Result<Vec<_>, _>>()
        })?;
        let mut postponed = 0;
        for id in running {
            let id = id.to_string();
            loop {
                let page = run!(self, &mut self.budget(), Purpose::Write, |connection| {
                    let mut transaction = connection.begin().await?;
                    let page = postpone(&mut transaction, &id, now).await?;
                    transaction.commit().await?;
                    Ok(page)
                })?;
                postponed += page as u64;
                if page < FAN_OUT_PAGE {
                    break;
                }
            }
        }
        Ok(postponed)
    }

    async fn cancel_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        let id = id.to_string();
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let cancel = sqlx::query(CANCEL).bind(&id).bind(micros(now));
            transaction.execute(cancel).await?;
            let found = transaction
                .fetch_optional(sqlx::query(HEAD).bind(&id))
                .await?;
            transaction.commit().await?;
            Ok(found.is_some())
        })
    }

    async fn fan_out(&self, id: CommandId) -> Result<Option<FanOut>, StoreError> {
        let id = id.to_string();
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let found = connection
                .fetch_optional(sqlx::query(HEAD).bind(&id))
                .await?;
            let Some(head) = found.as_ref().map(head).transpose()? else {
                return Ok(None);
            };
            let states = connection.fetch_all(sqlx::query(STATES).bind(&id)).await?;
            let read = |row: &PgRow| Ok::<_, sqlx::Error>((state(row)?, rows::number(row, 1)?));
            let states = states.iter().map(read).collect::<Result<_, _>>()?;
            Ok(Some(head.into_fan_out(states)))
        })
    }

    async fn fan_out_commands(
        &self,
        id: CommandId,
        state: State,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(IN_STATE).bind(id.to_string());
            let query = query.bind(state.as_str());
            let query = query.bind(after.map_or("", DeviceId::as_str));
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            found.iter().map(record).collect()
        })
    }
}

/// Gives the next devices their turns. Returns whether there are more.
async fn spread(
    connection: &mut PgConnection,
    id: &str,
    head: &Head,
    now: ReceivedAt,
) -> Result<bool, sqlx::Error> {
    let filter = DeviceFilter {
        labels: head.order.labels.clone(),
        retired: Some(false),
        after: head.after.parse().ok(),
        limit: FAN_OUT_PAGE,
        ..DeviceFilter::default()
    };
    let devices = fleet::find_ids(connection, &filter).await?;
    let is_last = devices.len() < FAN_OUT_PAGE;
    let (turns, next) = head.turns(devices, now);
    let arguments = Columns::default()
        .one(id)?
        .array(&turns, |turn: &Turn| turn.device.as_str())?
        .array(&turns, |turn| micros(turn.due_at))?
        .array(&turns, |turn| micros(turn.expires_at))?
        .done();
    connection
        .execute(sqlx::query_with(SPREAD, arguments))
        .await?;
    let last = turns.last();
    let after = last.map_or(head.after.as_str(), |turn| turn.device.as_str());
    let expires = last.map_or(head.next_due_at, |turn| turn.expires_at);
    let pass = sqlx::query(PASS)
        .bind(id)
        .bind(sql_int(turns.len() as u64))
        .bind(after)
        .bind(micros(next))
        .bind(micros(expires))
        .bind(is_last)
        .bind(micros(now));
    connection.execute(pass).await?;
    Ok(!is_last)
}

/// Withdraws the next rows: first what was not sent, then what was. Returns whether there are more.
async fn withdraw(
    connection: &mut PgConnection,
    id: &str,
    now: ReceivedAt,
) -> Result<bool, sqlx::Error> {
    let queued = sqlx::query(WITHDRAW_QUEUED).bind(id).bind(micros(now));
    let queued = queued.bind(STEP_ENDED).bind(limited(FAN_OUT_PAGE));
    let mut done = connection.execute(queued).await?.rows_affected();
    if done == 0 {
        let open = [
            State::Sent.as_str(),
            schema::message::CommandState::Delivered.as_str(),
            schema::message::CommandState::Running.as_str(),
        ];
        let to_tell = sqlx::query(TO_TELL).bind(id).bind(&open[..]);
        let found = connection
            .fetch_all(to_tell.bind(limited(FAN_OUT_PAGE)))
            .await?;
        let devices: Vec<DeviceId> = devices(&found)?;
        done = devices.len() as u64;
        let told: Vec<(DeviceId, ReceivedAt)> = devices.into_iter().zip(withdrawals(now)).collect();
        if !told.is_empty() {
            let arguments = due_arguments(id, &told)?;
            connection
                .execute(sqlx::query_with(TELL, arguments))
                .await?;
        }
    }
    let touch = sqlx::query(TOUCH).bind(id).bind(done > 0).bind(micros(now));
    connection.execute(touch).await?;
    Ok(done > 0)
}

/// Gives turns that were missed the place behind the last one. Returns how many.
async fn postpone(
    connection: &mut PgConnection,
    id: &str,
    now: ReceivedAt,
) -> Result<usize, sqlx::Error> {
    let found = connection
        .fetch_optional(sqlx::query(HOLD).bind(id))
        .await?;
    let Some(head) = found.as_ref().map(head).transpose()? else {
        return Ok(0);
    };
    let late = Micros(now.micros().saturating_sub(FAN_OUT_LATE_MICROS));
    let missed = sqlx::query(MISSED).bind(id).bind(late).bind(micros(now));
    let missed = connection
        .fetch_all(missed.bind(limited(FAN_OUT_PAGE)))
        .await?;
    let (turns, next) = head.turns(devices(&missed)?, now);
    if turns.is_empty() {
        return Ok(0);
    }
    let count = turns.len();
    let turns: Vec<(DeviceId, ReceivedAt)> = turns
        .into_iter()
        .map(|turn| (turn.device, turn.due_at))
        .collect();
    let arguments = due_arguments(id, &turns)?;
    connection
        .execute(sqlx::query_with(POSTPONE, arguments))
        .await?;
    let next = sqlx::query(NEXT_TURN).bind(id).bind(micros(next));
    connection.execute(next).await?;
    Ok(count)
}

fn due_arguments(
    id: &str,
    due: &[(DeviceId, ReceivedAt)],
) -> Result<sqlx::postgres::PgArguments, sqlx::Error> {
    let columns = Columns::default().one(id)?;
    let columns = columns.array(due, |(device, _)| device.as_str())?;
    Ok(columns.array(due, |(_, at)| micros(*at))?.done())
}

fn devices(found: &[PgRow]) -> Result<Vec<DeviceId>, sqlx::Error> {
    found.iter().map(|row| rows::device(row, 0)).collect()
}

fn command_id(row: &PgRow) -> Result<CommandId, sqlx::Error> {
    row.try_get::<&str, _>(0)?.parse().map_err(rows::bad(0))
}

fn state(row: &PgRow) -> Result<State, sqlx::Error> {
    let state: &str = row.try_get(0)?;
    State::parse(state).ok_or_else(|| rows::bad(0)("no state of a command"))
}

/// From the fifteen columns of a fan-out.
fn head(row: &PgRow) -> Result<Head, sqlx::Error> {
    let priority: i16 = row.try_get(3)?;
    let created_at = rows::received(row, 7)?;
    let ttl_micros: i64 = row.try_get(6)?;
    let first_expires = created_at.micros().saturating_add(ttl_micros);
    Ok(Head {
        order: NewFanOut {
            command: Command {
                id: command_id(row)?,
                name: row.try_get(1)?,
                arguments: row.try_get(2)?,
                expires_at_ms: first_expires.div_euclid(1000),
                priority: u8::try_from(priority).map_err(rows::bad(3))?,
            },
            labels: from_json(row.try_get(4)?).map_err(rows::bad(4))?,
            interval_micros: row.try_get(5)?,
            ttl_micros,
            created_at,
            created_by: row.try_get(8)?,
            request: None,
        },
        devices: rows::number(row, 9)?,
        after: row.try_get(10)?,
        next_due_at: rows::received(row, 11)?,
        is_spread: row.try_get(12)?,
        cancelled_at: rows::maybe_received(row, 13)?,
        is_unfinished: row.try_get(14)?,
    })
}
