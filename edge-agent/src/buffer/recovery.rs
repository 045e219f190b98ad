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

use std::collections::HashMap;
use std::path::PathBuf;

use schema::limits::REPORT_EPOCHS_MAX;
use schema::{Epoch, Hlc, RangeSet, SensorName, SeqRange};

use super::account::Counts;
use super::connect::Unchecked;
use super::error::BufferError;
use super::load::Ledger;
use super::log::{Entry, Ids, Kind, Write};
use super::pages;
use super::paths::Paths;
use super::row::{Held, SensorId, to_sql};
use super::sensors::Sensors;
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
            .saturating_sub(counts.committed + counts.evicted + counts.discarded)
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
