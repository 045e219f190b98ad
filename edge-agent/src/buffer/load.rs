//! Reads a file's whole content into what the buffer keeps in memory, and checks all of it on the
//! way: what says something else than was written is damage.

use schema::{Epoch, Hlc, HlcClock, RangeSet, SensorName, SeqRange};

use super::account::{Account, Counts};
use super::file::File;
use super::log::{Book, Entry, Ids, Kind, Write};
use super::row::{Held, Key};
use super::sensors::Sensors;

/// What the buffer keeps in memory of its file.
#[derive(Debug)]
pub(super) struct State {
    /// The current epoch.
    pub(super) ledger: Ledger,
    /// Epochs that have ended and are not settled yet, oldest first.
    pub(super) ended: Vec<Ledger>,
    pub(super) ids: Ids,
    pub(super) sensors: Sensors,
    pub(super) clock: HlcClock,
    /// The row with the highest sequence, and whether it is spent.
    pub(super) anchor: Option<Anchor>,
    /// Bytes of the texts that are pending.
    pub(super) text_bytes: u64,
    /// The sequence before which names are not forgotten again.
    pub(super) forget_sensors_from: u64,
    /// Rows that are settled and stand in the file still.
    pub(super) leftover: RangeSet,
}

/// An epoch's account, and how the file has it.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) account: Account,
    pub(super) book: Book,
}

/// The row with the highest sequence.
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
    /// It does not say what was written.
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

/// Reads everything.
pub(super) async fn load(file: &File) -> Result<State, LoadError> {
    let sensors = load_sensors(file).await?;
    let entries: Vec<Entry> = file
        .log()
        .await?
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| damaged("a row of sync_log is damaged"))?;
    let mut current = None;
    let mut ended = Vec::new();
    for head in entries.iter().filter(|entry| entry.kind == Kind::Epoch) {
        let (book, settled, given_up) = Book::restore(head, &entries);
        if book.ended_at() == 0 {
            if current.replace((head, book, settled, given_up)).is_some() {
                return Err(damaged("sync_log has two current epochs"));
            }
            continue;
        }
        let account = Account::restore(
            head.epoch,
            book.ended_at(),
            RangeSet::new(),
            settled,
            given_up,
            head.counts,
        );
        ended.push(Ledger {
            account: account.ok_or_else(|| damaged(CONTRADICTION))?,
            book,
        });
    }
    let Some((head, book, settled, given_up)) = current else {
        return Err(damaged("sync_log has no current epoch"));
    };
    let mut done = settled.clone();
    done.merge(&given_up);
    let rows = load_rows(file, &sensors, &done).await?;
    let last_seq = rows.anchor.map_or(0, |anchor| anchor.key.seq);
    let account = Account::restore(
        head.epoch,
        last_seq,
        rows.pending,
        settled,
        given_up,
        head.counts,
    );
    Ok(State {
        ledger: Ledger {
            account: account.ok_or_else(|| damaged(CONTRADICTION))?,
            book,
        },
        ended,
        ids: Ids::above(&entries),
        sensors,
        clock: HlcClock::resume(rows.hlc_max.max(Hlc::from_bits(head.hlc))),
        anchor: rows.anchor,
        text_bytes: rows.text_bytes,
        forget_sensors_from: 0,
        leftover: rows.leftover,
    })
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
    pending: RangeSet,
    leftover: RangeSet,
    anchor: Option<Anchor>,
    hlc_max: Hlc,
    text_bytes: u64,
}

async fn load_rows(file: &File, sensors: &Sensors, done: &RangeSet) -> Result<Rows, LoadError> {
    let mut rows = Rows::default();
    let mut wrong = None;
    let Some(all) = SeqRange::new(1, u64::MAX) else {
        return Ok(rows);
    };
    file.for_each_row(all, |columns| {
        let (key, is_spent) = match columns.check() {
            Some(Held::Spent(key)) => (key, true),
            Some(Held::Reading(key, ..)) if done.contains(key.seq) => {
                rows.leftover.extend(SeqRange::one(key.seq));
                (key, false)
            }
            Some(Held::Reading(key, _, value)) => {
                rows.pending.extend(SeqRange::one(key.seq));
                rows.text_bytes += super::row::text_bytes(&value);
                (key, false)
            }
            None => {
                wrong = Some(format!("row {} is damaged", columns.seq));
                return false;
            }
        };
        if !is_spent && sensors.name(key.sensor).is_none() {
            wrong = Some(format!("row {} is of no known sensor", key.seq));
            return false;
        }
        rows.hlc_max = rows.hlc_max.max(key.hlc);
        rows.anchor = Some(Anchor { key, is_spent });
        true
    })
    .await?;
    match wrong {
        Some(wrong) => Err(damaged(wrong)),
        None => Ok(rows),
    }
}

impl Ledger {
    /// The ledger of a new epoch, which the file does not have yet.
    pub(super) fn new(epoch: Epoch, ids: &mut Ids, hlc_floor: Hlc) -> Self {
        Self {
            account: Account::new(epoch),
            book: Book::new(ids, 0, hlc_floor.bits()),
        }
    }

    /// What the file does not have yet of this ledger.
    pub(super) fn changes(&self, at_ms: u64, ids: &mut Ids) -> Vec<Write> {
        self.book.changes(&self.account, at_ms, ids)
    }
}

/// The ledger of an epoch that has ended, from what is known of it: as many counted as committed
/// and discarded as the known sets allow, the rest as evicted.
pub(super) fn ended(
    epoch: Epoch,
    last_seq: u64,
    mut settled: RangeSet,
    mut given_up: RangeSet,
    counts: Counts,
    ids: &mut Ids,
) -> Option<Ledger> {
    let all: RangeSet = SeqRange::new(1, last_seq).into_iter().collect();
    settled = settled.intersection(&all);
    given_up = given_up.intersection(&all);
    given_up.subtract(&settled);
    let committed = counts.committed.min(settled.count());
    let discarded_max = settled.count() - committed + given_up.count();
    let discarded = counts.discarded.clamp(given_up.count(), discarded_max);
    let counts = Counts {
        committed,
        discarded,
        evicted: last_seq - committed - discarded,
    };
    let none = RangeSet::new();
    let account = Account::restore(epoch, last_seq, none, settled, given_up, counts)?;
    Some(Ledger {
        account,
        book: Book::new(ids, last_seq, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::paths::Paths;
    use crate::buffer::recovery::create;
    use crate::buffer::row::to_sql;
    use schema::{ObservedAt, Quality, Value};

    fn set(first: u64, last: u64) -> RangeSet {
        SeqRange::new(first, last).into_iter().collect()
    }

    /// A file of ten rows, and an account that has settled some of them.
    async fn file_with(committed: &RangeSet, deleted: &RangeSet) -> Result<State, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(&folder.path().join("buffer.db"));
        create(&paths, Epoch::from_random(1), 0).await.unwrap();
        paths.adopt_new().unwrap();
        let open = async || {
            let unchecked = crate::buffer::connect::Unchecked::open(&paths.main).await;
            unchecked.unwrap().migrate(1).await.unwrap()
        };
        let mut file = open().await;
        let mut state = load(&file).await.unwrap();
        file.begin().await.unwrap();
        file.add_sensor(1, "cpu").await.unwrap();
        for seq in 1..=10 {
            let key = Key {
                seq,
                hlc: state.clock.tick(1000),
                observed_at: ObservedAt::from_millis(5),
                sensor: 1,
            };
            let value = Value::Text("abc".into());
            let mark = key.mark(Quality::Good, &value);
            file.add_row(key, mark, to_sql(&value)).await.unwrap();
        }
        file.finish_rows().await.unwrap();
        file.delete_rows(deleted.iter()).await.unwrap();
        state.ledger.account.accept(10);
        let none = RangeSet::new();
        state.ledger.account.settle(committed, &[], &none);
        let writes = state.ledger.changes(0, &mut state.ids);
        file.write_log(&writes).await.unwrap();
        file.commit().await.unwrap();
        drop(file);
        load(&open().await).await
    }

    #[tokio::test]
    async fn rows_that_are_settled_and_not_deleted_yet_are_left_over_not_pending() {
        let state = file_with(&set(2, 6), &set(2, 3)).await.unwrap();
        assert_eq!(state.leftover, set(4, 6));
        let account = &state.ledger.account;
        assert!(account.balance().is_balanced());
        assert_eq!(account.pending().count(), 5);
        assert_eq!(state.text_bytes, 15);
        assert_eq!(state.clock.last(), Hlc::new(1000, 9));
    }

    #[tokio::test]
    async fn a_row_that_vanished_is_damage() {
        let found = file_with(&set(2, 6), &set(2, 7)).await;
        assert!(
            matches!(found, Err(LoadError::Damaged(_))),
            "{:?}",
            found.map(|state| state.ledger)
        );
    }
}
