//! What a buffer holds, for people and programs: counted, or each reading as it would leave. Works on a copy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schema::message::RejectReason;
use schema::{Balance, Epoch, Hlc, ObservedAt, Quality, RangeSet, SensorName, SeqRange, Value};
use serde::Serialize;

use super::connect::number;
use super::error::BufferError;
use super::load::State;
use super::open::Ready;
use super::paths::Paths;
use super::row::{Held, ROW_BYTES, text_bytes};
use super::snapshot::{self, LookError, is_in_use};
use super::starts::leaving;
use crate::clock::core::Release;
use crate::status::Files;

/// What a buffer holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Whether an agent has it; `None` where this user cannot find out. An agent may know more than its file: what it
    /// was told in the last seconds.
    pub in_use: Option<bool>,
    /// Bytes on the disk.
    pub files: Option<Files>,
    /// Damaged files that earlier starts moved aside.
    pub set_aside_files: Vec<PathBuf>,
    /// `None` when the file is as it was written.
    pub damage: Option<Damage>,
    /// The counts of all epochs that the file has seen.
    pub balance: Balance,
    /// Whether they add up.
    pub is_balanced: bool,
    /// Bytes of what is pending and in quarantine, as the limits count them.
    pub bytes: u64,
    /// When the first and the last of these readings were observed, microseconds since the Unix epoch.
    pub observed_us: Option<(i64, i64)>,
    /// What is in quarantine, by reason.
    pub quarantine: BTreeMap<RejectReason, u64>,
    /// Each epoch that is not settled, oldest first.
    pub epochs: Vec<EpochHeld>,
    /// Each sensor with readings in it.
    pub sensors: BTreeMap<SensorName, SensorHeld>,
    /// Rows of the small tables that made no sense and were set aside.
    pub set_aside_rows: u64,
}

/// What is wrong with a file, and what a start would save of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What is wrong.
    pub what: String,
    /// Readings that can be read.
    pub readable: u64,
    /// Readings that should be there and cannot be read; `None` when the file does not tell.
    pub missing: Option<u64>,
}

/// One epoch in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EpochHeld {
    /// Its name.
    pub epoch: Epoch,
    /// Its counts.
    #[serde(flatten)]
    pub balance: Balance,
    /// Whether its rows wait until the time is known.
    pub held: bool,
}

/// One sensor in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SensorHeld {
    /// Its readings that are pending.
    pub pending: u64,
    /// Its readings in quarantine.
    pub quarantined: u64,
    /// When the first and the last of them were observed, microseconds since the Unix epoch.
    pub observed_us: (i64, i64),
}

/// A reading that a buffer holds, as it would leave.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldReading<'a> {
    /// Its sensor.
    pub sensor: &'a SensorName,
    /// When it was observed.
    pub observed_at: ObservedAt,
    /// What the sensor said.
    pub value: Value,
    /// How far that is to be trusted.
    pub quality: Quality,
    /// Its version.
    pub hlc: Hlc,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its sequence in it.
    pub seq: u64,
    /// Why it is in quarantine; `None` of one that is pending.
    pub reason: Option<RejectReason>,
}

/// What an export went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Readings that were found.
    pub found: u64,
    /// Readings that the file's accounts name.
    pub expected: u64,
    /// What is wrong with the file.
    pub damage: Option<Damage>,
}

/// Counts what the buffer at `path` holds. Its copy is made in `scratch`, or where there is room.
///
/// # Errors
/// [`LookError`].
pub async fn inspect(path: &Path, scratch: Option<&Path>) -> Result<Inspection, LookError> {
    let in_use = is_in_use(path);
    let files = Files::of(path);
    let snapshot = snapshot::take(path, scratch).await?;
    let ready = &snapshot.ready;
    let state = &ready.state;
    let mut sensors = BTreeMap::<SensorName, SensorHeld>::new();
    let mut observed: Option<(i64, i64)> = None;
    let mut bytes = 0;
    each(ready, |reading| {
        let at = reading.observed_at.micros();
        let with = |(first, last): (i64, i64)| (first.min(at), last.max(at));
        observed = Some(observed.map_or((at, at), with));
        bytes += ROW_BYTES + text_bytes(&reading.value);
        let first = SensorHeld {
            observed_us: (at, at),
            ..SensorHeld::default()
        };
        let of = sensors.entry(reading.sensor.clone()).or_insert(first);
        of.observed_us = with(of.observed_us);
        match reading.reason {
            None => of.pending += 1,
            Some(_) => of.quarantined += 1,
        }
        true
    })
    .await?;
    let balance = state.epochs.balance();
    let reasons = RejectReason::ALL.into_iter().zip(state.epochs.reasons());
    Ok(Inspection {
        path: path.to_owned(),
        in_use,
        files,
        set_aside_files: Paths::of(path).damaged(),
        damage: damage(ready),
        balance,
        is_balanced: balance.is_balanced(),
        bytes,
        observed_us: observed,
        quarantine: reasons.filter(|(_, count)| *count > 0).collect(),
        epochs: epochs(state),
        sensors,
        set_aside_rows: number(&ready.file.connection, "SELECT count(*) FROM set_aside")
            .await
            .map_or(0, |rows| rows.max(0).cast_unsigned()),
    })
}

/// Hands each reading that the buffer at `path` holds to `found`, in the order in which they were accepted, until it
/// says that this is enough.
///
/// # Errors
/// [`LookError`].
pub async fn export(
    path: &Path,
    scratch: Option<&Path>,
    mut found: impl FnMut(&HeldReading<'_>) -> bool,
) -> Result<Exported, LookError> {
    let snapshot = snapshot::take(path, scratch).await?;
    let epochs = &snapshot.ready.state.epochs;
    let expected = epochs.pending_rows() + epochs.quarantined_rows();
    let mut count = 0;
    each(&snapshot.ready, |reading| {
        count += 1;
        found(&reading)
    })
    .await?;
    Ok(Exported {
        found: count,
        expected,
        damage: damage(&snapshot.ready),
    })
}

fn damage(ready: &Ready) -> Option<Damage> {
    let recovery = ready.recovery.as_ref()?;
    Some(Damage {
        what: recovery.damage.clone(),
        readable: recovery.salvaged,
        missing: recovery.missing,
    })
}

/// Epochs that took readings; those that are settled and forgotten are in the balance alone.
fn epochs(state: &State) -> Vec<EpochHeld> {
    let mut all: Vec<EpochHeld> = state
        .epochs
        .with_rows()
        .filter(|(ledger, _)| ledger.account.last_seq() > 0)
        .map(|(ledger, _)| EpochHeld {
            epoch: ledger.account.epoch(),
            balance: ledger.account.balance(),
            held: ledger
                .clock
                .is_some_and(|clock| clock.release == Release::Held),
        })
        .collect();
    let others = state.epochs.to_report().filter(|account| {
        account.last_seq() > 0 && !all.iter().any(|of| of.epoch == account.epoch())
    });
    let others: Vec<EpochHeld> = others
        .map(|account| EpochHeld {
            epoch: account.epoch(),
            balance: account.balance(),
            held: false,
        })
        .collect();
    all.extend(others);
    all
}

/// Goes through all readings that are pending or in quarantine.
async fn each(
    ready: &Ready,
    mut found: impl FnMut(HeldReading<'_>) -> bool,
) -> Result<(), BufferError> {
    let state = &ready.state;
    for (ledger, run) in state.epochs.with_rows() {
        let account = &ledger.account;
        let mut held: RangeSet = run.rows_of(account.pending());
        held.merge(&run.rows_of(&account.sets().in_quarantine()));
        let (Some(first), Some(last)) = (held.first(), held.last()) else {
            continue;
        };
        let Some(rows) = SeqRange::new(first, last) else {
            continue;
        };
        let reason_of = |seq: u64| {
            let mut causes = account.sets().quarantined.iter();
            let cause = causes.find(|(_, set)| set.contains(seq));
            cause.map(|(cause, _)| cause.reason)
        };
        let mut is_enough = false;
        let read = ready.file.for_each_row(rows, |columns| {
            let row = columns.seq.cast_unsigned();
            if !held.contains(row) {
                return true;
            }
            let Some(Held::Reading(key, quality, value)) = columns.check() else {
                return true;
            };
            let Some(sensor) = state.sensors.name(key.sensor) else {
                return true;
            };
            let (hlc, observed_at, quality) = leaving(ledger.clock.as_ref(), &key, quality);
            let seq = row - run.base;
            is_enough = !found(HeldReading {
                sensor,
                observed_at,
                value,
                quality,
                hlc,
                epoch: run.epoch,
                seq,
                reason: reason_of(seq),
            });
            !is_enough
        });
        let path = ready.path();
        read.await
            .map_err(|error| BufferError::from_libsql(path, error))?;
        if is_enough {
            break;
        }
    }
    Ok(())
}
