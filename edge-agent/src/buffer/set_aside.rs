//! Rows of the small tables that make no sense: damage, or somebody's hand. One such row must stop
//! nothing. It is moved out of its table, kept as text for a person, counted, and never read again.

use libsql::{Error, params};

use super::connect::number;
use super::file::File;

/// Rows kept for a person, the newest.
const ROWS_MAX: i64 = 100;

/// The most bytes kept of each row.
const CONTENT_BYTES_MAX: usize = 2048;

/// A row that was found to make no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OddRow {
    /// The table that it stood in.
    pub(super) table: &'static str,
    /// Its columns and values, as text.
    pub(super) content: String,
}

/// How many rows are set aside, and when the last one of the commands was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Aside {
    pub(super) rows: u64,
    pub(super) commands_at_ms: u64,
}

impl File {
    /// Keeps what stood in a row, within the transaction of its removal.
    pub(super) async fn keep_aside(&self, odd: &OddRow, now_ms: u64) -> Result<(), Error> {
        let mut end = odd.content.len().min(CONTENT_BYTES_MAX);
        while !odd.content.is_char_boundary(end) {
            end -= 1;
        }
        self.connection
            .execute(
                "INSERT INTO set_aside (at_ms, place, content) VALUES (?, ?, ?)",
                params![
                    i64::try_from(now_ms).unwrap_or(i64::MAX),
                    odd.table.as_bytes().to_vec(),
                    odd.content.as_bytes()[..end].to_vec()
                ],
            )
            .await?;
        self.connection
            .execute(
                "DELETE FROM set_aside WHERE id <= (SELECT max(id) FROM set_aside) - ?",
                [ROWS_MAX],
            )
            .await?;
        Ok(())
    }

    /// What is set aside. Its own rows may be odd too.
    pub(super) async fn aside(&self) -> Result<Aside, Error> {
        let count = "SELECT count(*) FROM set_aside";
        let commands = "SELECT coalesce(max(at_ms), 0) FROM set_aside
                        WHERE CAST(place AS BLOB) = CAST('command_queue' AS BLOB)
                        AND typeof(at_ms) = 'integer'";
        Ok(Aside {
            rows: number(&self.connection, count)
                .await?
                .max(0)
                .cast_unsigned(),
            commands_at_ms: u64::try_from(number(&self.connection, commands).await?).unwrap_or(0),
        })
    }
}
