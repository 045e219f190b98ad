//! The statements of fan-outs, who reads their rows, and the capability for every database. Whoever advances a fan-out
//! holds its row, so that no device has two turns.

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{Command, CommandId, CommandState};
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::commands::sql::{named, record, record_columns, state};
use super::super::commands::{CommandRecord, STEP_ENDED, State};
use super::super::fleet::{self, DeviceFilter};
use super::super::labels::{from_json, to_json};
use super::super::requests::{Repeated, RequestKey};
use super::super::sql::{self, Access, Broken, Database, Port, Row, cells, page_limit, unreadable};
use super::{
    FAN_OUT_LATE_MICROS, FAN_OUT_LEASE_MICROS, FAN_OUT_PAGE, FanOut, FanOutStore, Head, NewFanOut,
    Step, Turn, withdrawals,
};

/// Fan-outs whose missed turns are looked for at a time: more than ever run at once.
const RUNNING_MAX: usize = 256;

const ORDER: &str = "INSERT INTO fan_outs (id, name, arguments, priority, labels, \
         interval_micros, ttl_micros, created_at, created_by, devices, after_device, next_due_at, \
         expires_at, spread, unfinished, touched_at, request_key, request_digest) \
     VALUES ($1, $2, $3, $4::INT8, $5, $6, $7, $8, $9, 0, '', $8, $10, false, true, $8, $11, $12) \
     ON CONFLICT DO NOTHING";

const REPEATED: &str = "SELECT id, request_digest FROM fan_outs \
     WHERE created_by = $1 AND request_key = $2 AND request_key IS NOT NULL";

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
     SELECT f.value ->> 0, o.id, o.name, o.arguments, o.priority, 'queued', 0, 0, '', \
         o.created_at, o.created_by, \
         $3::TIMESTAMPTZ + ((f.value ->> 2)::INT8 + o.ttl_micros) * interval '1 microsecond', \
         0, false, $3::TIMESTAMPTZ + (f.value ->> 2)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($2::TEXT::JSONB) AS f (value) \
     CROSS JOIN fan_outs AS o WHERE o.id = $1 \
     ON CONFLICT (device_id, id) DO NOTHING";

const PASS: &str = "UPDATE fan_outs SET devices = devices + $2, after_device = $3, \
         next_due_at = $4, expires_at = greatest(expires_at, $5), spread = $6, unfinished = NOT $6, \
         touched_at = $7 \
     WHERE id = $1";

const CANCEL: &str = "UPDATE fan_outs SET cancelled_at = $2, unfinished = true, touched_at = $2 \
     WHERE id = $1 AND cancelled_at IS NULL";

const TOUCH: &str = "UPDATE fan_outs SET unfinished = $2, touched_at = $3 WHERE id = $1";

const WITHDRAW_QUEUED: &str = "UPDATE commands SET state = 'cancelled', step = $3::INT8, \
         ended_at = $2, due_at = NULL \
     WHERE (device_id, id) IN (SELECT device_id, id FROM commands \
         WHERE id = $1 AND state = 'queued' LIMIT $4)";

const SENT: &str = "SELECT device_id FROM commands \
     WHERE id = $1 AND state = ANY($2) AND NOT cancel AND ended_at IS NULL LIMIT $3";

const WITHDRAW_SENT: &str = "UPDATE commands SET cancel = true, \
         due_at = $2::TIMESTAMPTZ + (f.value ->> 2)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) \
     WHERE commands.device_id = (f.value ->> 0) AND commands.id = (f.value ->> 1) \
         AND commands.id = ANY($3)";

const UNFINISHED: &str = "SELECT id FROM fan_outs \
     WHERE unfinished AND touched_at < $1 ORDER BY touched_at LIMIT $2";

const RUNNING: &str = "SELECT id FROM fan_outs WHERE expires_at > $1 AND cancelled_at IS NULL \
     ORDER BY id DESC LIMIT $2";

const MISSED: &str = "SELECT device_id FROM commands WHERE id = $1 AND state = 'queued' \
     AND due_at < $2 AND expires_at > $3 ORDER BY device_id LIMIT $4";

pub(crate) const POSTPONE: &str = "UPDATE commands SET \
         due_at = $2::TIMESTAMPTZ + (f.value ->> 2)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) \
     WHERE commands.device_id = (f.value ->> 0) AND commands.id = (f.value ->> 1) \
         AND commands.id = ANY($3) AND commands.step = 0";

const NEXT_TURN: &str = "UPDATE fan_outs SET next_due_at = $2 WHERE id = $1";

pub(crate) const STATES: &str =
    "SELECT state, count(*) FROM commands WHERE id = $1 GROUP BY state ORDER BY state";

pub(crate) const IN_STATE: &str =
    record_columns!("WHERE id = $1 AND state = $2 AND device_id > $3 ORDER BY device_id LIMIT $4");

#[async_trait]
impl<D: Database> FanOutStore for D {
    async fn order_fan_out(&self, new: &NewFanOut) -> Result<Option<Repeated>, StoreError> {
        let (command, request) = (&new.command, new.request.as_ref());
        let cells = cells![
            command.id.to_string(),
            &command.name,
            &command.arguments,
            command.priority,
            to_json(&new.labels),
            new.interval_micros,
            new.ttl_micros,
            new.created_at,
            &new.created_by,
            ReceivedAt::from_micros(command.expires_at_ms.saturating_mul(1000)),
            request.map(RequestKey::key),
            request.map(RequestKey::digest),
        ];
        self.execute(ORDER, cells).await?;
        match request {
            Some(request) => self.repeated_fan_out(&new.created_by, request).await,
            None => Ok(None),
        }
    }

    async fn repeated_fan_out(
        &self,
        created_by: &str,
        request: &RequestKey,
    ) -> Result<Option<Repeated>, StoreError> {
        let cells = cells![created_by, request.key()];
        let found = self.first(Access::Read, REPEATED, cells, named).await?;
        Ok(found.map(|(id, digest)| request.repeated(id, digest)))
    }

    async fn advance_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        self.run(Access::Transaction, (id, now), |port, (id, now)| {
            Box::pin(advance(port, *id, *now))
        })
        .await
    }

    async fn unfinished_fan_outs(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<CommandId>, StoreError> {
        let cells = cells![before(now, FAN_OUT_LEASE_MICROS), page_limit(limit)];
        self.list(Access::Read, UNFINISHED, cells, command_id).await
    }

    async fn postpone_fan_outs(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        let running = self.run(Access::Read, now, |port, now| {
            Box::pin(sql::all(
                port,
                RUNNING,
                cells![*now, RUNNING_MAX],
                command_id,
            ))
        });
        let mut postponed = 0;
        for id in running.await? {
            loop {
                let page = self
                    .run(Access::Transaction, (id, now), |port, (id, now)| {
                        Box::pin(postpone(port, *id, *now))
                    })
                    .await?;
                postponed += page as u64;
                if page < FAN_OUT_PAGE {
                    break;
                }
            }
        }
        Ok(postponed)
    }

    async fn cancel_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        self.run(Access::Transaction, (id, now), |port, (id, now)| {
            Box::pin(async move {
                port.execute(CANCEL, cells![id.to_string(), *now]).await?;
                let found = sql::first(port, HEAD, cells![id.to_string()], |_| Ok(())).await?;
                Ok(found.is_some())
            })
        })
        .await
    }

    async fn fan_out(&self, id: CommandId) -> Result<Option<FanOut>, StoreError> {
        self.run(Access::Read, id.to_string(), |port, id| {
            Box::pin(async move {
                let Some(head) = sql::first(port, HEAD, cells![id], head).await? else {
                    return Ok(None);
                };
                let states = sql::all(port, STATES, cells![id], |row| {
                    Ok((state(row, 0)?, row.number(1)?))
                });
                Ok(Some(head.into_fan_out(states.await?)))
            })
        })
        .await
    }

    async fn fan_out_commands(
        &self,
        id: CommandId,
        state: State,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError> {
        let cells = cells![
            id.to_string(),
            state.as_str(),
            after.map_or("", DeviceId::as_str),
            page_limit(limit),
        ];
        self.list(Access::Read, IN_STATE, cells, record).await
    }
}

async fn advance(port: &mut dyn Port, id: CommandId, now: ReceivedAt) -> Result<bool, Broken> {
    let Some(head) = sql::first(port, HOLD, cells![id.to_string()], head).await? else {
        return Ok(false);
    };
    match head.step() {
        Step::Nothing => Ok(false),
        Step::Spread => spread(port, &head, now).await,
        Step::Withdraw => withdraw(port, id, now).await,
    }
}

/// Gives the next devices their turns. Returns whether there are more.
async fn spread(port: &mut dyn Port, head: &Head, now: ReceivedAt) -> Result<bool, Broken> {
    let filter = DeviceFilter {
        labels: head.order.labels.clone(),
        retired: Some(false),
        after: head.after.parse().ok(),
        limit: FAN_OUT_PAGE,
        ..DeviceFilter::default()
    };
    let devices = fleet::find_ids(port, &filter).await?;
    let is_last = devices.len() < FAN_OUT_PAGE;
    let (turns, next) = head.turns(devices, now);
    let id = head.order.command.id.to_string();
    let rows = due(&id, turns.iter().map(Turn::due), now);
    port.execute(SPREAD, cells![&id, rows, now]).await?;
    let last = turns.last();
    let cells = cells![
        &id,
        turns.len(),
        last.map_or(head.after.as_str(), |turn| turn.device.as_str()),
        next,
        last.map_or(head.next_due_at, |turn| turn.expires_at),
        is_last,
        now,
    ];
    port.execute(PASS, cells).await?;
    Ok(!is_last)
}

/// Withdraws the next rows: first what was not sent, then what was. Returns whether there are more.
async fn withdraw(port: &mut dyn Port, id: CommandId, now: ReceivedAt) -> Result<bool, Broken> {
    let id = id.to_string();
    let cells = cells![&id, now, STEP_ENDED, FAN_OUT_PAGE];
    let mut done = port.execute(WITHDRAW_QUEUED, cells).await?;
    if done == 0 {
        let open = [
            State::Sent,
            State::Reported(CommandState::Delivered),
            State::Reported(CommandState::Running),
        ];
        let open = open.map(|state| state.as_str().to_owned()).to_vec();
        let cells = cells![&id, open, page_limit(FAN_OUT_PAGE)];
        let sent = sql::sound(port, SENT, cells, |row| row.device(0)).await?;
        done = sent.len() as u64;
        if !sent.is_empty() {
            let rows = due(&id, sent.iter().zip(withdrawals(now)), now);
            port.execute(WITHDRAW_SENT, cells![rows, now, vec![id.clone()]])
                .await?;
        }
    }
    let has_more = done > 0;
    port.execute(TOUCH, cells![&id, has_more, now]).await?;
    Ok(has_more)
}

/// Gives turns that were missed the place behind the last one. Returns how many.
async fn postpone(port: &mut dyn Port, id: CommandId, now: ReceivedAt) -> Result<usize, Broken> {
    let id = id.to_string();
    let Some(head) = sql::first(port, HOLD, cells![&id], head).await? else {
        return Ok(0);
    };
    let cells = cells![&id, before(now, FAN_OUT_LATE_MICROS), now, FAN_OUT_PAGE];
    let missed = sql::all(port, MISSED, cells, |row| row.device(0)).await?;
    let (turns, next) = head.turns(missed, now);
    if turns.is_empty() {
        return Ok(0);
    }
    let rows = due(&id, turns.iter().map(Turn::due), now);
    port.execute(POSTPONE, cells![rows, now, vec![id.clone()]])
        .await?;
    port.execute(NEXT_TURN, cells![&id, next]).await?;
    Ok(turns.len())
}

/// Commands as rows that go into a statement: device, id, and how many microseconds after `now` it is due. With an id in
/// each row SQLite finds the commands by their keys, and does not go through all of a fan-out's. The same id is given
/// beside the rows, as a list: a plan of PostgreSQL's for a table that was small is bounded by it.
fn due<'d>(
    id: &str,
    devices: impl Iterator<Item = (&'d DeviceId, ReceivedAt)>,
    now: ReceivedAt,
) -> String {
    let row = |(device, at): (&DeviceId, ReceivedAt)| {
        serde_json::json!([
            device.as_str(),
            id,
            at.micros().saturating_sub(now.micros())
        ])
    };
    serde_json::Value::from_iter(devices.map(row)).to_string()
}

fn before(now: ReceivedAt, micros: i64) -> ReceivedAt {
    ReceivedAt::from_micros(now.micros().saturating_sub(micros))
}

fn command_id(row: &dyn Row) -> Result<CommandId, StoreError> {
    row.parsed(0, "command id")
}

/// From the fifteen columns of a fan-out.
fn head(row: &dyn Row) -> Result<Head, StoreError> {
    let created_at = row.time(7)?;
    let ttl_micros = row.int(6)?;
    let first_expires = created_at.micros().saturating_add(ttl_micros);
    let labels = from_json(Some(&row.text(4)?));
    Ok(Head {
        order: NewFanOut {
            command: Command {
                id: command_id(row)?,
                name: row.text(1)?,
                arguments: row.text(2)?,
                expires_at_ms: first_expires.div_euclid(1000),
                priority: row.number(3)?,
            },
            labels: labels.map_err(|error| unreadable("labels", error))?,
            interval_micros: row.int(5)?,
            ttl_micros,
            created_at,
            created_by: row.text(8)?,
            request: None,
        },
        devices: row.number(9)?,
        after: row.text(10)?,
        next_due_at: row.time(11)?,
        is_spread: row.bool(12)?,
        cancelled_at: row.maybe_time(13)?,
        is_unfinished: row.bool(14)?,
    })
}
