//! One command to many devices, in the file.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::commands::{CommandRecord, STEP_ENDED, State};
use super::super::fan_out::{
    FAN_OUT_LATE_MICROS, FAN_OUT_LEASE_MICROS, FAN_OUT_PAGE, FanOut, FanOutStore, Head, NewFanOut,
    Step, withdrawals,
};
use super::super::fleet::DeviceFilter;
use super::super::labels::{from_json, to_json};
use super::super::requests::{Repeated, RequestKey};
use super::commands::{record, record_columns, repeated};
use super::file::File;
use super::query::limited;
use super::values::{self, bad, cell, int, maybe, maybe_int, number, text, text_cell, time_cell};
use super::{Embedded, fleet};

/// Fan-outs whose missed turns are looked for at a time: more than ever run at once.
const RUNNING_MAX: usize = 256;

const ORDER: &str = "INSERT INTO fan_outs (id, name, arguments, priority, labels, \
         interval_micros, ttl_micros, created_at, created_by, devices, after_device, next_due_at, \
         expires_at, spread, unfinished, touched_at, request_key, request_digest) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, '', ?8, ?10, 0, 1, ?8, ?11, ?12) \
     ON CONFLICT DO NOTHING";

const REPEATED: &str = "SELECT id, request_digest FROM fan_outs \
     WHERE created_by = ?1 AND request_key = ?2";

const HEAD: &str = "SELECT id, name, arguments, priority, labels, interval_micros, ttl_micros, \
         created_at, created_by, devices, after_device, next_due_at, spread, cancelled_at, \
         unfinished FROM fan_outs WHERE id = ?1";

const TURN: &str = "INSERT INTO commands (device_id, id, name, arguments, priority, state, step, \
         percent, output, created_at, created_by, expires_at, sent_times, cancel, due_at) \
     SELECT ?2, id, name, arguments, priority, 'queued', 0, 0, '', created_at, created_by, ?4, 0, \
         0, ?3 \
     FROM fan_outs WHERE id = ?1 ON CONFLICT DO NOTHING";

const PASS: &str = "UPDATE fan_outs SET devices = devices + ?2, after_device = ?3, \
         next_due_at = ?4, expires_at = max(expires_at, ?5), spread = ?6, unfinished = NOT ?6, \
         touched_at = ?7 \
     WHERE id = ?1";

const CANCEL: &str = "UPDATE fan_outs SET cancelled_at = ?2, unfinished = 1, touched_at = ?2 \
     WHERE id = ?1 AND cancelled_at IS NULL";

const TOUCH: &str = "UPDATE fan_outs SET unfinished = ?2, touched_at = ?3 WHERE id = ?1";

const WITHDRAW_QUEUED: &str = "UPDATE commands SET state = 'cancelled', step = ?3, ended_at = ?2, \
         due_at = NULL \
     WHERE (device_id, id) IN (SELECT device_id, id FROM commands \
         WHERE id = ?1 AND state = 'queued' LIMIT ?4)";

const TO_TELL: &str = "SELECT device_id FROM commands \
     WHERE id = ?1 AND state IN ('sent', 'delivered', 'running') AND NOT cancel \
         AND ended_at IS NULL LIMIT ?2";

const TELL: &str = "UPDATE commands SET cancel = 1, due_at = ?3 WHERE device_id = ?2 AND id = ?1";

const UNFINISHED: &str = "SELECT id FROM fan_outs \
     WHERE unfinished AND touched_at < ?1 ORDER BY touched_at LIMIT ?2";

const RUNNING: &str = "SELECT id FROM fan_outs WHERE expires_at > ?1 AND cancelled_at IS NULL \
     ORDER BY id DESC LIMIT ?2";

const MISSED: &str = "SELECT device_id FROM commands WHERE id = ?1 AND state = 'queued' \
     AND due_at < ?2 AND expires_at > ?3 ORDER BY device_id LIMIT ?4";

const POSTPONE: &str = "UPDATE commands SET due_at = ?3 \
     WHERE device_id = ?2 AND id = ?1 AND step = 0";

const NEXT_TURN: &str = "UPDATE fan_outs SET next_due_at = ?2 WHERE id = ?1";

const STATES: &str =
    "SELECT state, count(*) FROM commands WHERE id = ?1 GROUP BY state ORDER BY state";

const IN_STATE: &str =
    record_columns!("WHERE id = ?1 AND state = ?2 AND device_id > ?3 ORDER BY device_id LIMIT ?4");

#[async_trait]
impl FanOutStore for Embedded {
    async fn order_fan_out(&self, new: &NewFanOut) -> Result<Option<Repeated>, StoreError> {
        let command = &new.command;
        let values = vec![
            id_cell(command.id),
            text_cell(&command.name),
            text_cell(&command.arguments),
            Cell::Integer(i64::from(command.priority)),
            Cell::Text(to_json(&new.labels)),
            Cell::Integer(new.interval_micros),
            Cell::Integer(new.ttl_micros),
            time_cell(new.created_at),
            text_cell(&new.created_by),
            Cell::Integer(command.expires_at_ms.saturating_mul(1000)),
            maybe(new.request.as_ref().map(|request| text_cell(request.key()))),
            maybe(
                new.request
                    .as_ref()
                    .map(|request| Cell::Integer(request.digest())),
            ),
        ];
        self.write(move |file| Ok(file.execute(ORDER, values).map(drop)?))
            .await?;
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
        let values = vec![text_cell(created_by), text_cell(request.key())];
        let request = request.clone();
        self.read(move |file| {
            let found = file.query(REPEATED, values, |row| repeated(row, &request))?;
            Ok(found.into_iter().next())
        })
        .await
    }

    async fn advance_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        self.write(move |file| {
            let Some(head) = head(file, id)? else {
                return Ok(false);
            };
            match head.step() {
                Step::Nothing => Ok(false),
                Step::Spread => spread(file, &head, now),
                Step::Withdraw => withdraw(file, id, now),
            }
        })
        .await
    }

    async fn unfinished_fan_outs(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<CommandId>, StoreError> {
        let before = Cell::Integer(now.micros().saturating_sub(FAN_OUT_LEASE_MICROS));
        let values = vec![before, limited(limit)];
        self.read(move |file| file.query_sound(UNFINISHED, values, command_id))
            .await
    }

    async fn postpone_fan_outs(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        let values = vec![time_cell(now), limited(RUNNING_MAX)];
        let running = self.read(move |file| file.query(RUNNING, values, command_id));
        let mut postponed = 0;
        for id in running.await? {
            loop {
                let page = self.write(move |file| postpone(file, id, now)).await?;
                postponed += page as u64;
                if page < FAN_OUT_PAGE {
                    break;
                }
            }
        }
        Ok(postponed)
    }

    async fn cancel_fan_out(&self, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
        self.write(move |file| {
            file.execute(CANCEL, vec![id_cell(id), time_cell(now)])?;
            Ok(head(file, id)?.is_some())
        })
        .await
    }

    async fn fan_out(&self, id: CommandId) -> Result<Option<FanOut>, StoreError> {
        self.read(move |file| {
            let Some(head) = head(file, id)? else {
                return Ok(None);
            };
            let read = |row: &Row| {
                let word = text(row, 0)?;
                let state = State::parse(word).ok_or_else(|| bad("state of a command", word));
                Ok((state?, number(row, 1)?))
            };
            let states = file.query(STATES, vec![id_cell(id)], read)?;
            Ok(Some(head.into_fan_out(states)))
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
        let values = vec![
            id_cell(id),
            text_cell(state.as_str()),
            text_cell(after.map_or("", DeviceId::as_str)),
            limited(limit),
        ];
        self.read(move |file| file.query_sound(IN_STATE, values, record))
            .await
    }
}

/// Gives the next devices their turns. Returns whether there are more.
fn spread(file: &mut File, head: &Head, now: ReceivedAt) -> Result<bool, StoreError> {
    let filter = DeviceFilter {
        labels: head.order.labels.clone(),
        retired: Some(false),
        after: head.after.parse().ok(),
        limit: FAN_OUT_PAGE,
        ..DeviceFilter::default()
    };
    let found = fleet::find(file, &filter, ReceivedAt::default())?;
    let devices: Vec<DeviceId> = found.into_iter().map(|found| found.device).collect();
    let is_last = devices.len() < FAN_OUT_PAGE;
    let (turns, next) = head.turns(devices, now);
    let id = head.order.command.id;
    for turn in &turns {
        let device = text_cell(turn.device.as_str());
        let (due, expires) = (time_cell(turn.due_at), time_cell(turn.expires_at));
        file.execute(TURN, vec![id_cell(id), device, due, expires])?;
    }
    let last = turns.last();
    let after = last.map_or(head.after.as_str(), |turn| turn.device.as_str());
    let expires = last.map_or(head.next_due_at, |turn| turn.expires_at);
    let values = vec![
        id_cell(id),
        cell(turns.len() as u64),
        text_cell(after),
        time_cell(next),
        time_cell(expires),
        truth(is_last),
        time_cell(now),
    ];
    file.execute(PASS, values)?;
    Ok(!is_last)
}

/// Withdraws the next rows: first what was not sent, then what was. Returns whether there are more.
fn withdraw(file: &mut File, id: CommandId, now: ReceivedAt) -> Result<bool, StoreError> {
    let values = vec![
        id_cell(id),
        time_cell(now),
        Cell::Integer(STEP_ENDED),
        limited(FAN_OUT_PAGE),
    ];
    let mut done = file.execute(WITHDRAW_QUEUED, values)?;
    if done == 0 {
        let values = vec![id_cell(id), limited(FAN_OUT_PAGE)];
        let told = file.query_sound(TO_TELL, values, |row| values::device(row, 0))?;
        done = told.len();
        for (device, due) in told.iter().zip(withdrawals(now)) {
            let values = vec![id_cell(id), text_cell(device.as_str()), time_cell(due)];
            file.execute(TELL, values)?;
        }
    }
    file.execute(TOUCH, vec![id_cell(id), truth(done > 0), time_cell(now)])?;
    Ok(done > 0)
}

/// Gives turns that were missed the place behind the last one. Returns how many.
fn postpone(file: &mut File, id: CommandId, now: ReceivedAt) -> Result<usize, StoreError> {
    let Some(head) = head(file, id)? else {
        return Ok(0);
    };
    let late = Cell::Integer(now.micros().saturating_sub(FAN_OUT_LATE_MICROS));
    let values = vec![id_cell(id), late, time_cell(now), limited(FAN_OUT_PAGE)];
    let missed = file.query(MISSED, values, |row| values::device(row, 0))?;
    let (turns, next) = head.turns(missed, now);
    if turns.is_empty() {
        return Ok(0);
    }
    for turn in &turns {
        let device = text_cell(turn.device.as_str());
        file.execute(POSTPONE, vec![id_cell(id), device, time_cell(turn.due_at)])?;
    }
    file.execute(NEXT_TURN, vec![id_cell(id), time_cell(next)])?;
    Ok(turns.len())
}

fn head(file: &mut File, id: CommandId) -> Result<Option<Head>, StoreError> {
    Ok(file.query(HEAD, vec![id_cell(id)], read_head)?.pop())
}

fn id_cell(id: CommandId) -> Cell {
    Cell::Text(id.to_string())
}

fn truth(is: bool) -> Cell {
    Cell::Integer(i64::from(is))
}

fn command_id(row: &Row) -> Result<CommandId, StoreError> {
    let id = text(row, 0)?.parse();
    id.map_err(|error| bad("command id", error))
}

/// From the fifteen columns of a fan-out.
fn read_head(row: &Row) -> Result<Head, StoreError> {
    let created_at = values::received(row, 7)?;
    let ttl_micros = int(row, 6)?;
    let first_expires = created_at.micros().saturating_add(ttl_micros);
    let labels = from_json(Some(text(row, 4)?));
    Ok(Head {
        order: NewFanOut {
            command: Command {
                id: command_id(row)?,
                name: text(row, 1)?.to_owned(),
                arguments: text(row, 2)?.to_owned(),
                expires_at_ms: first_expires.div_euclid(1000),
                priority: u8::try_from(int(row, 3)?).map_err(|error| bad("priority", error))?,
            },
            labels: labels.map_err(|error| bad("labels", error))?,
            interval_micros: int(row, 5)?,
            ttl_micros,
            created_at,
            created_by: text(row, 8)?.to_owned(),
            request: None,
        },
        devices: number(row, 9)?,
        after: text(row, 10)?.to_owned(),
        next_due_at: values::received(row, 11)?,
        is_spread: int(row, 12)? != 0,
        cancelled_at: maybe_int(row, 13)?.map(ReceivedAt::from_micros),
        is_unfinished: int(row, 14)? != 0,
    })
}
