//! The statements of commands, of one row each or of a claim; who reads their rows; and the capability for every
//! database. At the pace of people, not of readings.

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::requests::{Repeated, RequestKey};
use super::super::sql::{self, Access, Broken, Database, Port, Row, cells, page_limit, unreadable};
use super::{
    AGAIN_SECONDS, AGAIN_SECONDS_MAX, ASK_AGAIN_SECONDS, AWAY_SECONDS, CommandRecord, CommandStore,
    DueCommand, EXPIRY_GRACE_MICROS, NewCommand, ProgressReport, Queued, STEP_ENDED, State,
    furthest, step,
};

/// Commands that are given up at a time.
const EXPIRE_MAX: usize = 1_000;

/// Nothing is kept for a device that is retired, nor when id or key are taken.
const QUEUE: &str = "INSERT INTO commands (device_id, id, name, arguments, priority, state, step, \
         percent, output, created_at, created_by, expires_at, sent_times, cancel, due_at, \
         request_key, request_digest) \
     SELECT $1::TEXT, $2::TEXT, $3::TEXT, $4::TEXT, $5::INT8, 'queued', 0, 0, '', \
         $6::TIMESTAMPTZ, $7::TEXT, $8::TIMESTAMPTZ, 0, false, $6::TIMESTAMPTZ, $9::TEXT, \
         $10::INT8 \
     WHERE NOT EXISTS (SELECT 1 FROM devices WHERE device_id = $1 AND retired_at IS NOT NULL) \
     ON CONFLICT DO NOTHING";

/// What is there under the key of a request.
const REPEATED: &str = "SELECT id, request_digest FROM commands \
     WHERE device_id = $1 AND created_by = $2 AND request_key = $3 AND request_key IS NOT NULL";

/// What is there under an id.
const KNOWN: &str = "SELECT id, request_digest FROM commands WHERE device_id = $1 AND id = $2";

/// What is due, in the words of its index, which holds only such rows: a plan of CockroachDB's for any values may not
/// use it else. So wherever an index holds only some rows. Away is a device by its last message, a will: a claim reads none of
/// the heads that readings are written to.
pub(crate) const CLAIM: &str = "UPDATE commands SET \
         state = CASE WHEN step = 0 THEN 'sent' ELSE state END, \
         step = CASE WHEN step = 0 THEN 1::INT2 ELSE step END, \
         sent_times = sent_times + 1, sent_at = $1, \
         due_at = $1 + CASE WHEN EXISTS (SELECT 1 FROM devices AS d \
                 WHERE d.device_id = commands.device_id AND d.session IS NOT NULL AND NOT d.online) \
             THEN $5::INT8 ELSE least($3::INT8, $4::INT8 * (sent_times + 1)) END \
             * interval '1 second' \
     WHERE (device_id, id) IN ( \
         SELECT device_id, id FROM commands WHERE due_at <= $1 AND due_at IS NOT NULL \
         ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
     RETURNING device_id, id, name, arguments, priority, expires_at, cancel, step >= 2";

const RECALL: &str = "UPDATE commands SET due_at = $2 \
     WHERE device_id = ANY($1) AND due_at IS NOT NULL AND due_at > $2 AND step > 0";

const PROGRESS: &str = "UPDATE commands SET state = $3, step = $4::INT8, percent = $5::INT8, \
         output = $6, heard_at = $7::TIMESTAMPTZ, \
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
pub(crate) const EXPIRE: &str = "UPDATE commands SET state = 'expired', step = 1, ended_at = $2, \
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

pub(crate) use record_columns;

const ONE: &str = record_columns!("WHERE device_id = $1 AND id = $2");
pub(crate) const LATEST: &str =
    record_columns!("WHERE device_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3");

#[async_trait]
impl<D: Database> CommandStore for D {
    async fn queue_command(&self, new: &NewCommand) -> Result<Queued, StoreError> {
        self.run(Access::Write, new.clone(), |port, new| {
            Box::pin(queue(port, new))
        })
        .await
    }

    async fn claim_commands(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<DueCommand>, StoreError> {
        // No page: run again it would claim more. What odd rows keep out is claimed by the next look.
        let cells = cells![now, limit, AGAIN_SECONDS_MAX, AGAIN_SECONDS, AWAY_SECONDS];
        self.list(Access::Write, CLAIM, cells, claimed).await
    }

    async fn recall_commands(
        &self,
        devices: &[DeviceId],
        now: ReceivedAt,
    ) -> Result<u64, StoreError> {
        let devices: Vec<String> = devices.iter().map(ToString::to_string).collect();
        self.execute(RECALL, cells![devices, now]).await
    }

    async fn record_progress(&self, reports: &[ProgressReport]) -> Result<u64, StoreError> {
        let mut changed = 0;
        for some in furthest(reports).chunks(self.writes_together()) {
            let some: Vec<ProgressReport> = some.iter().copied().cloned().collect();
            changed += self
                .run(Access::Write, some, |port, some| {
                    Box::pin(keep_progress(port, some))
                })
                .await?;
        }
        Ok(changed)
    }

    async fn cancel_command(
        &self,
        device: &DeviceId,
        id: CommandId,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let input = (device.clone(), id, now);
        self.run(Access::Write, input, |port, (device, id, now)| {
            Box::pin(cancel(port, device, *id, *now))
        })
        .await
    }

    async fn expire_commands(&self, now: ReceivedAt) -> Result<u64, StoreError> {
        let before = now.micros().saturating_sub(EXPIRY_GRACE_MICROS);
        let before = ReceivedAt::from_micros(before);
        self.execute(EXPIRE, cells![before, now, EXPIRE_MAX]).await
    }

    async fn command(
        &self,
        device: &DeviceId,
        id: CommandId,
    ) -> Result<Option<CommandRecord>, StoreError> {
        let cells = cells![device, id.to_string()];
        self.first(Access::Read, ONE, cells, record).await
    }

    async fn commands(
        &self,
        device: &DeviceId,
        after: Option<CommandId>,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError> {
        // Behind every id.
        let behind = after.map_or_else(|| "g".to_owned(), |after| after.to_string());
        let cells = cells![device, behind, page_limit(limit)];
        self.list(Access::Read, LATEST, cells, record).await
    }
}

async fn queue(port: &mut dyn Port, new: &NewCommand) -> Result<Queued, Broken> {
    let Command {
        id,
        name,
        arguments,
        expires_at_ms,
        priority,
    } = &new.command;
    let (id, request) = (*id, new.request.as_ref());
    let cells = cells![
        &new.device,
        id.to_string(),
        name,
        arguments,
        *priority,
        new.created_at,
        &new.created_by,
        ReceivedAt::from_micros(expires_at_ms.saturating_mul(1000)),
        request.map(RequestKey::key),
        request.map(RequestKey::digest),
    ];
    if port.execute(QUEUE, cells).await? > 0 {
        return Ok(Queued::Kept);
    }
    // By now everybody sees what took its place: another request's row, or its own from an attempt whose answer was lost.
    // Whether the device is retired is not asked once more, because that may have changed since.
    let found = match request {
        Some(request) => {
            let cells = cells![&new.device, &new.created_by, request.key()];
            let found = sql::first(port, REPEATED, cells, named).await?;
            found.map(|(id, digest)| request.repeated(id, digest))
        }
        None => {
            let cells = cells![&new.device, id.to_string()];
            let found = sql::first(port, KNOWN, cells, named).await?;
            found.map(|(id, _)| Repeated::Same(id))
        }
    };
    Ok(Queued::of(id, found))
}

async fn keep_progress(port: &mut dyn Port, reports: &[ProgressReport]) -> Result<u64, Broken> {
    let mut changed = 0;
    for report in reports {
        let progress = &report.progress;
        let cells = cells![
            &report.device,
            progress.id.to_string(),
            progress.state.as_str(),
            step(progress.state),
            progress.percent,
            &progress.output,
            report.received_at,
            STEP_ENDED,
            ASK_AGAIN_SECONDS,
        ];
        changed += port.execute(PROGRESS, cells).await?;
    }
    Ok(changed)
}

async fn cancel(
    port: &mut dyn Port,
    device: &DeviceId,
    id: CommandId,
    now: ReceivedAt,
) -> Result<(), Broken> {
    for sql in [CANCEL_QUEUED, CANCEL_SENT] {
        let cells = cells![device, id.to_string(), now, STEP_ENDED];
        if port.execute(sql, cells).await? > 0 {
            break;
        }
    }
    Ok(())
}

/// From two columns: id, request_digest, which is 0 without a key.
pub(crate) fn named(row: &dyn Row) -> Result<(CommandId, i64), StoreError> {
    let digest = row.maybe_int(1)?.unwrap_or_default();
    Ok((row.parsed(0, "command id")?, digest))
}

fn claimed(row: &dyn Row) -> Result<DueCommand, StoreError> {
    Ok(DueCommand {
        is_known: row.bool(7)?,
        ..due(row)?
    })
}

/// From seven columns: device_id, id, name, arguments, priority, expires_at, cancel.
fn due(row: &dyn Row) -> Result<DueCommand, StoreError> {
    Ok(DueCommand {
        device: row.device(0)?,
        command: Command {
            id: row.parsed(1, "command id")?,
            name: row.text(2)?,
            arguments: row.text(3)?,
            expires_at_ms: row.time(5)?.micros().div_euclid(1000),
            priority: row.number(4)?,
        },
        cancel: row.bool(6)?,
        is_known: false,
    })
}

/// From the sixteen columns of a command.
pub(crate) fn record(row: &dyn Row) -> Result<CommandRecord, StoreError> {
    let DueCommand {
        device,
        command,
        cancel,
        ..
    } = due(row)?;
    Ok(CommandRecord {
        device,
        command,
        state: state(row, 7)?,
        percent: row.number(8)?,
        output: row.text(9)?,
        created_at: row.time(10)?,
        created_by: row.text(11)?,
        sent_times: row.number(12)?,
        sent_at: row.maybe_time(13)?,
        heard_at: row.maybe_time(14)?,
        ended_at: row.maybe_time(15)?,
        cancel,
    })
}

pub(crate) fn state(row: &dyn Row, at: usize) -> Result<State, StoreError> {
    let text = row.text(at)?;
    State::parse(&text).ok_or_else(|| unreadable("state of a command", text))
}
