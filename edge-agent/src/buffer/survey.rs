//! Reads a damaged file and its log as bytes: which pages hold rows, and what the small tables say.
//!
//! Every image of a page is looked at, also older ones in the log: rows are told by their marks, and
//! rows that were settled since by the accounts. Nothing is written to the files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File as Disk;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use schema::{Epoch, Quality, RangeSet, SensorName, Value};

use super::account::Counts;
use super::connect::PAGE_BYTES;
use super::load::{Ledger, ended};
use super::log::{Entry, Ids, Kind};
use super::pages::{self, Record};
use super::paths::Paths;
use super::row::{Cell, Columns, Held, Key, SENSORS_MAX, SensorId};
use super::small_tables::sensor_entry;
use super::wal::{self, Wal};

/// One page image that holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Image {
    first_seq: u64,
    is_in_log: bool,
    pub(super) is_first_page: bool,
    at: u64,
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
pub(super) struct Survey {
    pub(super) images: Vec<Image>,
    pub(super) names: HashMap<SensorId, String>,
    pub(super) entries: Vec<Entry>,
    pub(super) last_seq: u64,
    pub(super) hlc_max: u64,
}

/// An epoch, as the rows of the log tell it. Rows of older images only say less.
pub(super) struct Known {
    pub(super) epoch: Epoch,
    pub(super) ended_at: u64,
    pub(super) counts: Counts,
    pub(super) settled: RangeSet,
    pub(super) given_up: RangeSet,
}

/// Rows and names of a last commit that is not whole. Whether it was ever accepted cannot be told,
/// so what of it is readable is kept: a reading more does no harm, a sequence given twice would.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) rows: BTreeMap<u64, (Key, Quality, Value)>,
    pub(super) names: HashMap<SensorId, SensorName>,
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

/// The damaged file and its log, as bytes.
pub(super) struct Source {
    main: Option<Disk>,
    log: Option<Disk>,
    wal: Wal,
    page: Vec<u8>,
}

impl Source {
    pub(super) fn open(paths: &Paths) -> io::Result<Self> {
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
    pub(super) fn survey(&mut self) -> io::Result<Survey> {
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
    pub(super) fn page(&mut self, image: Image) -> &[u8] {
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

pub(super) fn reading(record: &Record<'_>) -> Option<Held> {
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
pub(super) fn gather(entries: &[Entry]) -> Vec<Known> {
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
    pub(super) fn last_seq(&self, rows_last: u64) -> u64 {
        if self.ended_at > 0 {
            return self.ended_at;
        }
        [self.settled.last(), self.given_up.last()]
            .into_iter()
            .flatten()
            .fold(rows_last.max(self.counts.sum()), u64::max)
    }

    pub(super) fn into_ended(self, rows_last: u64, ids: &mut Ids) -> Option<Ledger> {
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
