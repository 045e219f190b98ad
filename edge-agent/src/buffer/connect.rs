//! How the file is opened, recognized and brought up to date.

use std::path::{Path, PathBuf};

use libsql::{Connection, Error};

use super::file::File;

/// Bytes of a page. A commit writes whole pages, so smaller ones cost a slow source less flash,
/// and larger ones a fast source; the longest row fits a page of 2 KiB. Measured, see
/// `docs/decisions/0005-edge-buffer.md`.
pub(super) const PAGE_BYTES: u32 = 2048;

/// Pages of log after which it is folded into the file: 1 MiB. Rows that are freed before are
/// never written to the file itself: at a thousand readings a second 256 pages cost a fifth more
/// flash, 1,000 a tenth less but twice the reserve (measured).
const CHECKPOINT_PAGES: u32 = 512;

/// A log that grew past this is cut when it is folded; below it, its blocks are used again, which
/// spares the file system's own journal.
const LOG_BYTES_KEPT: u32 = 2 * 1024 * 1024;

/// Memory for pages, in KiB: a small device has 64 MB in all.
const CACHE_KIB: u32 = 1024;

/// Says that a file is ours: `TLb` and, as a witness of `user_version`, the schema's version. A
/// flipped bit in either shows as damage, not as a file of a newer agent. At most 255 versions.
const APPLICATION_ID: i64 = 0x544c_6200;

/// A free part of the file larger than this, and three quarters of it, is given back at a start.
const FREE_BYTES_KEPT: u64 = 16 * 1024 * 1024;

/// In order; the position is the schema's version. Forward only.
const MIGRATIONS: [&str; 6] = [
    include_str!("../../../migrations/edge/0001_buffer.sql"),
    include_str!("../../../migrations/edge/0002_epochs.sql"),
    include_str!("../../../migrations/edge/0003_set_aside.sql"),
    include_str!("../../../migrations/edge/0004_source_positions.sql"),
    include_str!("../../../migrations/edge/0005_sensor_declarations.sql"),
    include_str!("../../../migrations/edge/0006_policies.sql"),
];

/// The highest schema that this build knows.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// A connection whose content is not known yet.
pub(super) struct Unchecked {
    connection: Connection,
}

/// What kind of file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing at all.
    Empty,
    /// A buffer of this schema version, which this build knows.
    Buffer(i64),
    /// A buffer of a newer version.
    Newer(i64),
    /// A database of another application.
    Foreign,
    /// Broken.
    Damaged(String),
}

/// Opens a file to look at it: nothing is written to it, not even what its log holds.
pub(super) async fn look_only(path: &Path) -> Result<File, Error> {
    let path =
        std::path::absolute(path).map_err(|error| Error::ConnectionFailed(error.to_string()))?;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let database = libsql::Builder::new_local(uri).build().await?;
    File::new(database.connect()?).await
}

impl Unchecked {
    /// Opens the file, and makes it when it is missing.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        // A path that begins with `file:` would be taken for a URI.
        let path = PathBuf::from(".").join(path);
        let connection = libsql::Builder::new_local(path).build().await?.connect()?;
        for pragma in [
            // One process, one connection: no shared memory file, and nobody else gets in.
            "locking_mode = EXCLUSIVE".to_owned(),
            format!("page_size = {PAGE_BYTES}"),
            format!("cache_size = -{CACHE_KIB}"),
            "cell_size_check = ON".to_owned(),
            "temp_store = MEMORY".to_owned(),
            "journal_mode = WAL".to_owned(),
            // An accepted reading survives a power cut.
            "synchronous = FULL".to_owned(),
            format!("wal_autocheckpoint = {CHECKPOINT_PAGES}"),
            format!("journal_size_limit = {LOG_BYTES_KEPT}"),
        ] {
            number(&connection, &format!("PRAGMA {pragma}")).await?;
        }
        Ok(Self { connection })
    }

    /// Looks at the whole file.
    pub(super) async fn content(&self) -> Result<Content, Error> {
        let tables = self.number("SELECT count(*) FROM sqlite_master").await?;
        let application = self.number("PRAGMA application_id").await?;
        let version = self.number("PRAGMA user_version").await?;
        if tables == 0 && application == 0 {
            return Ok(Content::Empty);
        }
        let mut rows = self
            .connection
            .query(
                "SELECT CAST(integrity_check AS BLOB) FROM pragma_integrity_check",
                (),
            )
            .await?;
        if let Some(row) = rows.next().await?
            && let libsql::Value::Blob(finding) = row.get_value(0)?
            && finding != b"ok"
        {
            return Ok(Content::Damaged(
                String::from_utf8_lossy(&finding).replace('\n', " "),
            ));
        }
        drop(rows);
        if application & !0xff != APPLICATION_ID {
            let ours = self
                .number("SELECT count(*) FROM sqlite_master WHERE name IN ('telemetry_data', 'sync_log')")
                .await?;
            return Ok(match ours {
                2 => Content::Damaged("the file's header is damaged".to_owned()),
                _ => Content::Foreign,
            });
        }
        Ok(match version {
            other if other < 1 || other != application & 0xff => {
                Content::Damaged(format!("the file's schema version is {other}"))
            }
            1..=SCHEMA_VERSION => Content::Buffer(version),
            newer => Content::Newer(newer),
        })
    }

    /// Applies what is missing after `version`, each migration in a transaction of its own.
    pub(super) async fn migrate(self, version: i64) -> Result<File, Error> {
        let known = usize::try_from(version).unwrap_or(0);
        for (migration, to) in MIGRATIONS.iter().zip(1i64..).skip(known) {
            let application = APPLICATION_ID | to;
            self.connection.execute("BEGIN IMMEDIATE", ()).await?;
            let applied = self
                .connection
                .execute_batch(&format!(
                    "{migration};
                     PRAGMA application_id = {application};
                     PRAGMA user_version = {to};
                     COMMIT"
                ))
                .await;
            if let Err(error) = applied {
                // An error often has rolled back already.
                let _ = self.connection.execute("ROLLBACK", ()).await;
                return Err(error);
            }
        }
        File::new(self.connection).await
    }

    /// Gives back a large free part, left over from an outage. What fails leaves all as it was.
    pub(super) async fn compact(&self) -> Result<bool, Error> {
        let pages = self.number("PRAGMA page_count").await?.cast_unsigned();
        let free = self.number("PRAGMA freelist_count").await?.cast_unsigned();
        let is_worth_it = free * u64::from(PAGE_BYTES) > FREE_BYTES_KEPT && free * 4 > pages * 3;
        if is_worth_it {
            self.connection.execute("VACUUM", ()).await?;
        }
        Ok(is_worth_it)
    }

    async fn number(&self, sql: &str) -> Result<i64, Error> {
        number(&self.connection, sql).await
    }
}

/// The first number of a query's first row; 0 when it has none.
pub(super) async fn number(connection: &Connection, sql: &str) -> Result<i64, Error> {
    let mut rows = connection.query(sql, ()).await?;
    let number = match rows.next().await? {
        Some(row) => match row.get_value(0)? {
            libsql::Value::Integer(number) => number,
            _ => 0,
        },
        None => 0,
    };
    while rows.next().await?.is_some() {}
    Ok(number)
}
