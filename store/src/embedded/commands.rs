//! Commands in the file.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;

use super::super::commands::{
    AGAIN_SECONDS, AGAIN_SECONDS_MAX, ASK_AGAIN_SECONDS, CommandRecord, CommandStore, CommandWord,
    DueCommand, EXPIRY_GRACE_MICROS, NewCommand, Queued, STEP_ENDED, State, last_words, step,
};
use super::super::requests::{Repeated, RequestKey};
use super::super::{QUERY_ROWS_MAX, StoreError};
use super::file::File;
use super::values::{self, bad, cell, int, maybe, maybe_int, text, text_cell, time_cell};
use super::{Embedded, fleet};

const QUEUE: &str = "INSERT INTO commands (device_id, id, name, arguments, priority, state, step, \
     percent, output, created_at, created_by, expires_at, sent_times, cancel, due_at, request_key, \
     request_digest) \
     VALUES (?1, ?2, ?3, ?4, ?5, 'queued', 0, 0, '', ?6, ?7, ?8, 0, 0, ?6, ?9, ?10) \
     ON CONFLICT DO NOTHING";

/// What is there under the key of a request.
const REPEATED: &str = "SELECT id, request_digest FROM commands \
     WHERE device_id = ?1 AND created_by = ?2 AND request_key = ?3";

const CLAIM: &str = "UPDATE commands SET \
         state = CASE WHEN step = 0 THEN 'sent' ELSE state END, step = max(step, 1), \
         sent_times = sent_times + 1, sent_at = ?1, \
         due_at = ?1 + min(?3, ?4 * (sent_times + 1)) * 1000000 \
     WHERE (device_id, id) IN ( \
         SELECT device_id, id FROM commands WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2) \
     RETURNING device_id, id, name, arguments, priority, expires_at, cancel, step >= 2";

const RECALL: &str = "UPDATE commands SET due_at = ?2 WHERE device_id = ?1 AND due_at > ?2 \
     AND step > 0";

const WORD: &str = "UPDATE commands SET state = ?3, step = ?4, percent = ?5, output = ?6, \
         heard_at = ?7, ended_at = CASE WHEN ?4 >= ?8 THEN ?7 ELSE NULL END, \
         due_at = CASE WHEN ?4 >= ?8 OR EXISTS (SELECT 1 FROM devices AS v \
                 WHERE v.device_id = ?1 AND v.retired_at IS NOT NULL) THEN NULL \
             WHEN cancel THEN coalesce(due_at, ?7) \
             ELSE ?7 + ?9 * 1000000 END \
     WHERE device_id = ?1 AND id = ?2 AND (step < ?4 OR (step = ?4 AND ?4 < ?8))";

const CANCEL_QUEUED: &str = "UPDATE commands SET state = 'cancelled', step = ?4, ended_at = ?3, \
         due_at = NULL WHERE device_id = ?1 AND id = ?2 AND step = 0";

const CANCEL_SENT: &str = "UPDATE commands SET cancel = 1, due_at = ?3 \
     WHERE device_id = ?1 AND id = ?2 AND step < ?4 AND ended_at IS NULL";

const EXPIRE: &str = "UPDATE commands SET state = 'expired', step = 1, ended_at = ?2, \
         due_at = NULL WHERE step <= 1 AND ended_at IS NULL AND expires_at < ?1";

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

const ONE: &str = record_columns!("WHERE device_id = ?1 AND id = ?2");
const LATEST: &str = record_columns!("WHERE device_id = ?1 ORDER BY id DESC LIMIT ?2");

#[async_trait]
impl CommandStore for Embedded {
    async fn queue_command(&self, new: &NewCommand) -> Result<Queued, StoreError> {
        let new = new.clone();
        self.write(move |file| queue(file, &new)).await
    }

    async fn claim_commands(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<DueCommand>, StoreError> {
        self.write(move |file| claim(file, now, limit)).await
    }

    async fn recall_commands(
        &self,
        devices: &[DeviceId],
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        let devices = devices.to_vec();
        self.write(move |file| recall(file, &devices, now)).await
    }

    async fn command_words(&self, words: &[CommandWord]) -> Result<u64, StoreError> {
        let words = words.to_vec();
        self.write(move |file| take_words(file, &words)).await
    }

    async fn cancel_command(
        &self,
        device: &DeviceId,
        id: CommandId,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let device = device.clone();
        self.write(move |file| cancel(file, &device, id, now)).await
    }

    async fn expire_commands(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        self.write(move |file| expire(file, now)).await
    }

    async fn command(
        &self,
        device: &DeviceId,
        id: CommandId,
    ) -> Result<Option<CommandRecord>, StoreError> {
        let values = vec![text_cell(device.as_str()), Cell::Text(id.to_string())];
        self.read(move |file| Ok(file.query(ONE, values, record)?.into_iter().next()))
            .await
    }

    async fn commands(
        &self,
        device: &DeviceId,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError> {
        let limit = cell(limit.min(QUERY_ROWS_MAX) as u64);
        let values = vec![text_cell(device.as_str()), limit];
        self.read(move |file| file.query_sound(LATEST, values, record))
            .await
    }
}

fn queue(file: &mut File, new: &NewCommand) -> Result<Queued, StoreError> {
    let repeated = match &new.request {
        Some(request) => {
            let by = text_cell(&new.created_by);
            let values = vec![text_cell(new.device.as_str()), by, text_cell(request.key())];
            let found = file.query(REPEATED, values, |row| repeated(row, request))?;
            found.into_iter().next()
        }
        None => None,
    };
    if repeated.is_some() {
        return Ok(Queued::of(new.command.id, repeated));
    }
    if fleet::is_retired(file, &new.device)? {
        return Ok(Queued::Retired);
    }
    let Command {
        id,
        name,
        arguments,
        expires_at_ms,
        priority,
    } = &new.command;
    let values = vec![
        text_cell(new.device.as_str()),
        Cell::Text(id.to_string()),
        text_cell(name),
        text_cell(arguments),
        Cell::Integer(i64::from(*priority)),
        time_cell(new.created_at),
        text_cell(&new.created_by),
        Cell::Integer(expires_at_ms.saturating_mul(1000)),
        maybe(new.request.as_ref().map(|request| text_cell(request.key()))),
        maybe(
            new.request
                .as_ref()
                .map(|request| Cell::Integer(request.digest())),
        ),
    ];
    file.execute(QUEUE, values)?;
    Ok(Queued::Kept)
}

fn claim(file: &mut File, now: ReceivedAt, limit: usize) -> Result<Vec<DueCommand>, StoreError> {
    let values = vec![
        time_cell(now),
        cell(limit as u64),
        Cell::Integer(AGAIN_SECONDS_MAX),
        Cell::Integer(AGAIN_SECONDS),
    ];
    file.query_sound(CLAIM, values, |row| {
        Ok(DueCommand {
            is_known: int(row, 7)? != 0,
            ..due(row)?
        })
    })
}

fn recall(file: &mut File, devices: &[DeviceId], now: ReceivedAt) -> Result<u64, StoreError> {
    let mut recalled = 0;
    for device in devices {
        let values = vec![text_cell(device.as_str()), time_cell(now)];
        recalled += file.execute(RECALL, values)?;
    }
    Ok(recalled as u64)
}

fn take_words(file: &mut File, words: &[CommandWord]) -> Result<u64, StoreError> {
    let mut changed = 0;
    for word in last_words(words) {
        let progress = &word.progress;
        let values = vec![
            text_cell(word.device.as_str()),
            Cell::Text(progress.id.to_string()),
            text_cell(progress.state.as_str()),
            Cell::Integer(step(progress.state)),
            Cell::Integer(i64::from(progress.percent)),
            text_cell(&progress.output),
            time_cell(word.received_at),
            Cell::Integer(STEP_ENDED),
            Cell::Integer(ASK_AGAIN_SECONDS),
        ];
        changed += file.execute(WORD, values)?;
    }
    Ok(changed as u64)
}

fn cancel(
    file: &mut File,
    device: &DeviceId,
    id: CommandId,
    now: ReceivedAt,
) -> Result<(), StoreError> {
    for sql in [CANCEL_QUEUED, CANCEL_SENT] {
        let values = vec![
            text_cell(device.as_str()),
            Cell::Text(id.to_string()),
            time_cell(now),
            Cell::Integer(STEP_ENDED),
        ];
        if file.execute(sql, values)? > 0 {
            break;
        }
    }
    Ok(())
}

fn expire(file: &mut File, now: ReceivedAt) -> Result<u64, StoreError> {
    let values = vec![
        Cell::Integer(now.micros().saturating_sub(EXPIRY_GRACE_MICROS)),
        time_cell(now),
    ];
    Ok(file.execute(EXPIRE, values)? as u64)
}

/// From two columns: id, request_digest.
pub(super) fn repeated(row: &Row, request: &RequestKey) -> Result<Repeated, StoreError> {
    let id = text(row, 0)?.parse();
    let id = id.map_err(|error| bad("command id", error))?;
    Ok(request.repeated(id, maybe_int(row, 1)?.unwrap_or_default()))
}

/// From seven columns: device_id, id, name, arguments, priority, expires_at, cancel.
fn due(row: &Row) -> Result<DueCommand, StoreError> {
    Ok(DueCommand {
        device: values::device(row, 0)?,
        command: Command {
            id: text(row, 1)?
                .parse()
                .map_err(|error| bad("command id", error))?,
            name: text(row, 2)?.to_owned(),
            arguments: text(row, 3)?.to_owned(),
            expires_at_ms: int(row, 5)?.div_euclid(1000),
            priority: u8::try_from(int(row, 4)?).map_err(|error| bad("priority", error))?,
        },
        cancel: int(row, 6)? != 0,
        is_known: false,
    })
}

pub(super) fn record(row: &Row) -> Result<CommandRecord, StoreError> {
    let DueCommand {
        device,
        command,
        cancel,
        ..
    } = due(row)?;
    let state = text(row, 7)?;
    let time = |at| Ok::<_, StoreError>(maybe_int(row, at)?.map(ReceivedAt::from_micros));
    Ok(CommandRecord {
        device,
        command,
        state: State::parse(state).ok_or_else(|| bad("state of a command", state))?,
        percent: u8::try_from(int(row, 8)?).map_err(|error| bad("percentage", error))?,
        output: text(row, 9)?.to_owned(),
        created_at: values::received(row, 10)?,
        created_by: text(row, 11)?.to_owned(),
        sent_times: values::number(row, 12)?,
        sent_at: time(13)?,
        heard_at: time(14)?,
        ended_at: time(15)?,
        cancel,
    })
}
