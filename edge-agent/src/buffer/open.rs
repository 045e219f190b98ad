//! Opens the buffer's file whatever state it is in: missing, sound, of an older schema, damaged.

use std::collections::BTreeSet;
use std::fs::{File as Disk, OpenOptions, TryLockError};
use std::io::Read;
use std::path::Path;

use daemon::Clock;
use schema::{Epoch, RangeSet, SeqRange};
use tracing::{error, info, warn};

use super::connect::{Content, SCHEMA_VERSION, Unchecked};
use super::error::{BufferError, is_content, is_unreadable};
use super::file::File;
use super::load::{LoadError, State, load};
use super::paths::Paths;
use super::place::Place;
use super::positions::kept_with_positions;
use super::recovery::{Recovery, create, recover};
use super::reserve::Reserve;
use super::row::to_sql;
use super::settings::BufferSettings;
use super::survey::{Source, Tail};
use super::wal;
use crate::clock::core::StartClock;

/// Bytes of the file's header that are looked at: up to the format's two version bytes.
const HEADER_BYTES: u64 = 20;

/// A file that is ready to be used.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) file: File,
    pub(super) state: State,
    pub(super) recovery: Option<Recovery>,
    pub(super) reserve: Reserve,
    pub(super) place: Place,
    /// Held as long as the file is used.
    pub(super) lock: Disk,
}

impl Ready {
    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        self.place.path()
    }
}

/// What a look at the file found.
enum Look {
    Sound(Box<(File, State)>),
    Damaged(String),
}

/// Opens the file, makes it when it is missing, and saves what can be read when it is damaged.
pub(super) async fn open(
    settings: &BufferSettings,
    clock: &dyn Clock,
    start: Option<StartClock>,
) -> Result<Ready, BufferError> {
    let paths = Paths::of(&settings.path);
    if let Some(folder) = settings.path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| BufferError::file("making the folder", folder, error))?;
    }
    if !exists(&paths.lock)? {
        refuse_foreign(&paths)?;
    }
    let lock = lock(&paths)?;
    if !exists(&paths.main)? && exists(&paths.new)? {
        // A recovery was interrupted after its last row, or the file was being put back. The log of the
        // file before may still stand.
        if exists(&paths.log)? || exists(&paths.copy)? {
            paths.move_aside(clock.now_ms())?;
        }
        paths.adopt_new()?;
    }
    if paths.is_buffer() {
        // What was to take its place did not: the beginning of a compacted file, or of a recovery.
        paths.remove_new()?;
        paths.remove_copy()?;
    }
    let is_missing = !exists(paths.content())? && !exists(&paths.log)?;
    if is_missing {
        create(&paths).await?;
        paths.adopt_new()?;
    }
    let mut recovery = None;
    let mut has_reserve = true;
    loop {
        let looked = match look(&paths, clock.now_ms(), start).await {
            // A file of an older schema is written to before it can be used.
            Err(BufferError::DiskFull { .. }) if std::mem::take(&mut has_reserve) => {
                Reserve::at(paths.reserve.clone()).release();
                continue;
            }
            looked => looked?,
        };
        match looked {
            Look::Sound(sound) => {
                let (file, state) = *sound;
                if is_missing {
                    let epoch = state.epochs.current().account.epoch();
                    info!(path = %paths.main.display(), %epoch, "made a new buffer");
                }
                return Ok(Ready {
                    file,
                    state,
                    recovery,
                    place: Place::of(&paths.main),
                    reserve: Reserve::at(paths.reserve),
                    lock,
                });
            }
            // What was just made anew is damaged: the disk does not keep what is written.
            Look::Damaged(damage) if recovery.is_some() || is_missing => {
                let error = std::io::Error::other(damage);
                return Err(BufferError::file("reading back", &paths.main, error));
            }
            Look::Damaged(damage) => {
                warn!(path = %paths.main.display(), %damage, "the buffer is damaged, saving what can be read");
                // The reserve is for a moment like this.
                Reserve::at(paths.reserve.clone()).release();
                let recovered = recover(&paths, damage, new_epoch(), clock.now_ms()).await;
                let recovered = recovered.inspect_err(|_| {
                    // The damaged file stays as it is; what was made of it so far takes room.
                    let _ = paths.remove_new();
                })?;
                log_recovery(&paths, &recovered);
                recovery = Some(recovered);
            }
        }
    }
}

/// Where no agent has run before, a file that holds nothing of a buffer is somebody's own: it is left alone.
fn refuse_foreign(paths: &Paths) -> Result<(), BufferError> {
    let unreadable = |error| BufferError::file("reading", &paths.main, error);
    if paths.may_be_buffer().map_err(unreadable)? {
        return Ok(());
    }
    let mut source = Source::open(paths).map_err(unreadable)?;
    let survey = source.survey().map_err(unreadable)?;
    let holds_nothing =
        survey.images.is_empty() && survey.names.is_empty() && survey.entries.is_empty();
    if holds_nothing {
        return Err(BufferError::Foreign {
            path: paths.main.clone(),
        });
    }
    Ok(())
}

/// Whether what stands at `path` begins as a damaged buffer, which a start recovers; nothing is changed.
///
/// # Errors
/// [`BufferError::Foreign`] where a start refuses it by its beginning, and when it cannot be read.
pub(crate) fn begins_damaged(path: &Path) -> Result<bool, BufferError> {
    let paths = Paths::of(path);
    if !exists(&paths.lock)? {
        refuse_foreign(&paths)?;
    }
    paths
        .begins_damaged()
        .map_err(|error| BufferError::file("reading", path, error))
}

/// Holds the lock file, so that one process at a time opens, and above all recovers, the buffer.
fn lock(paths: &Paths) -> Result<Disk, BufferError> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&paths.lock)
        .map_err(|error| BufferError::file("opening", &paths.lock, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BufferError::InUse {
            path: paths.main.clone(),
        }),
        Err(TryLockError::Error(error)) => Err(BufferError::file("locking", &paths.lock, error)),
    }
}

async fn look(paths: &Paths, now_ms: u64, start: Option<StartClock>) -> Result<Look, BufferError> {
    if !exists(&paths.main)? {
        return Ok(Look::Damaged(
            "the file is gone, its log or the beginning of a copy is there".into(),
        ));
    }
    // A file that the system does not let us read is not damaged.
    let opened = OpenOptions::new().read(true).write(true).open(&paths.main);
    let disk = opened.map_err(|error| BufferError::file("opening", &paths.main, error))?;
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    disk.take(HEADER_BYTES)
        .read_to_end(&mut header)
        .map_err(|error| BufferError::file("reading", &paths.main, error))?;
    // The file is closed again before SQLite opens it: closing drops the process's locks.
    if header.is_empty() {
        return Ok(Look::Damaged("the file is empty".into()));
    }
    // With a format that it does not know, SQLite would only read.
    if let [.., write_format, read_format] = *header
        && !([1, 2].contains(&write_format) && [1, 2].contains(&read_format))
    {
        return Ok(Look::Damaged("the file's header is damaged".into()));
    }
    let wal =
        wal::read(&paths.log).map_err(|error| BufferError::file("reading", &paths.log, error))?;
    if let Some(damage) = wal.damage {
        return Ok(Look::Damaged(damage.into()));
    }
    let tail =
        Tail::read(paths, &wal).map_err(|error| BufferError::file("reading", &paths.log, error))?;
    match look_inside(paths, &tail, now_ms, start).await {
        Ok(sound) => Ok(Look::Sound(Box::new(sound))),
        Err(Trouble::Load(LoadError::Damaged(damage))) => Ok(Look::Damaged(damage)),
        Err(Trouble::Load(LoadError::Database(error)))
            if is_content(&error) || is_unreadable(&error) =>
        {
            Ok(Look::Damaged(error.to_string()))
        }
        Err(Trouble::Load(LoadError::Database(error))) => {
            Err(BufferError::from_libsql(&paths.main, error))
        }
        Err(Trouble::Refused(refused)) => Err(refused),
    }
}

/// Why a file is not used as it is.
enum Trouble {
    Load(LoadError),
    Refused(BufferError),
}

impl<E: Into<LoadError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Load(error.into())
    }
}

async fn look_inside(
    paths: &Paths,
    tail: &Tail,
    now_ms: u64,
    start: Option<StartClock>,
) -> Result<(File, State), Trouble> {
    let path = &paths.main;
    let unchecked = Unchecked::open(path).await?;
    let version = match unchecked.content().await? {
        Content::Buffer(version) => version,
        Content::Empty => return Err(damaged("the file holds no tables")),
        Content::Damaged(damage) => return Err(damaged(damage)),
        Content::Newer(found) => {
            return Err(Trouble::Refused(BufferError::Newer {
                path: path.clone(),
                found,
                known: SCHEMA_VERSION,
            }));
        }
        Content::Foreign => {
            return Err(Trouble::Refused(BufferError::Foreign {
                path: path.clone(),
            }));
        }
    };
    match unchecked.compact().await {
        Ok(true) => info!(path = %path.display(), "gave back the free part of the buffer"),
        Ok(false) => {}
        // It needs room for a moment; the next start tries again.
        Err(error) => warn!(path = %path.display(), %error, "the buffer was not compacted"),
    }
    let mut file = unchecked.migrate(version).await?;
    file.limit_positions().await?;
    let mut state = load(&file, (new_epoch(), start)).await?;
    match redo(&mut file, &mut state, tail, now_ms).await {
        Ok(0) => Ok((file, state)),
        Ok(rows) => {
            warn!(path = %path.display(), rows, "the last commit was cut short, its readings are kept");
            let state = load(&file, (new_epoch(), start)).await?;
            Ok((file, state))
        }
        Err(error) => {
            // It was the disk that had no room for them, and so did not accept them.
            file.rollback().await;
            warn!(path = %path.display(), %error, "the last commit was cut short and is dropped");
            let state = load(&file, (new_epoch(), start)).await?;
            Ok((file, state))
        }
    }
}

/// Adds the readings of a last commit that SQLite has dropped, under their own row numbers and an
/// epoch of their own, with the clock of the start that took them. Returns how many.
async fn redo(
    file: &mut File,
    state: &mut State,
    tail: &Tail,
    now_ms: u64,
) -> Result<u64, libsql::Error> {
    let last_row = state.epochs.last_row();
    let mut rows: Vec<_> = tail
        .rows
        .range(last_row + 1..)
        .zip(last_row + 1..)
        .take_while(|((seq, _), next)| *seq == next)
        .map(|((_, row), _)| row)
        .take_while(|(key, ..)| {
            state.sensors.name(key.sensor).is_some() || tail.names.contains_key(&key.sensor)
        })
        .collect();
    let keys: Vec<_> = rows.iter().map(|(key, ..)| *key).collect();
    rows.truncate(kept_with_positions(&keys, &tail.positions));
    if rows.is_empty() {
        return Ok(0);
    }
    file.begin().await?;
    let mut added = BTreeSet::new();
    for (key, quality, value) in &rows {
        if state.sensors.name(key.sensor).is_none()
            && added.insert(key.sensor)
            && let Some(name) = tail.names.get(&key.sensor)
        {
            file.add_sensor(key.sensor, name.as_str()).await?;
        }
        file.add_row(*key, key.mark(*quality, value), to_sql(value))
            .await?;
    }
    file.finish_rows().await?;
    let with_rows = last_row + 1..=last_row + rows.len() as u64;
    for kept in &tail.positions {
        if kept.first_row <= kept.last_row
            && with_rows.contains(&kept.first_row)
            && with_rows.contains(&kept.last_row)
        {
            file.keep_position(kept).await?;
        }
    }
    if let Some(anchor) = state.anchor.filter(|anchor| anchor.is_spent) {
        file.delete_rows(SeqRange::one(anchor.key.seq).into_iter())
            .await?;
    }
    // The commit began its start's epoch, or was of the newest that the file has.
    let clock = tail.begins_at(last_row).or(state.epochs.clock_before());
    if let Some(clock) = clock {
        state.epochs.begin_clock(clock);
    }
    let last_row = last_row + rows.len() as u64;
    let none = RangeSet::new();
    let plan = state.epochs.plan(last_row, &none, now_ms, &mut state.ids);
    file.write_log(plan.writes()).await?;
    file.commit().await?;
    Ok(rows.len() as u64)
}

fn damaged(what: impl Into<String>) -> Trouble {
    Trouble::Load(LoadError::Damaged(what.into()))
}

fn exists(path: &Path) -> Result<bool, BufferError> {
    path.try_exists()
        .map_err(|error| BufferError::file("looking for", path, error))
}

/// A random name, which no other epoch has.
pub(super) fn new_epoch() -> Epoch {
    Epoch::from_random(rand::random())
}

/// Logs what was saved, and what may be missing.
fn log_recovery(paths: &Paths, recovery: &Recovery) {
    error!(
        path = %paths.main.display(),
        kept_as = %recovery.kept_as.display(),
        damage = %recovery.damage,
        salvaged = recovery.salvaged,
        missing_known = recovery.missing,
        unnamed = recovery.unnamed,
        "the buffer was damaged and is made anew: what could be read is saved, readings may be missing"
    );
}
