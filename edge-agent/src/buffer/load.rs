//! Reads a file's whole content into what the buffer keeps in memory, and checks all of it on the
//! way: whatever is not as it was written is damage.

use schema::{Epoch, Hlc, HlcClock, RangeSet, SensorName, SeqRange};

use crate::clock::core::StartClock;

use super::account::{Account, Sets};
use super::epochs::{Ledger, Ledgers, Run};
use super::file::File;
use super::keep::{Keep, Kept};
use super::log::{Book, Entry, Head, Ids, Kind};
use super::row::{Held, Key};
use super::sensors::Sensors;

/// What the buffer keeps in memory of its file.
#[derive(Debug)]
pub(super) struct State {
    pub(super) epochs: Ledgers,
    pub(super) ids: Ids,
    pub(super) sensors: Sensors,
    pub(super) clock: HlcClock,
    /// The row with the highest number, if the file has it, and whether it is spent.
    pub(super) anchor: Option<Anchor>,
    /// Bytes of the texts that are pending.
    pub(super) text_bytes: u64,
    /// Bytes of the texts in quarantine.
    pub(super) quarantined_text_bytes: u64,
    /// The agent and the bridge for which the quarantine was offered last.
    pub(super) offered: Option<Entry>,
    /// The row number before which names are not forgotten again.
    pub(super) forget_sensors_from: u64,
    /// Rows that are settled and stand in the file still.
    pub(super) leftover: RangeSet,
    /// What the policies keep.
    pub(super) keep: Keep,
    /// How the file has it.
    pub(super) kept: Kept,
    /// Whether the file lacks some of it, which the next commit writes.
    pub(super) keep_due: bool,
}

/// The row with the highest number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor {
    pub(super) key: Key,
    pub(super) is_spent: bool,
}

/// What is wrong when the accounts do not add up.
const CONTRADICTION: &str = "the counters of sync_log contradict the rows";

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum LoadError {
    /// Its content is not what was written.
    Damaged(String),
    /// libSQL failed.
    Database(libsql::Error),
}

impl From<libsql::Error> for LoadError {
    fn from(error: libsql::Error) -> Self {
        Self::Database(error)
    }
}

fn damaged(what: impl Into<String>) -> LoadError {
    LoadError::Damaged(what.into())
}

/// Reads everything, and begins the epoch of this start, which has this name and clock.
pub(super) async fn load(
    file: &File,
    start: (Epoch, Option<StartClock>),
) -> Result<State, LoadError> {
    let sensors = load_sensors(file).await?;
    let entries: Vec<Entry> = file
        .log()
        .await?
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| damaged("a row of sync_log is damaged"))?;
    let mut found = Vec::new();
    for head in entries.iter().filter(|entry| entry.kind == Kind::Epoch) {
        let of = Found::of(head, &entries);
        found.push(of.ok_or_else(|| damaged("a row of sync_log makes no sense"))?);
    }
    let gone = entries.iter().filter(|entry| entry.kind == Kind::Gone);
    let gone: RangeSet = gone.filter_map(Entry::range).collect();
    let mut runs: Vec<(Run, usize)> = found
        .iter()
        .enumerate()
        .filter_map(|(index, found)| Some((found.run()?, index)))
        .collect();
    runs.sort_unstable_by_key(|(run, _)| run.base);
    let overlap = |pair: &[(Run, usize)]| pair[0].0.last_row > pair[1].0.base;
    if runs.windows(2).any(overlap) {
        return Err(damaged("two epochs of sync_log have the same rows"));
    }
    let rows = load_rows(file, &sensors, &runs, &gone, &mut found).await?;

    let ends = runs.iter().map(|(run, _)| run.last_row);
    let last_row = ends
        .filter(|last_row| *last_row < u64::MAX)
        .chain(rows.anchor.map(|anchor| anchor.key.seq))
        .chain(runs.iter().map(|(run, _)| run.base))
        .chain(gone.last())
        .max()
        .unwrap_or(0);
    let mut ended = Vec::with_capacity(found.len());
    // A row in quarantine that is not in the file has vanished by mistake.
    let in_quarantine: u64 = found.iter().map(|found| found.in_quarantine.count()).sum();
    if rows.quarantined.count() != in_quarantine {
        return Err(damaged(CONTRADICTION));
    }
    for found in found {
        ended.push(
            found
                .ended(last_row)
                .ok_or_else(|| damaged(CONTRADICTION))?,
        );
    }
    let mut ids = Ids::above(&entries);
    let epochs = Ledgers::begin(ended, gone, &entries, start, last_row, &mut ids);
    let clock = match epochs.current().account.last_seq() {
        0 => HlcClock::default(),
        _ => HlcClock::resume(rows.hlc_max),
    };
    let (keep, kept) = Keep::restore(&entries);
    Ok(State {
        keep,
        kept,
        keep_due: false,
        epochs,
        ids,
        sensors,
        clock,
        anchor: rows.anchor.filter(|anchor| anchor.key.seq == last_row),
        text_bytes: rows.text_bytes,
        quarantined_text_bytes: rows.quarantined_text_bytes,
        offered: entries
            .into_iter()
            .find(|entry| entry.kind == Kind::Offered),
        forget_sensors_from: 0,
        leftover: rows.leftover,
    })
}

/// An epoch of the file, before its rows are known.
struct Found {
    epoch: Epoch,
    book: Book,
    head: Head,
    sets: Sets,
    in_quarantine: RangeSet,
    /// Sequences of rows that were found, and wait.
    pending: RangeSet,
    /// The latest of their stamps, milliseconds on the axis of its start.
    stamp_max: u64,
}

impl Found {
    fn of(head: &Entry, entries: &[Entry]) -> Option<Self> {
        let (book, sets) = Book::restore(head, entries)?;
        Some(Self {
            epoch: head.epoch,
            book,
            head: Head::of(head),
            in_quarantine: sets.in_quarantine(),
            sets,
            pending: RangeSet::new(),
            stamp_max: 0,
        })
    }

    /// Its rows, unless it has ended and holds none.
    fn run(&self) -> Option<Run> {
        let last_row = match self.head.ended_at {
            0 => u64::MAX,
            ended_at if self.head.counts.sum() < ended_at => self.head.base + ended_at,
            _ => return None,
        };
        Some(Run {
            epoch: self.epoch,
            base: self.head.base,
            last_row,
        })
    }

    /// The epoch, ended at the last row if it has not been before.
    fn ended(self, last_row: u64) -> Option<Ledger> {
        let base = (self.head.base, self.run().is_some());
        let is_ended = self.head.ended_at > 0;
        let last_seq = match is_ended {
            true => self.head.ended_at,
            false => last_row.checked_sub(self.head.base)?,
        };
        let account = Account::restore(
            self.epoch,
            last_seq,
            self.pending,
            self.sets,
            self.head.counts,
        )?;
        let mut ledger = Ledger::restore(account, self.book, base, is_ended);
        ledger.clock = StartClock::parse(&self.head.note);
        ledger.last_stamp = i64::try_from(self.stamp_max)
            .unwrap_or(0)
            .saturating_mul(1000);
        ledger.end();
        Some(ledger)
    }
}

async fn load_sensors(file: &File) -> Result<Sensors, LoadError> {
    let mut sensors = Vec::new();
    for entry in file.sensors().await? {
        let (id, name) = entry.ok_or_else(|| damaged("a sensor's name is damaged"))?;
        let name: SensorName = name
            .parse()
            .map_err(|error| damaged(format!("a sensor's name is damaged: {error}")))?;
        sensors.push((id, name));
    }
    Sensors::restore(sensors).ok_or_else(|| damaged("a sensor stands twice"))
}

#[derive(Default)]
struct Rows {
    quarantined: RangeSet,
    leftover: RangeSet,
    anchor: Option<Anchor>,
    hlc_max: Hlc,
    text_bytes: u64,
    quarantined_text_bytes: u64,
}

async fn load_rows(
    file: &File,
    sensors: &Sensors,
    runs: &[(Run, usize)],
    gone: &RangeSet,
    found: &mut [Found],
) -> Result<Rows, LoadError> {
    let mut rows = Rows::default();
    let mut wrong = None;
    let Some(all) = SeqRange::new(1, u64::MAX) else {
        return Ok(rows);
    };
    file.for_each_row(all, |columns| {
        let Some(held) = columns.check() else {
            wrong = Some(format!("row {} is damaged", columns.seq));
            return false;
        };
        let (key, value) = match &held {
            Held::Spent(key) => (*key, None),
            Held::Reading(key, _, value) => (*key, Some(value)),
        };
        if let Some(value) = value {
            let behind = runs.partition_point(|(run, _)| run.base < key.seq);
            let run = behind.checked_sub(1).map(|at| runs[at]);
            match run.filter(|(run, _)| key.seq <= run.last_row) {
                Some((run, index)) => {
                    let (found, seq) = (&mut found[index], key.seq - run.base);
                    found.stamp_max = found.stamp_max.max(key.hlc.millis());
                    if found.in_quarantine.contains(seq) {
                        rows.quarantined.extend(SeqRange::one(key.seq));
                        rows.quarantined_text_bytes += super::row::text_bytes(value);
                    } else if found.sets.is_free(seq) {
                        rows.leftover.extend(SeqRange::one(key.seq));
                    } else {
                        found.pending.extend(SeqRange::one(seq));
                        rows.text_bytes += super::row::text_bytes(value);
                    }
                }
                None if gone.contains(key.seq) => rows.leftover.extend(SeqRange::one(key.seq)),
                None => {
                    wrong = Some(format!("row {} is of no known epoch", key.seq));
                    return false;
                }
            }
            if sensors.name(key.sensor).is_none() {
                wrong = Some(format!("row {} is of no known sensor", key.seq));
                return false;
            }
        }
        rows.hlc_max = rows.hlc_max.max(key.hlc);
        rows.anchor = Some(Anchor {
            key,
            is_spent: value.is_none(),
        });
        true
    })
    .await?;
    match wrong {
        Some(wrong) => Err(damaged(wrong)),
        None => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::connect::SCHEMA_VERSION;
    use crate::buffer::paths::Paths;
    use crate::buffer::recovery::create;
    use crate::buffer::row::to_sql;
    use schema::{ObservedAt, Quality, Value};

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn set(first: u64, last: u64) -> RangeSet {
        RangeSet::from_iter([range(first, last)])
    }

    /// A file of ten rows, and an account that has settled some of them.
    async fn file_with(committed: &RangeSet, deleted: &RangeSet) -> Result<State, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(&folder.path().join("buffer.db"));
        create(&paths).await.unwrap();
        paths.adopt_new().unwrap();
        let open = async || {
            let unchecked = crate::buffer::connect::Unchecked::open(&paths.main).await;
            unchecked.unwrap().migrate(SCHEMA_VERSION).await.unwrap()
        };
        let mut file = open().await;
        let mut state = load(&file, (Epoch::from_random(1), None)).await.unwrap();
        file.begin().await.unwrap();
        file.add_sensor(1, "cpu").await.unwrap();
        for seq in 1..=10 {
            let key = Key {
                seq,
                hlc: state.clock.tick(1000),
                observed_at: ObservedAt::from_millis(5),
                sensor: 1,
                is_given: false,
                has_position: false,
            };
            let value = Value::Text("abc".into());
            let mark = key.mark(Quality::Good, &value);
            file.add_row(key, mark, to_sql(&value)).await.unwrap();
        }
        file.finish_rows().await.unwrap();
        file.delete_rows(deleted.iter()).await.unwrap();
        state.epochs.accept(10);
        let ledger = state.epochs.named(Epoch::from_random(1)).unwrap();
        ledger.account.settle(committed, &[], &RangeSet::new());
        let plan = state.epochs.plan(10, &RangeSet::new(), 0, &mut state.ids);
        file.write_log(plan.writes()).await.unwrap();
        file.commit().await.unwrap();
        drop(file);
        load(&open().await, (Epoch::from_random(2), None)).await
    }

    #[tokio::test]
    async fn rows_that_are_settled_and_not_deleted_yet_are_left_over_not_pending() {
        let state = file_with(&set(2, 6), &set(2, 3)).await.unwrap();
        assert_eq!(state.leftover, set(4, 6));
        assert!(state.epochs.balance().is_balanced());
        assert_eq!(
            state.epochs.pending(),
            RangeSet::from_iter([range(1, 1), range(7, 10)])
        );
        assert_eq!(state.text_bytes, 15);
        // A new epoch, with the clock as it will be.
        assert_eq!(state.epochs.current().account.last_seq(), 0);
        assert_eq!(state.epochs.last_row(), 10);
        assert_eq!(state.clock.last(), Hlc::default());
    }

    #[tokio::test]
    async fn a_row_that_vanished_is_damage() {
        let found = file_with(&set(2, 6), &set(2, 7)).await;
        assert!(
            matches!(found, Err(LoadError::Damaged(_))),
            "{:?}",
            found.map(|state| state.epochs)
        );
    }
}
