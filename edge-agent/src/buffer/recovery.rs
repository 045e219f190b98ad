//! What is done about a damaged file: it is moved aside, and what can be read of it goes into a
//! new one, under a new epoch.
//!
//! ```text
//! NAME damaged ─► NAME.new filled and synced ─► NAME to NAME.damaged-TIME ─► NAME.new to NAME
//! ```
//!
//! A crash at any point is safe: as long as NAME stands, NAME.new counts for nothing and is made
//! again; when NAME is gone, NAME.new is whole. Rows keep their clock and their time of
//! observation, so a reading that the database has already is no conflict there. Nothing is
//! written to the damaged file, and nothing of it is deleted.

use std::collections::{BTreeMap, HashMap};
use std::fs::File as Disk;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use schema::limits::REPORT_EPOCHS_MAX;
use schema::{Epoch, Hlc, Quality, RangeSet, SensorName, SeqRange, Value};

use super::account::Counts;
use super::error::BufferError;
use super::file::{PAGE_BYTES, Unchecked, sensor_entry};
use super::load::{Ledger, ended};
use super::log::{Entry, Ids, Kind, Write};
use super::pages::{self, Record};
use super::row::{Cell, Columns, Held, Key, SENSORS_MAX, SensorId, to_sql};
use super::sensors::Sensors;
use super::wal::{self, Wal};

/// Rows saved in one transaction.
const COMMIT_ROWS: u64 = 4096;

/// Damaged files of one second.
const NAMES_MAX: u32 = 100;

/// Rows and names of a last commit that is not whole. Whether it was ever accepted cannot be told,
/// so what of it is readable is kept: a reading more does no harm, a sequence given twice would.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) rows: BTreeMap<u64, (Key, Quality, Value)>,
    pub(super) names: HashMap<SensorId, SensorName>,
}

/// What was done about a damaged file, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What was wrong with it.
    pub damage: String,
    /// Where the damaged file is now.
    pub kept_as: PathBuf,
    /// Its identity, when it could be read.
    pub old_epoch: Option<Epoch>,
    /// Readings that were saved into the new file.
    pub salvaged: u64,
    /// Pending readings that are known to be missing, when the damaged file still told anything of
    /// them. There may be more: a file whose end was cut off does not tell how much it held.
    pub missing: Option<u64>,
    /// Saved readings whose sensor's name could not be read: they are under `unknown-sensor-N`.
    pub unnamed: u64,
}

/// The files of one buffer.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) main: PathBuf,
    pub(super) log: PathBuf,
    pub(super) new: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) reserve: PathBuf,
}

/// One page image that holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Image {
    first_seq: u64,
    is_in_log: bool,
    is_first_page: bool,
    at: u64,
}

impl Tail {
    /// Reads the tail of the log, before SQLite drops it.
    pub(super) fn read(paths: &Paths, wal: &Wal) -> io::Result<Self> {
        let mut tail = Self::default();
        if wal.tail.is_empty() {
            return Ok(tail);
        }
        let mut source = Source::open(paths)?;
        for &(page, at) in &wal.tail {
            let image = Image::in_log(page, at);
            pages::for_each_record(source.page(image), image.is_first_page, |record| {
                if let Some(Held::Reading(key, quality, value)) = reading(&record) {
                    tail.rows.insert(key.seq, (key, quality, value));
                }
                if let [_, name, mark] = record.columns()
                    && let Some((id, name)) = sensor_entry(record.rowid, *name, *mark)
                    && let Ok(name) = name.parse()
                {
                    tail.names.insert(id, name);
                }
            });
        }
        Ok(tail)
    }
}

impl Image {
    const fn in_log(page: u32, at: u64) -> Self {
        Self {
            first_seq: 0,
            is_in_log: true,
            is_first_page: page == 1,
            at,
        }
    }
}

/// What the raw pages hold beside readings.
#[derive(Default)]
struct Survey {
    images: Vec<Image>,
    names: HashMap<SensorId, String>,
    entries: Vec<Entry>,
    last_seq: u64,
    hlc_max: u64,
}

/// An epoch, as the rows of the log tell it. Rows of older images only say less.
struct Known {
    epoch: Epoch,
    ended_at: u64,
    counts: Counts,
    settled: RangeSet,
    given_up: RangeSet,
}

impl Paths {
    pub(super) fn of(main: &Path) -> Self {
        Self {
            main: main.to_owned(),
            log: with_suffix(main, "-wal"),
            new: with_suffix(main, ".new"),
            lock: with_suffix(main, ".lock"),
            reserve: with_suffix(main, ".reserve"),
        }
    }

    /// Removes what an interrupted recovery or a first start left behind.
    pub(super) fn remove_new(&self) -> Result<(), BufferError> {
        for path in [&self.new, &with_suffix(&self.new, "-wal")] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(BufferError::file("removing", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the finished new file the buffer's.
    pub(super) fn adopt_new(&self) -> Result<(), BufferError> {
        rename(&self.new, &self.main)?;
        self.sync_folder()
    }

    /// Moves the damaged file and its log aside; returns the file's new name.
    pub(super) fn move_aside(&self, now_ms: u64) -> Result<PathBuf, BufferError> {
        let time = name_of_time(now_ms);
        let aside = (0..NAMES_MAX)
            .map(|n| match n {
                0 => with_suffix(&self.main, &format!(".damaged-{time}")),
                n => with_suffix(&self.main, &format!(".damaged-{time}-{n}")),
            })
            .find(|path| !path.exists() && !with_suffix(path, "-wal").exists())
            .ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::AlreadyExists);
                BufferError::file("moving aside", &self.main, error)
            })?;
        // The file first: as long as it stands, its log must stand beside it.
        if self.main.exists() {
            rename(&self.main, &aside)?;
        }
        if self.log.exists() {
            rename(&self.log, &with_suffix(&aside, "-wal"))?;
        }
        self.sync_folder()?;
        Ok(aside)
    }

    fn sync_folder(&self) -> Result<(), BufferError> {
        let folder = match self.main.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Disk::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| BufferError::file("syncing", folder, error))
    }
}

/// A time as it stands in a file's name, `20261124T034512Z`.
fn name_of_time(now_ms: u64) -> String {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    i64::try_from(now_ms / 1000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| now_ms.to_string())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn rename(from: &Path, to: &Path) -> Result<(), BufferError> {
    std::fs::rename(from, to).map_err(|error| BufferError::file("renaming", from, error))
}

/// Makes a new, empty file beside the buffer's place.
pub(super) async fn create(paths: &Paths, epoch: Epoch, now_ms: u64) -> Result<(), BufferError> {
    let failed = |error| BufferError::from_libsql(&paths.new, error);
    paths.remove_new()?;
    let mut file = async { Unchecked::open(&paths.new).await?.migrate(0).await }
        .await
        .map_err(failed)?;
    let mut ids = Ids::above(&[]);
    let ledger = Ledger::new(epoch, &mut ids, Hlc::default());
    let writes = ledger.changes(now_ms, &mut ids);
    async {
        file.begin().await?;
        file.write_log(&writes).await?;
        file.commit().await?;
        file.checkpoint().await
    }
    .await
    .map_err(failed)
}

/// Saves what can be read of the damaged file into a new one, and puts that in its place.
pub(super) async fn recover(
    paths: &Paths,
    damage: String,
    epoch: Epoch,
    now_ms: u64,
) -> Result<Recovery, BufferError> {
    let unreadable = |error| BufferError::file("reading", &paths.main, error);
    let mut source = Source::open(paths).map_err(unreadable)?;
    let survey = source.survey().map_err(unreadable)?;
    let mut known = gather(&survey.entries);
    let current = known
        .iter()
        .position(|known| known.ended_at == 0)
        .map(|at| known.swap_remove(at));

    paths.remove_new()?;
    let failed = |error| BufferError::from_libsql(&paths.new, error);
    let mut file = async { Unchecked::open(&paths.new).await?.migrate(0).await }
        .await
        .map_err(failed)?;
    let settled = current.as_ref().map(|known| {
        let mut settled = known.settled.clone();
        settled.merge(&known.given_up);
        settled
    });

    let mut sensors = Sensors::default();
    let mut renamed: HashMap<SensorId, SensorId> = HashMap::new();
    let mut taken = RangeSet::new();
    let (mut salvaged, mut unnamed) = (0u64, 0u64);
    file.begin().await.map_err(failed)?;
    for image in &survey.images {
        let page = source.page(*image);
        let mut rows = Vec::new();
        pages::for_each_record(page, image.is_first_page, |record| {
            rows.extend(reading(&record));
        });
        for held in rows {
            let Held::Reading(mut key, quality, value) = held else {
                continue;
            };
            let is_settled = settled.as_ref().is_some_and(|set| set.contains(key.seq));
            if is_settled || taken.contains(key.seq) {
                continue;
            }
            let old = key.sensor;
            let name = survey.names.get(&old).and_then(|name| name.parse().ok());
            let is_named = name.is_some();
            let id = match renamed.get(&old) {
                Some(id) => *id,
                None if sensors.is_full() => continue,
                None => {
                    let Some(name) = name.or_else(|| unknown_name(old)) else {
                        continue;
                    };
                    let id = match sensors.id(&name) {
                        Some(id) => id,
                        None => {
                            let id = sensors.add(&name);
                            file.add_sensor(id, name.as_str()).await.map_err(failed)?;
                            id
                        }
                    };
                    renamed.insert(old, id);
                    id
                }
            };
            taken.extend(SeqRange::one(key.seq));
            salvaged += 1;
            unnamed += u64::from(!is_named);
            key.seq = salvaged;
            key.sensor = id;
            file.add_row(key, key.mark(quality, &value), to_sql(&value))
                .await
                .map_err(failed)?;
            if salvaged.is_multiple_of(COMMIT_ROWS) {
                async {
                    file.finish_rows().await?;
                    file.commit().await?;
                    file.begin().await
                }
                .await
                .map_err(failed)?;
            }
        }
    }

    let old_epoch = current.as_ref().map(|known| known.epoch);
    let missing = current.as_ref().map(|known| {
        let counts = known.counts;
        known
            .last_seq(survey.last_seq)
            .saturating_sub(counts.committed + counts.evicted + counts.rejected)
            .saturating_sub(salvaged)
    });
    let mut ids = Ids::above(&[]);
    let ledger = Ledger::new(epoch, &mut ids, Hlc::from_bits(survey.hlc_max));
    let mut writes = ledger.changes(now_ms, &mut ids);
    let old: Vec<Ledger> = known
        .into_iter()
        .chain(current)
        .filter_map(|known| known.into_ended(survey.last_seq, &mut ids))
        .filter(|ledger| !ledger.account.is_finished())
        .collect();
    for ledger in old.iter().rev().take(REPORT_EPOCHS_MAX - 1).rev() {
        writes.extend(ledger.changes(now_ms, &mut ids));
    }
    writes.push(Write::Put(Entry {
        id: ids.next(),
        kind: Kind::Recovery,
        epoch: old_epoch.unwrap_or(epoch),
        at_ms: now_ms,
        first_seq: 0,
        last_seq: survey.last_seq,
        counts: Counts::default(),
        hlc: 0,
        note: format!(
            "{damage}; {salvaged} readings saved, {} known to be missing",
            missing.map_or("an unknown number".to_owned(), |count| count.to_string())
        ),
    }));
    async {
        file.finish_rows().await?;
        file.write_log(&writes).await?;
        file.commit().await?;
        file.checkpoint().await
    }
    .await
    .map_err(failed)?;
    drop(file);
    let kept_as = paths.move_aside(now_ms)?;
    paths.adopt_new()?;
    Ok(Recovery {
        damage,
        kept_as,
        old_epoch,
        salvaged,
        missing,
        unnamed,
    })
}

fn unknown_name(id: SensorId) -> Option<SensorName> {
    format!("unknown-sensor-{id}").parse().ok()
}

/// The damaged file and its log, as bytes.
struct Source {
    main: Option<Disk>,
    log: Option<Disk>,
    wal: Wal,
    page: Vec<u8>,
}

impl Source {
    fn open(paths: &Paths) -> io::Result<Self> {
        let mut main = open_existing(&paths.main)?;
        let wal = wal::read(&paths.log)?;
        let mut start = [0; 18];
        let told = main
            .as_mut()
            .and_then(|main| main.read_exact(&mut start).ok())
            .and_then(|()| pages::page_bytes(&start));
        let page_bytes = told.or(wal.page_bytes).unwrap_or(PAGE_BYTES as usize);
        Ok(Self {
            main,
            log: open_existing(&paths.log)?,
            wal,
            page: vec![0; page_bytes],
        })
    }

    /// Looks at every page once: what holds rows, and what the small tables say.
    fn survey(&mut self) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let page_bytes = self.page.len() as u64;
        let main_bytes = match &self.main {
            Some(main) => main.metadata()?.len(),
            None => 0,
        };
        let in_main = (0..main_bytes.div_ceil(page_bytes)).map(|page| Image {
            first_seq: 0,
            is_in_log: false,
            is_first_page: page == 0,
            at: page * page_bytes,
        });
        let in_log: Vec<Image> = self
            .wal
            .images
            .iter()
            .map(|(page, at)| Image::in_log(*page, *at))
            .collect();
        for image in in_main.chain(in_log) {
            survey.look_at(self.page(image), image);
        }
        // By sequence, so that they are saved about in the order they were taken.
        survey.images.sort_unstable();
        Ok(survey)
    }

    /// A page's bytes. What the disk cannot read, or what was cut off, are zeros.
    fn page(&mut self, image: Image) -> &[u8] {
        let file = if image.is_in_log {
            &self.log
        } else {
            &self.main
        };
        let filled = file
            .as_ref()
            .and_then(|file| read_page(file, image.at, &mut self.page).ok())
            .unwrap_or(0);
        self.page[filled..].fill(0);
        &self.page
    }
}

fn open_existing(path: &Path) -> io::Result<Option<Disk>> {
    match Disk::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads up to a whole page. Returns how much of it there was.
fn read_page(mut file: &Disk, at: u64, page: &mut [u8]) -> io::Result<usize> {
    file.seek(SeekFrom::Start(at))?;
    let mut filled = 0;
    while filled < page.len() {
        match file.read(&mut page[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn reading(record: &Record<'_>) -> Option<Held> {
    let [
        _,
        Cell::Integer(hlc),
        Cell::Integer(observed_at),
        Cell::Integer(sensor),
        Cell::Integer(mark),
        value,
    ] = record.columns()
    else {
        return None;
    };
    let columns = Columns {
        seq: record.rowid,
        hlc: *hlc,
        observed_at: *observed_at,
        sensor: *sensor,
        mark: *mark,
        value: *value,
    };
    columns.check()
}

impl Survey {
    fn look_at(&mut self, page: &[u8], image: Image) {
        let mut first_seq = None;
        pages::for_each_record(page, image.is_first_page, |record| {
            match record.columns() {
                [_, name, mark] => {
                    if let Some((id, name)) = sensor_entry(record.rowid, *name, *mark)
                        && self.names.len() < SENSORS_MAX
                    {
                        self.names.insert(id, name);
                    }
                }
                columns if columns.len() == super::log::COLUMNS => {
                    self.entries.extend(Entry::check(record.rowid, columns));
                }
                _ => {}
            }
            if let Some(Held::Spent(key) | Held::Reading(key, ..)) = reading(&record) {
                self.last_seq = self.last_seq.max(key.seq);
                self.hlc_max = self.hlc_max.max(key.hlc.bits());
                first_seq = Some(first_seq.unwrap_or(u64::MAX).min(key.seq));
            }
        });
        if let Some(first_seq) = first_seq {
            self.images.push(Image { first_seq, ..image });
        }
    }
}

/// What the rows of the log say together, oldest epoch first.
fn gather(entries: &[Entry]) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind == Kind::Epoch) {
        match known.iter_mut().find(|known| known.epoch == entry.epoch) {
            Some(known) if known.counts.sum() < entry.counts.sum() => {
                known.counts = entry.counts;
            }
            Some(_) => {}
            None => known.push(Known {
                epoch: entry.epoch,
                ended_at: entry.last_seq,
                counts: entry.counts,
                settled: RangeSet::new(),
                given_up: RangeSet::new(),
            }),
        }
    }
    for entry in entries {
        let known = known.iter_mut().find(|known| known.epoch == entry.epoch);
        let (Some(known), Some(range)) = (known, entry.range()) else {
            continue;
        };
        match entry.kind {
            Kind::Settled => known.settled.insert(range),
            Kind::GivenUp => known.given_up.insert(range),
            Kind::Epoch | Kind::Recovery => {}
        }
    }
    known
}

impl Known {
    /// The highest sequence that anything in the file speaks of.
    fn last_seq(&self, rows_last: u64) -> u64 {
        if self.ended_at > 0 {
            return self.ended_at;
        }
        [self.settled.last(), self.given_up.last()]
            .into_iter()
            .flatten()
            .fold(rows_last.max(self.counts.sum()), u64::max)
    }

    fn into_ended(self, rows_last: u64, ids: &mut Ids) -> Option<Ledger> {
        let last_seq = self.last_seq(rows_last);
        if last_seq == 0 {
            return None;
        }
        ended(
            self.epoch,
            last_seq,
            self.settled,
            self.given_up,
            self.counts,
            ids,
        )
    }
}
