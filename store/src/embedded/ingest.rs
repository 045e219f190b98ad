//! Telemetry in, within the writer's transaction: no other writer can be in the way, so there is
//! nothing to try again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use libsql::Value as Cell;
use schema::digest::Digester;
use schema::{DeviceId, Epoch, ObservedAt};

use super::super::ledger::contest::{self, Contest, Lost};
use super::super::ledger::plan::{Gone, Intake, NewRow};
use super::super::ledger::{EpochState, Group, Run, Span, Track, grow};
use super::super::quota::{Aside, Rooms, Taken, dropped_of, note_dropped};
use super::super::{Delivery, Ingested, RowCounts, StoreError, StoredReading};
use super::file::{ERA, Failed, File, ready};
use super::port::{Statements, judged};
use super::report::take;
use super::values;
use super::values::{cell, cells, maybe, text_cell, time_cell};

/// Rows of one INSERT statement: fewer leave libSQL's overhead per statement visible.
const INSERT_ROWS: usize = 16;

macro_rules! row_columns {
    () => {
        "(device_id, sensor, observed_at, value_f64, value_i64, value_bool, value_text, quality, \
         hlc, epoch, seq, received_at)"
    };
}

macro_rules! row {
    () => {
        "(?,?,?,?,?,?,?,?,?,?,?,?)"
    };
}

const INSERT_ONE: &str = concat!(
    "INSERT INTO telemetry_data ",
    row_columns!(),
    " VALUES ",
    row!()
);

const INSERT_MANY: &str = concat!(
    "INSERT INTO telemetry_data ",
    row_columns!(),
    " VALUES ",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!(),
    ",",
    row!()
);

const PUT_ROW: &str = concat!(
    "INSERT OR REPLACE INTO telemetry_data ",
    row_columns!(),
    " VALUES ",
    row!()
);

const STORED: &str = "SELECT observed_at, value_f64, value_i64, value_bool, value_text, quality, \
     hlc, epoch, seq, received_at FROM telemetry_data \
     WHERE device_id = ? AND sensor = ? AND observed_at = ?";

const LOST: &str = "SELECT observed_at, value_f64, value_i64, value_bool, value_text, quality, \
     hlc, epoch, seq, received_at FROM conflicts \
     WHERE device_id = ? AND sensor = ? AND observed_at = ?";

const GONE_BEFORE: &str = "SELECT expired_before FROM devices \
     WHERE device_id = ? AND expired_before IS NOT NULL";

const PUT_CONFLICT: &str = "INSERT OR IGNORE INTO conflicts (device_id, sensor, observed_at, \
     value_f64, value_i64, value_bool, value_text, quality, hlc, epoch, seq, received_at, \
     winner_hlc, winner_epoch, winner_seq, recorded_at, same_reading) \
     VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

const SUPERSEDE: &str =
    "UPDATE devices SET superseded = coalesce(superseded, 0) + ?2 WHERE device_id = ?1";

const MEET_DEVICE: &str = "INSERT INTO devices (device_id, first_seen, last_seen, online) \
     VALUES (?1, ?2, ?2, 0) ON CONFLICT DO NOTHING";

const MEET_FILE: &str = "INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, \
     ledger_version, merge_due, direct) VALUES (?1, ?2, ?3, ?3, 0, 0, ?4) ON CONFLICT DO NOTHING";

const HEAD: &str = "SELECT ledger_version FROM sync_status WHERE device_id = ? AND epoch = ?";

const KNOWN: &str = "SELECT kind, reason, first_seq, last_seq, digest, hlc_max, observed_min, \
     observed_max, recorded_at, discarded_by FROM ledger WHERE device_id = ?1 AND epoch = ?2 \
     AND last_seq >= ?3 - 1 ORDER BY first_seq";

const MOVE_HEAD: &str = "UPDATE sync_status SET ledger_version = ?3, \
     last_seen = max(last_seen, ?4), merge_due = max(merge_due, ?5) \
     WHERE device_id = ?1 AND epoch = ?2";

const PUT_RANGE: &str = "INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, \
     hlc_max, observed_min, observed_max, reason, recorded_at, discarded_by) \
     VALUES (?,?,?,?,?,?,?,?,?,?,?,?) \
     ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET last_seq = excluded.last_seq, \
     digest = excluded.digest, hlc_max = excluded.hlc_max, observed_min = excluded.observed_min, \
     observed_max = excluded.observed_max, reason = excluded.reason, \
     recorded_at = excluded.recorded_at, discarded_by = excluded.discarded_by";

const MERGE_DUE: &str = "SELECT device_id, epoch FROM sync_status WHERE merge_due LIMIT ?";

const DROP_RANGE: &str =
    "DELETE FROM ledger WHERE device_id = ? AND epoch = ? AND first_seq = ? AND kind = ?";

const MERGED: &str = "UPDATE sync_status SET merge_due = 0, ledger_version = ledger_version + 1 \
     WHERE device_id = ? AND epoch = ?";

pub(super) fn ingest(
    file: &mut File,
    deliveries: &[Delivery],
    retention: Option<Duration>,
    rooms: &Rooms,
) -> Result<(Ingested, Taken), StoreError> {
    let mut intake = Intake::new(deliveries);
    let mut states = load(file, &intake.groups)?;
    let mut new_rows = Vec::new();
    let quiet = intake.select_all(&states, &mut Digester::default(), &mut new_rows);
    let repeated = intake.repeated();
    let mut held = found(file, STORED, &intake, &repeated)?;
    held.extend(found(file, LOST, &intake, &repeated)?);
    let changed = intake.changed(&repeated, &held, retention);
    let gone = gone(file, &intake, &changed)?;
    intake.refuse_changed(&changed, &gone);
    let (plain, contested) = new_rows.split_at(quiet);
    let mut written = Written::default();
    write_plain(file, &intake, plain, &mut written, rooms)?;
    write_compared(file, &intake, contested, &mut written, rooms)?;

    let mut runs: HashMap<usize, Vec<Run>> = HashMap::new();
    for (group, of_group) in intake.runs(&new_rows) {
        runs.entry(group).or_default().extend(of_group);
    }
    for (at, group) in intake.groups.iter().enumerate() {
        let Some(state) = &mut states[at] else {
            continue;
        };
        let mut runs = runs.remove(&at).unwrap_or_default();
        runs.extend(group.claimed(state));
        record(file, group, state, &runs)?;
        state.contested = written.contested.contains(&(at as u32));
    }

    let mut counts = written.counts;
    counts.refused = intake.refusals();
    counts.known = intake.readings().saturating_sub(
        counts.inserted + counts.replaced + counts.older + counts.same + counts.refused,
    );
    for rejection in deliveries.iter().flat_map(|delivery| &delivery.rejected) {
        counts.refused += rejection.range.count();
    }
    let files: Vec<(DeviceId, Epoch)> = intake
        .groups
        .iter()
        .map(|group| (group.device.clone(), group.epoch))
        .collect();
    let known: Vec<EpochState> = states.into_iter().map(Option::unwrap_or_default).collect();
    let stored = intake.devices(written.stored);
    let settled = intake.settle(&known);
    for ((device, epoch), state) in files.into_iter().zip(known) {
        file.cache.put(ERA, &device, epoch, state);
    }
    let ingested = Ingested {
        settled,
        rows: counts,
        stored,
    };
    Ok((ingested, written.taken))
}

/// What came of writing rows.
#[derive(Debug, Default)]
struct Written {
    counts: RowCounts,
    /// What became of the versions that lost.
    taken: Taken,
    /// Groups of which rows are in the table now.
    stored: Vec<u32>,
    /// Groups in which versions met.
    contested: Vec<u32>,
}

/// What is known of each buffer file; `None` where nothing is to be read or written.
pub(super) fn load(
    file: &mut File,
    groups: &[Group],
) -> Result<Vec<Option<EpochState>>, StoreError> {
    let mut states = Vec::with_capacity(groups.len());
    for group in groups {
        states.push(match group.floor {
            u64::MAX => None,
            _ => Some(load_one(file, group)?),
        });
    }
    Ok(states)
}

fn load_one(file: &mut File, group: &Group) -> Result<EpochState, StoreError> {
    let key = || vec![text_cell(group.device.as_str()), cell(group.epoch.get())];
    let heads = file.query(HEAD, key(), |row| values::int(row, 0))?;
    let Some(version) = heads.first().copied() else {
        let seen = time_cell(group.received_at);
        let device = vec![text_cell(group.device.as_str()), seen.clone()];
        file.execute(MEET_DEVICE, device)?;
        let mut values = key();
        values.push(seen);
        values.push(Cell::Integer(i64::from(group.is_direct)));
        file.execute(MEET_FILE, values)?;
        return Ok(EpochState::empty(0, 1));
    };
    // Another process may have written since.
    let cached = file
        .cache
        .take(ERA, &group.device, group.epoch, group.floor);
    if let Some(state) = cached.filter(|state| state.version == version) {
        return Ok(state);
    }
    let mut state = EpochState::empty(version, group.floor);
    let mut values = key();
    values.push(cell(group.floor));
    let spans = file.query(KNOWN, values, |row| values::span(row, 0))?;
    for span in spans.into_iter().flatten() {
        state.put(span);
    }
    Ok(state)
}

/// Enters runs in the ledger and moves its head.
pub(super) fn record(
    file: &mut File,
    group: &Group,
    state: &mut EpochState,
    runs: &[Run],
) -> Result<(), StoreError> {
    if runs.is_empty() {
        return Ok(());
    }
    let (spans, mergeable) = grow(state, runs, group.received_at);
    for span in &spans {
        put_range(file, group, span)?;
    }
    state.version += 1;
    let values = vec![
        text_cell(group.device.as_str()),
        cell(group.epoch.get()),
        Cell::Integer(state.version),
        time_cell(group.received_at),
        Cell::Integer(i64::from(mergeable)),
    ];
    file.execute(MOVE_HEAD, values)?;
    for span in spans {
        state.put(span);
    }
    Ok(())
}

fn put_range(file: &mut File, group: &Group, span: &Span) -> Result<(), Failed> {
    let extent = span.extent;
    let values = vec![
        text_cell(group.device.as_str()),
        cell(group.epoch.get()),
        cell(span.range.first()),
        text_cell(span.kind.track().as_str()),
        cell(span.range.last()),
        Cell::Integer(span.digest.cast_signed()),
        maybe(extent.map(|extent| cell(extent.hlc_max.bits()))),
        maybe(extent.map(|extent| Cell::Integer(extent.observed_min.micros()))),
        maybe(extent.map(|extent| Cell::Integer(extent.observed_max.micros()))),
        maybe(span.kind.reason().map(|reason| text_cell(reason.as_str()))),
        time_cell(span.recorded_at),
        maybe(span.kind.discarder().map(text_cell)),
    ];
    file.execute(PUT_RANGE, values).map(|_| ())
}

/// Inserts rows that are expected to be the first of their keys. When one is not, all are compared.
fn write_plain(
    file: &mut File,
    intake: &Intake<'_>,
    rows: &[NewRow],
    written: &mut Written,
    rooms: &Rooms,
) -> Result<(), StoreError> {
    file.batch("SAVEPOINT plain")?;
    match insert(file, intake, rows) {
        Ok(()) => {
            file.batch("RELEASE plain")?;
            written.counts.inserted += rows.len() as u64;
            written.stored.extend(rows.iter().map(|row| row.group));
            Ok(())
        }
        Err(failed) if failed.is_taken() => {
            file.batch("ROLLBACK TO plain; RELEASE plain")?;
            write_compared(file, intake, rows, written, rooms)
        }
        Err(failed) => Err(failed.into()),
    }
}

fn insert(file: &mut File, intake: &Intake<'_>, rows: &[NewRow]) -> Result<(), Failed> {
    let mut chunks = rows.chunks_exact(INSERT_ROWS);
    for chunk in &mut chunks {
        let mut values = Vec::with_capacity(INSERT_ROWS * 12);
        for row in chunk {
            push_row(&mut values, intake, row);
        }
        file.execute(INSERT_MANY, values)?;
    }
    for row in chunks.remainder() {
        let mut values = Vec::with_capacity(12);
        push_row(&mut values, intake, row);
        file.execute(INSERT_ONE, values)?;
    }
    Ok(())
}

fn push_row(values: &mut Vec<Cell>, intake: &Intake<'_>, row: &NewRow) {
    let (delivery, sensor, reading) = intake.row(row);
    values.push(text_cell(delivery.device.as_str()));
    values.push(text_cell(sensor));
    values.push(Cell::Integer(reading.observed_at.micros()));
    values.extend(cells(&reading.value));
    values.push(Cell::Integer(i64::from(u8::from(reading.quality))));
    values.push(cell(reading.hlc.bits()));
    values.push(cell(delivery.batch.epoch.get()));
    values.push(cell(row.seq));
    values.push(time_cell(delivery.received_at));
}

fn stored<'a>(
    file: &mut File,
    intake: &Intake<'a>,
    rows: &[NewRow],
) -> Result<HashMap<contest::Key<'a>, StoredReading>, StoreError> {
    let found = found(file, STORED, intake, rows)?.into_iter();
    Ok(found
        .map(|(at, reading)| (contest::key(intake, &rows[at]), reading))
        .collect())
}

/// What is under the keys of some rows, each with the place of its row.
fn found(
    file: &mut File,
    sql: &'static str,
    intake: &Intake<'_>,
    rows: &[NewRow],
) -> Result<Vec<(usize, StoredReading)>, StoreError> {
    let mut found = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let (delivery, name, reading) = intake.row(row);
        let key = vec![
            text_cell(delivery.device.as_str()),
            text_cell(name),
            Cell::Integer(reading.observed_at.micros()),
        ];
        let sensor = delivery.batch.sensor(reading);
        let held = file.query(sql, key, |row| values::reading(row, 0, sensor.clone()))?;
        found.extend(held.into_iter().map(|held| (at, held)));
    }
    Ok(found)
}

/// What is gone of these devices.
fn gone(file: &mut File, intake: &Intake<'_>, rows: &[NewRow]) -> Result<Gone, StoreError> {
    let mut gone = Gone::default();
    let devices: BTreeSet<&DeviceId> = rows.iter().map(|row| &intake.row(row).0.device).collect();
    if devices.is_empty() {
        return Ok(gone);
    }
    for device in devices {
        let key = vec![text_cell(device.as_str())];
        for before in file.query(GONE_BEFORE, key, |row| values::int(row, 0))? {
            let before = ObservedAt::from_micros(before);
            gone.before.insert(device.clone(), before);
        }
    }
    let devices = intake.devices_of(rows);
    gone.dropped = judged(ready(dropped_of(&mut Statements(file), devices)))?;
    Ok(gone)
}

fn write_compared(
    file: &mut File,
    intake: &Intake<'_>,
    rows: &[NewRow],
    written: &mut Written,
    rooms: &Rooms,
) -> Result<(), StoreError> {
    let contest = contest::decide(intake, rows, stored(file, intake, rows)?);
    for row in &contest.writes {
        let mut values = Vec::with_capacity(12);
        push_row(&mut values, intake, row);
        file.execute(PUT_ROW, values)?;
    }
    if !contest.losers.is_empty() {
        written.taken += put_conflicts(file, intake, &contest, rooms)?;
    }
    written.counts += contest.counts;
    written.stored.extend(contest.stored());
    let met = contest.met().map(|loser| loser.row.group);
    written.contested.extend(met);
    Ok(())
}

/// Keeps copies of versions that lost, as far as there is room for them, and counts them.
fn put_conflicts(
    file: &mut File,
    intake: &Intake<'_>,
    contest: &Contest,
    rooms: &Rooms,
) -> Result<Taken, StoreError> {
    let losers = contest.losers.iter();
    let losers: Vec<Lost<'_>> = losers.map(|loser| loser.reading(intake)).collect();
    let pieces: Vec<(&str, u64)> = losers.iter().map(|of| (of.device, of.bytes())).collect();
    let now = losers.iter().map(|of| of.recorded_at).max();
    let now = now.unwrap_or_default();
    let taken = take(file, rooms, Aside::Conflicts, &pieces, now)?;
    let (kept, dropped) = taken.split(&losers);
    judged(ready(note_dropped(&mut Statements(file), &dropped)))?;
    for lost in kept {
        let mut values = Vec::with_capacity(17);
        values.push(text_cell(lost.device));
        values.push(text_cell(lost.sensor));
        values.push(Cell::Integer(lost.observed_at.micros()));
        values.extend(cells(lost.value));
        values.push(Cell::Integer(i64::from(u8::from(lost.quality))));
        values.push(cell(lost.version.hlc.bits()));
        values.push(cell(lost.version.epoch.get()));
        values.push(cell(lost.version.seq));
        values.push(time_cell(lost.received_at));
        values.push(cell(lost.winner.hlc.bits()));
        values.push(cell(lost.winner.epoch.get()));
        values.push(cell(lost.winner.seq));
        values.push(time_cell(lost.recorded_at));
        values.push(Cell::Integer(i64::from(lost.is_same)));
        file.execute(PUT_CONFLICT, values)?;
    }
    for (device, lost) in contest.superseded(intake) {
        file.execute(SUPERSEDE, vec![text_cell(device), cell(lost)])?;
    }
    Ok(taken)
}

/// Adjacent ranges into one.
pub(super) fn merge(file: &mut File, limit: usize) -> Result<u64, StoreError> {
    let due = file.query(MERGE_DUE, vec![cell(limit as u64)], |row| {
        Ok((values::device(row, 0)?, values::epoch(row, 1)?))
    })?;
    let mut gone = 0;
    for (device, epoch) in due {
        let mut group = Group::new(device, epoch);
        group.floor = 1;
        let state = load_one(file, &group)?;
        let merge = state.merge();
        let key = || vec![text_cell(group.device.as_str()), cell(epoch.get())];
        for (track, first) in &merge.gone {
            let mut values = key();
            values.push(cell(*first));
            values.push(text_cell(Track::as_str(*track)));
            gone += file.execute(DROP_RANGE, values)? as u64;
        }
        for span in &merge.changed {
            put_range(file, &group, span)?;
        }
        // The state is not put back: the next write reads the merged ranges.
        file.execute(MERGED, key())?;
    }
    Ok(gone)
}
