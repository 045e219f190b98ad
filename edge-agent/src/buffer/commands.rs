//! The table of commands: what was sent to this device, kept before it runs and after it ended, so
//! that nothing runs twice. Each change is its own transaction; commands are rare.
//!
//! A command is whole while it is open: until it has ended and the bridge has noted that. From then
//! on its id and its end are all that is kept, a hundred bytes, and of those at most
//! [`REMEMBERED_MAX`]. When there are more, the ones that expired first are forgotten; what has not
//! expired is never forgotten, and a new command has to wait.
//!
//! A row that makes no sense stops none of the others. When its id can be read, the command may have
//! run: it ends as unknown, and is reported so. When it cannot, the row is set aside, and with it goes the
//! memory of one command: orders from before are not run any more, as after a damaged file.

use libsql::{Error, params};
use schema::limits::{COMMAND_BODY_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::{Command, CommandId, CommandProgress, CommandState, Noted};

use super::connect::number as first_number;
use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::set_aside::OddRow;
use super::stored::{self, Stored};

/// Most commands that are kept, open ones included: less than a MiB beside the bodies of open ones.
pub(crate) const REMEMBERED_MAX: i64 = 4_096;

/// How many are forgotten at a time when there is no room.
const FORGET_AT_ONCE: i64 = 64;

/// A command and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCommand {
    /// As the bridge sent it; without a name when only its withdrawal was received.
    pub command: Command,
    /// Its state, its progress and its output so far.
    pub progress: CommandProgress,
    /// Whether the bridge has noted that state.
    pub noted: bool,
}

/// What became of a command that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It was not known, and is on the disk now.
    New,
    /// It is known; this is its state.
    Known(CommandProgress),
    /// It is not known, and there is no room. Nothing was kept.
    Full,
}

/// What the table knows at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredCommands {
    /// Commands that are open: they have not ended, or the bridge has not noted it. Oldest first.
    pub commands: Vec<StoredCommand>,
    /// Until when commands may have been forgotten with a damaged file, milliseconds since the Unix
    /// epoch; 0 for never.
    pub forgot_until_ms: u64,
}

/// The table's name.
const TABLE: &str = "command_queue";

/// The columns that are read.
const COLUMNS: [&str; 9] = [
    "id",
    "name",
    "arguments",
    "priority",
    "state",
    "percent",
    "output",
    "expires_at",
    "reported",
];

/// The output of a command whose row makes no sense.
const ODD: &str = "what this device had kept of the command makes no sense; it may have run";

/// A row of the table, as far as it makes sense.
enum Found {
    Sound(StoredCommand),
    /// Only its id makes sense.
    Known(CommandId, OddRow),
    /// Nothing of it makes sense; the key finds the row again.
    Lost(RowKey, OddRow),
}

/// Finds a row by its key, of whatever type that is.
pub(super) type RowKey = (String, Vec<u8>);

/// Which rows to read.
enum Which {
    One(CommandId),
    /// Rows that are not known to have ended and been noted.
    Open,
    All,
}

impl Buffer {
    /// Keeps a command in this state, unless it is known. Without room nothing is kept, and only
    /// what is known is answered.
    ///
    /// # Errors
    /// [`BufferError`]; then it was not kept.
    pub async fn keep_command(
        &self,
        command: Command,
        state: CommandState,
        has_room: bool,
    ) -> Result<Kept, BufferError> {
        self.write_table(async move |file, now_ms| {
            let mut known = file.find(Which::One(command.id)).await?;
            if let Some(known) = known.pop() {
                return Ok(Kept::Known(match known {
                    Found::Sound(known) => known.progress,
                    Found::Known(..) | Found::Lost(..) => unknown(command.id).progress,
                }));
            }
            if !has_room || !file.has_place(now_ms).await? {
                return Ok(Kept::Full);
            }
            file.connection
                .execute(
                    "INSERT INTO command_queue (id, name, arguments, priority, state, received_at, \
                     expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    params![
                        id_bytes(command.id),
                        command.name,
                        command.arguments,
                        i64::from(command.priority),
                        number(state),
                        time(now_ms),
                        command.expires_at_ms
                    ],
                )
                .await?;
            Ok(Kept::New)
        })
        .await
    }

    /// Writes the state of a command, which is then to be reported.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub async fn move_command(&self, progress: CommandProgress) -> Result<(), BufferError> {
        self.write_table(async move |file, now_ms| {
            let now = time(now_ms);
            let started = (progress.state == CommandState::Running).then_some(now);
            let ended = progress.state.is_final().then_some(now);
            file.connection
                .execute(
                    "UPDATE command_queue SET state = ?, percent = ?, output = ?, reported = 0, \
                     started_at = coalesce(started_at, ?), ended_at = coalesce(ended_at, ?) \
                     WHERE id = ?",
                    params![
                        number(progress.state),
                        i64::from(progress.percent),
                        progress.output,
                        started,
                        ended,
                        id_bytes(progress.id)
                    ],
                )
                .await
                .map(drop)
        })
        .await
    }

    /// Records what the bridge has noted and drops the bodies of what has ended; forgets commands that have
    /// ended, were noted, and expired before a time in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn note_commands(
        &self,
        noted: Vec<Noted>,
        forget_before_ms: i64,
    ) -> Result<(), BufferError> {
        self.write_table(async move |file, _| {
            for Noted { id, state } in noted {
                file.connection
                    .execute(
                        "UPDATE command_queue SET reported = 1, \
                         arguments = CASE WHEN state > ?3 THEN '' ELSE arguments END, \
                         output = CASE WHEN state > ?3 THEN '' ELSE output END \
                         WHERE id = ?1 AND state = ?2",
                        params![id_bytes(id), number(state), number(CommandState::Running)],
                    )
                    .await?;
            }
            file.connection
                .execute(
                    "DELETE FROM command_queue WHERE state > ? AND reported = 1 AND expires_at < ?",
                    params![number(CommandState::Running), forget_before_ms],
                )
                .await
                .map(drop)
        })
        .await
    }

    /// The commands that are open: those that have not ended, or whose end the bridge has not noted. Rows that
    /// make no sense are mended or set aside.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn commands(&self) -> Result<StoredCommands, BufferError> {
        self.read_table(TABLE, async |file, now_ms| {
            file.drop_bodies().await?;
            let mut found = StoredCommands::default();
            let mut odd = Vec::new();
            for row in file.find(Which::Open).await? {
                match row {
                    Found::Sound(known) => found.commands.push(known),
                    Found::Known(id, row) => {
                        found.commands.push(unknown(id));
                        odd.push((Ok(id), row));
                    }
                    Found::Lost(key, row) => odd.push((Err(key), row)),
                }
            }
            let odd_rows = odd.len() as u64;
            if !odd.is_empty() {
                let mend = async move |file: &mut File| {
                    for (which, row) in odd {
                        file.keep_aside(&row, now_ms).await?;
                        match which {
                            Ok(id) => file.end_as_unknown(id, now_ms).await?,
                            Err(key) => file.delete_by_key(TABLE, "id", key).await?,
                        }
                    }
                    Ok(())
                };
                file.transaction(mend).await?;
            }
            // After a recovery: see the head of this file.
            let recovered = "SELECT coalesce(max(at_ms), 0) FROM sync_log
                             WHERE kind = 4 AND typeof(at_ms) = 'integer'";
            let recovered = first_number(&file.connection, recovered).await?;
            let aside = file.aside().await?;
            found.forgot_until_ms = u64::try_from(recovered)
                .unwrap_or(0)
                .max(aside.commands_at_ms);
            Ok((found, odd_rows))
        })
        .await
    }
}

impl File {
    /// Whether one more may be kept. Of those that have ended, been noted and expired some are
    /// forgotten for it.
    async fn has_place(&self, now_ms: u64) -> Result<bool, Error> {
        let count = "SELECT count(*) FROM command_queue";
        let mut rows = self.connection.query(count, ()).await?;
        let count = match rows.next().await? {
            Some(row) => row.get::<i64>(0)?,
            None => 0,
        };
        if count < REMEMBERED_MAX {
            return Ok(true);
        }
        let forgotten = self
            .connection
            .execute(
                "DELETE FROM command_queue WHERE id IN (SELECT id FROM command_queue \
                 WHERE state > ? AND reported = 1 AND expires_at < ? ORDER BY expires_at LIMIT ?)",
                params![number(CommandState::Running), time(now_ms), FORGET_AT_ONCE],
            )
            .await?;
        Ok(forgotten > 0)
    }

    /// Deletes a row by its key, of whatever type that is.
    pub(super) async fn delete_by_key(
        &self,
        table: &str,
        key: &str,
        (kind, bytes): RowKey,
    ) -> Result<(), Error> {
        let delete =
            format!("DELETE FROM {table} WHERE typeof({key}) = ? AND CAST({key} AS BLOB) = ?");
        self.connection
            .execute(&delete, params![kind, bytes])
            .await?;
        Ok(())
    }

    /// The commands of a damaged file. What had not ended may have gone on in a part that is lost.
    pub(super) async fn salvaged_commands(&self) -> Result<Vec<StoredCommand>, Error> {
        let found = self.find(Which::All).await?;
        let known = found.into_iter().filter_map(|row| match row {
            Found::Sound(known) if known.progress.state.is_final() => Some(known),
            Found::Sound(known) => Some(unknown(known.command.id)),
            Found::Known(id, _) => Some(unknown(id)),
            Found::Lost(..) => None,
        });
        Ok(known.collect())
    }

    /// Keeps a command as it was in another file.
    pub(super) async fn restore_command(
        &self,
        known: &StoredCommand,
        now_ms: u64,
    ) -> Result<(), Error> {
        let StoredCommand {
            command,
            progress,
            noted,
        } = known;
        self.connection
            .execute(
                "INSERT OR IGNORE INTO command_queue (id, name, arguments, priority, state, \
                 percent, output, received_at, expires_at, ended_at, reported) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?8, ?10)",
                params![
                    id_bytes(command.id),
                    command.name.as_str(),
                    command.arguments.as_str(),
                    i64::from(command.priority),
                    number(progress.state),
                    i64::from(progress.percent),
                    progress.output.as_str(),
                    time(now_ms),
                    command.expires_at_ms,
                    i64::from(*noted)
                ],
            )
            .await?;
        Ok(())
    }

    async fn end_as_unknown(&self, id: CommandId, now_ms: u64) -> Result<(), Error> {
        let StoredCommand { progress, .. } = unknown(id);
        self.connection
            .execute(
                "INSERT OR REPLACE INTO command_queue (id, name, arguments, priority, state, \
                 output, received_at, expires_at, ended_at) VALUES (?1, '', '', 0, ?2, ?3, ?4, ?4, ?4)",
                params![
                    id_bytes(id),
                    number(progress.state),
                    progress.output,
                    time(now_ms)
                ],
            )
            .await?;
        Ok(())
    }

    async fn find(&self, which: Which) -> Result<Vec<Found>, Error> {
        let columns = stored::selected(&COLUMNS);
        let (condition, values) = match which {
            Which::One(id) => ("id = ?", vec![libsql::Value::Blob(id_bytes(id))]),
            Which::Open => {
                let known = [CommandState::Running, CommandState::Unknown].map(number);
                let condition =
                    "NOT (state > ? AND state <= ? AND reported = 1 AND typeof(id) = 'blob')";
                (condition, known.map(libsql::Value::Integer).to_vec())
            }
            Which::All => ("true", Vec::new()),
        };
        let sql = format!(
            "SELECT {columns}, CAST(id AS BLOB) FROM {TABLE} WHERE {condition} ORDER BY id"
        );
        let mut found = Vec::new();
        let mut rows = self.connection.query(&sql, values).await?;
        while let Some(row) = rows.next().await? {
            let values = stored::read(&row, COLUMNS.len())?;
            found.push(match command(&values) {
                Ok(known) => Found::Sound(known),
                Err(id) => {
                    let odd = OddRow {
                        table: TABLE,
                        content: stored::describe(&COLUMNS, &values),
                    };
                    match id {
                        Some(id) => Found::Known(id, odd),
                        None => Found::Lost(row_key(&values[0], &row, 2 * COLUMNS.len())?, odd),
                    }
                }
            });
        }
        Ok(found)
    }

    /// Drops the bodies of ended commands, which an agent before 0.2 kept.
    async fn drop_bodies(&self) -> Result<(), Error> {
        let some = "UPDATE command_queue SET arguments = '', output = '' WHERE id IN (SELECT id \
             FROM command_queue WHERE state > ? AND reported = 1 \
                 AND (arguments <> '' OR output <> '') LIMIT ?)";
        let values = || params![number(CommandState::Running), FORGET_AT_ONCE];
        while self.connection.execute(some, values()).await? > 0 {}
        Ok(())
    }
}

/// What finds a row again by its key, whatever that is: `key`, which stands as a blob in `column`, too.
pub(super) fn row_key(key: &Stored, row: &libsql::Row, column: usize) -> Result<RowKey, Error> {
    let kind = match key {
        Stored::Null => "null",
        Stored::Integer(_) => "integer",
        Stored::Real(_) => "real",
        Stored::Text(_) => "text",
        Stored::Blob(_) => "blob",
    };
    let column = i32::try_from(column).map_err(|_| Error::InvalidColumnIndex)?;
    let bytes = match row.get_value(column)? {
        libsql::Value::Blob(bytes) => bytes,
        _ => Vec::new(),
    };
    Ok((kind.to_owned(), bytes))
}

/// The command of a row, or its id when not even the rest makes sense.
fn command(values: &[Stored]) -> Result<StoredCommand, Option<CommandId>> {
    let [
        id,
        name,
        arguments,
        priority,
        state,
        percent,
        output,
        expires_at,
        reported,
    ] = values
    else {
        return Err(None);
    };
    let Stored::Blob(id) = id else {
        return Err(None);
    };
    let id = <[u8; 16]>::try_from(id.as_slice()).map_err(|_| None)?;
    let id = CommandId::from_bits(u128::from_be_bytes(id));
    let rest = || {
        let at: usize = state.number()?;
        let state = *CommandState::ALL.get(at)?;
        let reported: u8 = reported.number().filter(|reported| *reported <= 1)?;
        Some(StoredCommand {
            command: Command {
                id,
                name: name.text(KEY_BYTES_MAX)?,
                arguments: arguments.text(COMMAND_BODY_BYTES_MAX)?,
                expires_at_ms: expires_at.number()?,
                priority: priority.number()?,
            },
            progress: CommandProgress {
                id,
                state,
                percent: percent.number().filter(|percent| *percent <= 100)?,
                output: output.text(COMMAND_BODY_BYTES_MAX)?,
            },
            noted: reported == 1,
        })
    };
    rest().ok_or(Some(id))
}

/// A command of which only the id is known.
fn unknown(id: CommandId) -> StoredCommand {
    StoredCommand {
        command: Command {
            id,
            name: String::new(),
            arguments: String::new(),
            expires_at_ms: 0,
            priority: 0,
        },
        progress: CommandProgress {
            id,
            state: CommandState::Unknown,
            percent: 0,
            output: ODD.to_owned(),
        },
        noted: false,
    }
}

/// The number of a state, as on the wire.
fn number(state: CommandState) -> i64 {
    let at = CommandState::ALL.iter().position(|known| *known == state);
    at.unwrap_or_default() as i64
}

fn id_bytes(id: CommandId) -> Vec<u8> {
    id.bits().to_be_bytes().to_vec()
}

fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
