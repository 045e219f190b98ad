//! Reads a damaged file and its log as bytes: which pages hold rows, and what the small tables say.
//!
//! Every image of a page is looked at, also older ones in the log: rows are recognised by their marks, and
//! rows that were settled since by the accounts. Nothing is written to the files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File as Disk;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use schema::{Epoch, Quality, RangeSet, SensorName, SeqRange, Value};

use crate::clock::core::{Release, StartClock};

use super::account::{Account, Counts, Sets};
use super::connect::PAGE_BYTES;
use super::epochs::Ledger;
use super::log::{Book, Entry, Ids, Kind, RangeOf};
use super::pages::{self, Record};
use super::paths::Paths;
use super::positions::{self, KeptPosition};
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
    /// The newest position of each source.
    pub(super) positions: HashMap<String, KeptPosition>,
    pub(super) last_row: u64,
}

/// What the rows of `sync_log` say together. Rows of older images only say less.
#[derive(Default)]
pub(super) struct Known {
    /// The epochs, oldest first.
    pub(super) epochs: Vec<KnownEpoch>,
    /// Row numbers of epochs that held none any more.
    pub(super) gone: RangeSet,
    /// Row numbers among these whose epochs were forgotten.
    pub(super) forgotten: RangeSet,
    /// Rows that were to be offered again.
    pub(super) again: RangeSet,
    /// The counts of epochs that were forgotten.
    pub(super) past: Option<Entry>,
    /// For which agent and bridge the quarantine was offered last, and so which protocol a bridge understands.
    pub(super) offered: Option<Entry>,
}

/// An epoch, as the rows of `sync_log` describe it.
pub(super) struct KnownEpoch {
    pub(super) epoch: Epoch,
    pub(super) base: u64,
    ended_at: u64,
    counts: Counts,
    sets: Sets,
    /// The clock of its start, with what was decided last.
    pub(super) clock: Option<StartClock>,
    /// Sequences whose rows were found, and are held: pending or in quarantine.
    pub(super) found: RangeSet,
}

/// Rows and names of a last commit that is not whole. Whether it was ever accepted is not known,
/// so what of it is readable is kept: a reading more does no harm, a sequence given twice would.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) rows: BTreeMap<u64, (Key, Quality, Value)>,
    pub(super) names: HashMap<SensorId, SensorName>,
    /// How far the sources of its rows had read.
    pub(super) positions: Vec<KeptPosition>,
    /// The clocks of epochs that it began, by the row before their first.
    starts: HashMap<u64, StartClock>,
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
                if record.columns().len() == super::log::COLUMNS
                    && let Some(entry) = Entry::check(record.rowid, record.columns())
                    && entry.kind == Kind::Epoch
                    && let Some(clock) = StartClock::parse(&entry.note)
                {
                    tail.starts.insert(entry.first_seq, clock);
                }
                if record.columns().len() == positions::COLUMNS {
                    let kept = KeptPosition::check(record.rowid, record.columns());
                    tail.positions.extend(kept);
                }
            });
        }
        Ok(tail)
    }

    /// The clock of the start that wrote it, when that had its first rows behind `last_row`.
    pub(super) fn begins_at(&self, last_row: u64) -> Option<StartClock> {
        self.starts.get(&last_row).copied()
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
        let mut main = open_existing(paths.content())?;
        let wal = wal::read(&paths.log)?;
        let mut start = [0; 18];
        let stated = main
            .as_mut()
            .and_then(|main| main.read_exact(&mut start).ok())
            .and_then(|()| pages::page_bytes(&start));
        let page_bytes = stated.or(wal.page_bytes).unwrap_or(PAGE_BYTES as usize);
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
    /// Older images of the page are there too.
    fn keep_position(&mut self, kept: KeptPosition) {
        let age = |kept: &KeptPosition| (kept.last_row, kept.at_ms);
        let source = kept.position.source().to_owned();
        let newest = self.positions.entry(source).or_insert_with(|| kept.clone());
        if age(newest) < age(&kept) {
            *newest = kept;
        }
    }

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
                columns if columns.len() == positions::COLUMNS => {
                    let kept = KeptPosition::check(record.rowid, columns);
                    kept.into_iter().for_each(|kept| self.keep_position(kept));
                }
                _ => {}
            }
            if let Some(Held::Spent(key) | Held::Reading(key, ..)) = reading(&record) {
                self.last_row = self.last_row.max(key.seq);
                first_seq = Some(first_seq.unwrap_or(u64::MAX).min(key.seq));
            }
        });
        if let Some(first_seq) = first_seq {
            self.images.push(Image { first_seq, ..image });
        }
    }
}

/// Puts together what the rows of the log say.
pub(super) fn gather(entries: &[Entry]) -> Known {
    let mut known = Known::default();
    for entry in entries.iter().filter(|entry| entry.kind == Kind::Epoch) {
        let epochs = &mut known.epochs;
        let place = match epochs.iter().position(|known| known.epoch == entry.epoch) {
            Some(place) => place,
            None => {
                epochs.push(KnownEpoch {
                    epoch: entry.epoch,
                    base: entry.first_seq,
                    ended_at: 0,
                    counts: Counts::default(),
                    sets: Sets::default(),
                    clock: None,
                    found: RangeSet::new(),
                });
                epochs.len() - 1
            }
        };
        let found = &mut epochs[place];
        found.ended_at = found.ended_at.max(entry.last_seq);
        let clock = StartClock::parse(&entry.note);
        // An older image of the same row does not hold what was released.
        if let Some(clock) = clock
            && found
                .clock
                .is_none_or(|known| known.release == Release::Held)
        {
            found.clock = Some(clock);
        }
        if found.counts.sum() < entry.counts.sum() {
            found.counts = entry.counts;
        }
    }
    for entry in entries {
        let of_epoch = |known: &&mut KnownEpoch| known.epoch == entry.epoch;
        let set = match entry.kind {
            Kind::Settled | Kind::GivenUp | Kind::Quarantined | Kind::Discarded => {
                if let Some(of) = known.epochs.iter_mut().find(of_epoch) {
                    // A row that makes no sense is left out.
                    let _ = entry.join(&mut of.sets);
                }
                None
            }
            Kind::Gone => {
                if entry.range_of() == Some(RangeOf::Forgotten) {
                    known.forgotten.extend(entry.range());
                }
                Some(&mut known.gone)
            }
            Kind::Again => Some(&mut known.again),
            Kind::Past => {
                let sum = |entry: &Entry| entry.counts.sum();
                if known
                    .past
                    .as_ref()
                    .is_none_or(|past| sum(past) < sum(entry))
                {
                    known.past = Some(entry.clone());
                }
                None
            }
            Kind::Offered => {
                let last = known.offered.as_ref().map(|offered| offered.at_ms);
                if last.is_none_or(|last| last <= entry.at_ms) {
                    known.offered = Some(entry.clone());
                }
                None
            }
            // What a recovery does not know of begins anew: then all rows may have been sent.
            Kind::Evicted | Kind::Sent | Kind::Aged | Kind::Levels => None,
            Kind::Epoch | Kind::Recovery => None,
        };
        if let (Some(set), Some(range)) = (set, entry.range()) {
            set.insert(range);
        }
    }
    // An older image has those that were forgotten since, whose counts are among the past ones.
    // Agents 0.1 kept no base of an epoch without rows, and nothing of its clock: the first row is another's.
    // So an image of the first epoch that is as old, and has no rows any more, stays: its counts are also among
    // the past ones, and count twice here. What is reported names it once, and is right.
    let forgotten = &known.forgotten;
    let has_base = |of: &KnownEpoch| of.base > 0 || of.clock.is_some() || of.holds_rows();
    known
        .epochs
        .retain(|of| !(has_base(of) && forgotten.contains(of.base + 1)));
    known.epochs.sort_by_key(|of| (of.base, of.may_grow()));
    known
}

impl Known {
    /// The last row number that the log mentions.
    pub(super) fn last_row(&self) -> u64 {
        let ends = self.epochs.iter().map(|of| of.base + of.ended_at);
        ends.chain(self.gone.last()).max().unwrap_or(0)
    }

    /// Each epoch, with the last row that may be of it.
    pub(super) fn last_rows(&self, last_row: u64) -> impl Iterator<Item = (&KnownEpoch, u64)> {
        let nexts = self.epochs.iter().skip(1).map(|next| next.base);
        let ends = self.epochs.iter().zip(nexts.chain([last_row]));
        ends.map(|(of, end)| {
            let mut forgotten = self.forgotten.iter();
            let behind = forgotten.find(|rows| rows.first() > of.base);
            (of, behind.map_or(end, |rows| end.min(rows.first() - 1)))
        })
    }

    /// The epoch of a row.
    pub(super) fn of_row(&mut self, row: u64) -> Option<&mut KnownEpoch> {
        let holds = |of: &&mut KnownEpoch| {
            of.base < row && (of.may_grow() || of.holds_rows() && row <= of.base + of.ended_at)
        };
        self.epochs.iter_mut().rev().find(holds)
    }
}

impl KnownEpoch {
    const fn may_grow(&self) -> bool {
        self.ended_at == 0
    }

    const fn holds_rows(&self) -> bool {
        self.may_grow() || self.counts.sum() < self.ended_at
    }

    /// Whether a row of this sequence needs no saving.
    pub(super) fn is_done(&self, seq: u64) -> bool {
        self.sets.is_free(seq)
    }

    /// How many rows the file should have held of it, when `last_row` is its last at most.
    pub(super) fn held(&self, last_row: u64) -> u64 {
        self.last_seq(last_row).saturating_sub(self.counts.sum())
    }

    /// The highest sequence that anything in the file mentions.
    fn last_seq(&self, last_row: u64) -> u64 {
        if !self.may_grow() {
            return self.ended_at;
        }
        [self.sets.last(), self.found.last()]
            .into_iter()
            .flatten()
            .fold(last_row.saturating_sub(self.base), u64::max)
            .max(self.counts.sum())
    }

    /// The epoch's account, ended, from what is known of it: as many counted as committed and
    /// discarded as the known sets allow, the rest of what is not there as evicted.
    pub(super) fn into_ledger(self, last_row: u64, ids: &mut Ids) -> Option<Ledger> {
        let last_seq = self.last_seq(last_row);
        let all = RangeSet::from_iter([SeqRange::new(1, last_seq)?]);
        let found = self.found.intersection(&all);
        // Older images of a row of the log may say what was true before: the strongest fate counts.
        let mut sets = self.sets;
        sets.settled = sets.settled.intersection(&all);
        let mut known = sets.settled.clone();
        for set in sets.discarded.values_mut() {
            set.subtract(&known);
            known.merge(set);
        }
        sets.discarded.retain(|_, set| !set.is_empty());
        for set in sets.quarantined.values_mut() {
            set.subtract(&known);
            *set = set.intersection(&found);
            known.merge(set);
        }
        sets.quarantined.retain(|_, set| !set.is_empty());
        let mut pending = found.clone();
        pending.subtract(&known);
        let committed = self.counts.committed.min(sets.settled.count());
        let unconfirmed: u64 = sets.discarded.values().map(RangeSet::count).sum();
        let discarded_max = sets.settled.count() - committed + unconfirmed;
        let discarded = self.counts.discarded.clamp(unconfirmed, discarded_max);
        let counts = Counts {
            committed,
            discarded,
            evicted: last_seq - committed - discarded - found.count(),
        };
        let base = (self.base, !found.is_empty());
        let account = Account::restore(self.epoch, last_seq, pending, sets, counts)?;
        let mut ledger = Ledger::restore(account, Book::new(ids), base, true);
        ledger.clock = self.clock;
        // Older images may not say that they were.
        ledger.set_aside_shown_wrong();
        Some(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 0.1 has epochs without rows that all seem to begin at its first row.
    #[test]
    fn an_epoch_that_is_forgotten_takes_no_other_with_it() {
        let entry = |kind, n, last_seq, evicted| Entry {
            id: 1,
            kind,
            epoch: Epoch::from_random(n),
            at_ms: 0,
            first_seq: 0,
            last_seq,
            counts: Counts {
                evicted,
                ..Counts::default()
            },
            hlc: 0,
            note: String::new(),
        };
        let mut entries = vec![
            // An older image of the first one, one that never had rows here, and the one behind.
            entry(Kind::Epoch, 1, 10, 3),
            entry(Kind::Epoch, 2, 6, 6),
            Entry {
                first_seq: 10,
                ..entry(Kind::Epoch, 3, 0, 0)
            },
            Entry {
                first_seq: 1,
                note: "forgotten".to_owned(),
                ..entry(Kind::Gone, 3, 10, 0)
            },
        ];
        let names = |entries: &[Entry]| -> Vec<Epoch> {
            let known = gather(entries);
            assert_eq!(known.forgotten.count(), 10);
            known.epochs.iter().map(|of| of.epoch).collect()
        };
        let kept = [2, 3].map(Epoch::from_random);
        assert_eq!(names(&entries), kept);
        entries.swap(0, 2);
        assert_eq!(names(&entries), kept);
    }
}
