//! The table of commands: what was asked of this device, kept before it runs and after it ended, so
//! that nothing runs twice. Each change is its own transaction; commands are rare.
//!
//! A command is whole while it is open: until it has ended and the bridge has noted that. From then
//! on its id and its end are all that is kept, a hundred bytes, and of those at most
//! [`REMEMBERED_MAX`]. When there are more, the ones that expired first are forgotten; what has not
//! expired is never forgotten, and a new command has to wait.

use libsql::{Error, Row, params};
use schema::message::{Command, CommandId, CommandProgress, CommandState, Noted};

use super::file::File;

/// Most commands that are kept, open ones included: less than a MiB beside the bodies of open ones.
pub(crate) const REMEMBERED_MAX: i64 = 4_096;

/// How many are forgotten at a time when there is no room.
const FORGET_AT_ONCE: i64 = 64;

/// A command and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCommand {
    /// As the bridge sent it; without a name when only its withdrawal was heard.
    pub command: Command,
    /// Where it stands.
    pub progress: CommandProgress,
    /// Whether the bridge has noted that.
    pub noted: bool,
}

/// What became of a command that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is on the disk now.
    New,
    /// It was there; this is where it stands.
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

const COLUMNS: &str = "id, name, arguments, priority, state, percent, output, expires_at, reported";

impl File {
    /// Keeps a command unless it is known, or there is no room.
    pub(super) async fn keep_command(
        &self,
        command: &Command,
        state: CommandState,
        has_room: bool,
        now_ms: u64,
    ) -> Result<Kept, Error> {
        let id = id_bytes(command.id);
        let known = format!("SELECT {COLUMNS} FROM command_queue WHERE id = ?");
        let mut known = self.connection.query(&known, [id.clone()]).await?;
        if let Some(row) = known.next().await? {
            return Ok(Kept::Known(stored(&row)?.progress));
        }
        if !has_room || !self.has_place(now_ms).await? {
            return Ok(Kept::Full);
        }
        self.connection
            .execute(
                "INSERT INTO command_queue (id, name, arguments, priority, state, received_at, \
                 expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    id,
                    command.name.as_str(),
                    command.arguments.as_str(),
                    i64::from(command.priority),
                    number(state),
                    time(now_ms),
                    command.expires_at_ms
                ],
            )
            .await?;
        Ok(Kept::New)
    }

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

    /// Writes where a command stands; the bridge has not noted that yet.
    pub(super) async fn move_command(
        &self,
        progress: &CommandProgress,
        now_ms: u64,
    ) -> Result<(), Error> {
        let now = time(now_ms);
        let started = (progress.state == CommandState::Running).then_some(now);
        let ended = progress.state.is_final().then_some(now);
        self.connection
            .execute(
                "UPDATE command_queue SET state = ?, percent = ?, output = ?, reported = 0, \
                 started_at = coalesce(started_at, ?), ended_at = coalesce(ended_at, ?) \
                 WHERE id = ?",
                params![
                    number(progress.state),
                    i64::from(progress.percent),
                    progress.output.as_str(),
                    started,
                    ended,
                    id_bytes(progress.id)
                ],
            )
            .await?;
        Ok(())
    }

    /// Takes down what the bridge has noted, drops the bodies of what has ended, and forgets commands that ended, were noted and
    /// expired before `forget_before_ms`.
    pub(super) async fn note_commands(
        &self,
        noted: &[Noted],
        forget_before_ms: i64,
    ) -> Result<(), Error> {
        for Noted { id, state } in noted {
            self.connection
                .execute(
                    "UPDATE command_queue SET reported = 1, \
                     arguments = CASE WHEN state > ?3 THEN '' ELSE arguments END, \
                     output = CASE WHEN state > ?3 THEN '' ELSE output END \
                     WHERE id = ?1 AND state = ?2",
                    params![id_bytes(*id), number(*state), number(CommandState::Running)],
                )
                .await?;
        }
        self.connection
            .execute(
                "DELETE FROM command_queue WHERE state > ? AND reported = 1 AND expires_at < ?",
                params![number(CommandState::Running), forget_before_ms],
            )
            .await?;
        Ok(())
    }

    /// The commands that are open.
    pub(super) async fn commands(&self) -> Result<StoredCommands, Error> {
        self.drop_bodies().await?;
        let mut found = StoredCommands::default();
        let open = format!(
            "SELECT {COLUMNS} FROM command_queue WHERE state <= ? OR reported = 0 ORDER BY id"
        );
        let running = number(CommandState::Running);
        let mut rows = self.connection.query(&open, [running]).await?;
        while let Some(row) = rows.next().await? {
            found.commands.push(stored(&row)?);
        }
        // A recovery: see the table's description.
        let recovered = "SELECT coalesce(max(at_ms), 0) FROM sync_log WHERE kind = 4";
        let mut rows = self.connection.query(recovered, ()).await?;
        if let Some(row) = rows.next().await? {
            found.forgot_until_ms = u64::try_from(row.get::<i64>(0)?).unwrap_or(0);
        }
        Ok(found)
    }
}

impl File {
    /// Of what an agent before 0.2 kept whole.
    async fn drop_bodies(&self) -> Result<(), Error> {
        let some = "UPDATE command_queue SET arguments = '', output = '' WHERE id IN (SELECT id \
             FROM command_queue WHERE state > ? AND reported = 1 \
                 AND (arguments <> '' OR output <> '') LIMIT ?)";
        let values = || params![number(CommandState::Running), FORGET_AT_ONCE];
        while self.connection.execute(some, values()).await? > 0 {}
        Ok(())
    }
}

fn stored(row: &Row) -> Result<StoredCommand, Error> {
    let id: Vec<u8> = row.get(0)?;
    let id = <[u8; 16]>::try_from(id).map_err(|_| Error::InvalidColumnType)?;
    let id = CommandId::from_bits(u128::from_be_bytes(id));
    let number = |column| -> Result<u8, Error> {
        u8::try_from(row.get::<i64>(column)?).map_err(|_| Error::InvalidColumnType)
    };
    let state = CommandState::ALL
        .get(usize::from(number(4)?))
        .ok_or(Error::InvalidColumnType)?;
    Ok(StoredCommand {
        command: Command {
            id,
            name: row.get(1)?,
            arguments: row.get(2)?,
            expires_at_ms: row.get(7)?,
            priority: number(3)?,
        },
        progress: CommandProgress {
            id,
            state: *state,
            percent: number(5)?,
            output: row.get(6)?,
        },
        noted: row.get::<i64>(8)? != 0,
    })
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
