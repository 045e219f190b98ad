//! What is done about a damaged file: it is moved aside, and what can be read of it goes into a
//! new one. Rows keep number and epoch where the accounts still have them; the others move behind
//! all the rest, under a new epoch, with the sensor, time, clock and value that they have.
//!
//! ```text
//! NAME damaged ─► NAME.new filled and synced ─► NAME to NAME.damaged-TIME ─► NAME.new to NAME
//! ```
//!
//! A crash at any point is safe: as long as NAME stands, NAME.new counts for nothing and is made
//! again; when NAME is gone, NAME.new is whole. Rows keep their clock and their time of
//! observation, so a reading that the database has already is no conflict there. Nothing is
//! written to the damaged file, and nothing of it is deleted.

use std::collections::HashMap;
use std::path::PathBuf;

use schema::limits::REPORT_EPOCHS_MAX;
use schema::{Epoch, RangeSet, SensorName, SeqRange};

use super::account::Counts;
use super::connect::{Unchecked, look_only};
use super::epochs::Ledger;
use super::error::BufferError;
use super::file::File;
use super::log::{Entry, Ids, Kind, RangeOf, Ranges, Write};
use super::pages;
use super::paths::Paths;
use super::row::{Held, SensorId, to_sql};
use super::sensors::Sensors;
use super::small_tables::StoredSetting;
use super::survey::{Source, gather, reading};

/// Rows saved in one transaction.
const COMMIT_ROWS: u64 = 4096;

/// What was done about a damaged file, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What was wrong with it.
    pub damage: String,
    /// Where the damaged file is now.
    pub kept_as: PathBuf,
    /// The epoch that was last written to it, when it could be read.
    pub old_epoch: Option<Epoch>,
    /// Readings that were saved into the new file.
    pub salvaged: u64,
    /// Pending readings that are known to be missing; `None` when the damaged file does not show any of
    /// them. There may be more: a file whose end was cut off does not show how much it held.
    pub missing: Option<u64>,
    /// Saved readings whose sensor's name could not be read: they are under `unknown-sensor-N`.
    pub unnamed: u64,
}

/// Makes a new, empty file beside the buffer's place.
pub(super) async fn create(paths: &Paths) -> Result<(), BufferError> {
    paths.remove_new()?;
    async {
        let file = Unchecked::open(&paths.new).await?.migrate(0).await?;
        file.checkpoint().await
    }
    .await
    .map_err(|error| BufferError::from_libsql(&paths.new, error))
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
    let known_last_row = survey.last_row.max(known.last_row());

    paths.remove_new()?;
    let failed = |error| BufferError::from_libsql(&paths.new, error);
    let mut file = async { Unchecked::open(&paths.new).await?.migrate(0).await }
        .await
        .map_err(failed)?;
    save_small_tables(paths, &mut file, now_ms)
        .await
        .map_err(failed)?;
    let mut sensors = Sensors::default();
    let mut renamed: HashMap<SensorId, SensorId> = HashMap::new();
    let mut taken = RangeSet::new();
    let (mut salvaged, mut unnamed, mut moved) = (0u64, 0u64, 0u64);
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
            let is_done = known.gone.contains(key.seq)
                || known
                    .of_row(key.seq)
                    .is_some_and(|of| of.is_done(key.seq - of.base));
            if is_done || taken.contains(key.seq) {
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
            match known.of_row(key.seq) {
                Some(of) => of.found.extend(SeqRange::one(key.seq - of.base)),
                None => {
                    moved += 1;
                    key.seq = known_last_row + moved;
                }
            }
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

    // The one that was being written.
    let old_epoch = known.epochs.last().map(|of| of.epoch);
    let missing = old_epoch.map(|_| {
        let held: u64 = known
            .last_rows(known_last_row)
            .map(|(of, last)| of.held(last))
            .sum();
        held.saturating_sub(salvaged - moved)
    });
    let mut ids = Ids::above(&[]);
    let mut gone: RangeSet = SeqRange::new(1, known_last_row).into_iter().collect();
    let mut ledgers = Vec::new();
    let lasts: Vec<u64> = known
        .last_rows(known_last_row)
        .map(|(_, last)| last)
        .collect();
    let mut past = known
        .past
        .as_ref()
        .map_or_else(Counts::default, |past| past.counts);
    for (of, last_row) in std::mem::take(&mut known.epochs).into_iter().zip(lasts) {
        match of.into_ledger(last_row, &mut ids) {
            Some(ledger) if ledger.account.is_finished() => past += ledger.account.counts(),
            ledger => ledgers.extend(ledger),
        }
    }
    if moved > 0 {
        let mut ledger = Ledger::begin(epoch, known_last_row, &mut ids);
        ledger.account.accept(moved);
        ledger.end();
        ledgers.push(ledger);
    }
    // Of those without rows only the newest: each is a name to be reported.
    let without_rows = ledgers.iter().filter(|ledger| ledger.run().is_none());
    let mut surplus = without_rows.count().saturating_sub(REPORT_EPOCHS_MAX - 1);
    let mut writes = Vec::new();
    for ledger in &ledgers {
        match ledger.run() {
            Some(run) => {
                if let Some(rows) = SeqRange::new(run.base + 1, run.last_row) {
                    gone.remove(rows);
                }
            }
            None if surplus > 0 => {
                surplus -= 1;
                past += ledger.account.counts();
                continue;
            }
            None => {}
        }
        writes.extend(ledger.changes(&ledger.account, now_ms, &mut ids));
    }
    let of = (epoch, now_ms);
    gone.subtract(&known.forgotten);
    for (said, rows) in [
        (RangeOf::Gone, &gone),
        (RangeOf::Forgotten, &known.forgotten),
        (RangeOf::Again, &known.again),
    ] {
        Ranges::default().changes(said, rows, of, &mut ids, &mut writes);
    }
    let found = Entry {
        id: ids.next(),
        kind: Kind::Recovery,
        epoch: old_epoch.unwrap_or(epoch),
        at_ms: now_ms,
        first_seq: 0,
        last_seq: survey.last_row,
        counts: Counts::default(),
        hlc: 0,
        note: format!(
            "{damage}; {salvaged} readings saved, {} known to be missing",
            missing.map_or("an unknown number".to_owned(), |count| count.to_string())
        ),
    };
    if past.sum() > 0 {
        writes.push(Write::Put(Entry {
            id: ids.next(),
            kind: Kind::Past,
            last_seq: 0,
            counts: past,
            note: String::new(),
            ..found.clone()
        }));
    }
    if let Some(offered) = known.offered.take() {
        let id = ids.next();
        writes.push(Write::Put(Entry { id, ..offered }));
    }
    writes.push(Write::Put(found));
    async {
        file.finish_rows().await?;
        file.write_log(writes.iter()).await?;
        for kept in survey.positions.values() {
            file.keep_position(kept).await?;
        }
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

/// Saves settings and the memory of commands, as far as SQLite still reads their tables. What its log
/// holds is not looked at: so a command that had not ended counts as one that may have run.
async fn save_small_tables(
    paths: &Paths,
    file: &mut File,
    now_ms: u64,
) -> Result<(), libsql::Error> {
    // What cannot be read is lost, and was reported as damaged.
    let Ok(damaged) = look_only(paths.content()).await else {
        return Ok(());
    };
    let commands = damaged.salvaged_commands().await.unwrap_or_default();
    let settings = damaged.salvaged_config().await.unwrap_or_default();
    file.begin().await?;
    for known in &commands {
        file.restore_command(known, now_ms).await?;
    }
    for StoredSetting { entry, origin } in &settings {
        file.keep_setting(entry, *origin, now_ms).await?;
    }
    file.commit().await
}

fn unknown_name(id: SensorId) -> Option<SensorName> {
    format!("unknown-sensor-{id}").parse().ok()
}
