//! Telemetry in: load what the ledger knows, select what is new, write it, learn, repeat for what
//! is left.
//!
//! ```text
//!        ┌──────────────────────── some states dropped ◄──────────────┐
//!        ▼                                                             │
//! load missing states ─► select new rows ─► for each part: write ──────┤ moved, unknown, elsewhere
//!                                             │  │                     │
//!                                             │  └ too large: halve
//!                                             ▼
//!                                       put states ─► … ─► settle
//! ```
//!
//! A part whose commit is unknown is not written again blindly: its states are dropped, and the
//! ledger tells whether it was. What the database refuses ends the call, and is whoever's who asked.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use schema::ObservedAt;
use schema::digest::Digester;
use schema::time::ReceivedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::contract::IngestStore;
use super::super::ledger::contest::{self};
use super::super::ledger::plan::{GoneBefore, Intake, NewRow, parts};
use super::super::ledger::{EpochState, Group};
use super::super::sqlstate::Verdict;
use super::super::{Delivery, Ingested, RowCounts, StoreError, StoredReading};
use super::arguments::{Columns, Micros};
use super::columns::{
    conflict_arguments, head_arguments, ledger_arguments, observed, range_arguments, row_arguments,
    shape,
};
use super::dialect::Purpose;
use super::failed::{Budget, Failed};
use super::heads::{Head, Known, advance, heads};
use super::sql::Shape;
use super::{Cockroach, rows, sql};

/// What came of writing a part.
#[derive(Debug)]
enum Written {
    /// It is committed.
    Done(Part),
    /// Another bridge has moved a head: nothing is written.
    Moved,
}

/// A committed part.
#[derive(Debug, Default)]
struct Part {
    counts: RowCounts,
    /// Groups of which rows are in the table now.
    stored: Vec<u32>,
    /// Groups in which versions met.
    contested: Vec<u32>,
}

/// How far the parts of a plan were written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    /// Some states were dropped: load them and plan again.
    Again,
}

#[async_trait]
impl IngestStore for Cockroach {
    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError> {
        let mut intake = Intake::new(deliveries);
        let mut known = Known::nothing(intake.groups.len());
        let mut written = Part::default();
        let mut budget = self.budget();
        let mut digester = Digester::default();
        let mut new_rows = Vec::new();
        loop {
            self.load(&intake.groups, &mut known, &mut budget).await?;
            new_rows.clear();
            let quiet = intake.select_all(&known.states, &mut digester, &mut new_rows);
            if intake.doubt(&mut known.states) {
                continue;
            }
            let repeated = intake.repeated();
            if !repeated.is_empty() {
                // What loses between the two is found twice.
                let held = run!(self, &mut budget, Purpose::Write, |connection| {
                    let mut held = found(connection, sql::STORED, &intake, &repeated).await?;
                    held.extend(found(connection, sql::LOST, &intake, &repeated).await?);
                    Ok(held)
                })?;
                let changed = intake.changed(&repeated, &held, self.retention.get());
                let gone_before = match changed.is_empty() {
                    true => GoneBefore::new(),
                    false => run!(self, &mut budget, Purpose::Write, |connection| {
                        gone_before(connection, &intake, &changed).await
                    })?,
                };
                intake.refuse_changed(&changed, &gone_before);
            }
            let progress = self
                .write_all(
                    &mut intake,
                    &mut known,
                    &new_rows,
                    quiet,
                    &mut written,
                    &mut budget,
                )
                .await?;
            if progress == Progress::Done {
                break;
            }
        }
        let Known { states, era } = known;
        let states: Vec<EpochState> = states.into_iter().map(Option::unwrap_or_default).collect();
        let mut counts = written.counts;
        counts.refused += intake.refusals();
        counts.known = intake.readings().saturating_sub(
            counts.inserted + counts.replaced + counts.older + counts.same + counts.refused,
        );
        for delivery in deliveries {
            for rejection in &delivery.rejected {
                counts.refused += rejection.range.count();
            }
        }
        let files: Vec<_> = intake
            .groups
            .iter()
            .map(|group| (group.device.clone(), group.epoch))
            .collect();
        let stored = intake.devices(written.stored);
        let settled = intake.settle(&states);
        for ((device, epoch), state) in files.iter().zip(states) {
            if state.floor != u64::MAX {
                self.cache.put(era, device, *epoch, state);
            }
        }
        Ok(Ingested {
            settled,
            rows: counts,
            stored,
        })
    }
}

impl Cockroach {
    /// Fills in the states that are missing, from the cache or the database. Those of an earlier era are
    /// dropped first. Epochs that were never heard of are entered.
    pub(super) async fn load(
        &self,
        groups: &[Group],
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<(), StoreError> {
        let Known { states, era } = known;
        let now = self.cluster.era();
        if std::mem::replace(era, now) != now {
            states.fill(None);
        }
        let mut missing = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            if states[at].is_some() {
                continue;
            }
            if group.floor == u64::MAX {
                // Nothing of this file is to be read or written.
                states[at] = Some(EpochState::empty(0, u64::MAX));
                continue;
            }
            if !group.rests_on_ledger() {
                states[at] = self
                    .cache
                    .take(now, &group.device, group.epoch, group.floor);
            }
            if states[at].is_none() {
                missing.push(at);
            }
        }
        let is_fresh = states.iter().all(Option::is_none);
        let mut met = false;
        while !missing.is_empty() {
            let (read_in, found) = run!(self, budget, Purpose::Write, |connection| {
                let read_in = self.cluster.era();
                let found = read_known(connection, groups, &missing).await?;
                Ok((read_in, found))
            })?;
            // Where nothing is from before, all is known as of then.
            if is_fresh && !met {
                *era = read_in;
            }
            for (at, state) in found {
                states[at] = Some(state);
            }
            missing.retain(|at| states[*at].is_none());
            if !missing.is_empty() {
                if met {
                    return Err(StoreError::Unreadable {
                        what: "sync_status row, gone right after it was written",
                        source: "is another program deleting rows?".into(),
                    });
                }
                run!(self, budget, Purpose::Write, |connection| {
                    meet(connection, groups, &missing).await
                })?;
                met = true;
            }
        }
        Ok(())
    }

    /// Writes the selected rows part by part. The first `quiet` rows are of files in which no
    /// versions met lately.
    async fn write_all(
        &self,
        intake: &mut Intake<'_>,
        known: &mut Known,
        new_rows: &[NewRow],
        quiet: usize,
        all: &mut Part,
        budget: &mut Budget,
    ) -> Result<Progress, StoreError> {
        let rows_max = self.pace.rows_max();
        // A stack: the first part is on top.
        let mut todo: Vec<Range<usize>> = parts(0..quiet, rows_max)
            .chain(parts(quiet..new_rows.len(), rows_max))
            .collect();
        todo.reverse();
        while let Some(range) = todo.pop() {
            let part = &new_rows[range.clone()];
            let Some(heads) = heads(intake, part, &known.states) else {
                return Ok(Progress::Again);
            };
            let started = Instant::now();
            let plain = range.end <= quiet;
            let written = self.write(intake, &heads, part, plain, known.era).await;
            let failed = match written {
                Ok(Written::Done(done)) => {
                    self.pace.took(part.len(), started.elapsed());
                    self.meters.commits.fetch_add(1, Ordering::Relaxed);
                    budget.progressed();
                    all.counts += done.counts;
                    all.stored.extend(done.stored);
                    for head in heads {
                        let state = &mut known.states[head.group];
                        advance(state, head.spans, &done.contested, head.group);
                    }
                    continue;
                }
                Ok(Written::Moved) => {
                    self.meters.replans.fetch_add(1, Ordering::Relaxed);
                    let groups: Vec<usize> = heads.iter().map(|head| head.group).collect();
                    drop_states(&mut known.states, &groups);
                    // Bounded by the budget: whoever moved the head has made progress.
                    self.pause(budget).await?;
                    return Ok(Progress::Again);
                }
                Err(failed) => failed,
            };
            // One row says nothing about how many are too many.
            let is_too_much = failed.is_too_slow() || failed.verdict == Verdict::TooLarge;
            if is_too_much && part.len() > 1 {
                self.pace.shrink();
            }
            match failed.verdict {
                Verdict::TooLarge if part.len() > 1 => {
                    let middle = range.start + part.len() / 2;
                    todo.push(middle..range.end);
                    todo.push(range.start..middle);
                }
                Verdict::Conflict | Verdict::Taken => {
                    // Nothing was written, and what is known is still true unless the next attempt
                    // says otherwise.
                    self.again(budget, failed).await?;
                    todo.push(range);
                }
                Verdict::TooLarge
                | Verdict::Unknown
                | Verdict::Elsewhere
                | Verdict::Overload
                | Verdict::Refusal
                | Verdict::Refused
                | Verdict::Schema
                | Verdict::Unforeseen => {
                    self.again(budget, failed).await?;
                    // The next connection may be to a database that lacks what this one had, also where this one
                    // ended in a way that moves no era.
                    known.states.fill(None);
                    return Ok(Progress::Again);
                }
            }
        }
        self.write_claims(&intake.groups, known, budget).await
    }

    /// Enters the ranges beside committed ones that no part carried.
    pub(super) async fn write_claims(
        &self,
        groups: &[Group],
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<Progress, StoreError> {
        let Known { states, era } = known;
        let mut heads = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let Some(state) = &states[at] else {
                return Ok(Progress::Again);
            };
            let runs = group.claimed(state);
            if !runs.is_empty() {
                heads.push(Head::new(at, group, state, &runs));
            }
        }
        if heads.is_empty() {
            return Ok(Progress::Done);
        }
        heads.sort_by(Head::by_key);
        let written = self.write_ledger(&heads, *era, budget).await?;
        for head in heads {
            if written {
                advance(&mut states[head.group], head.spans, &[], head.group);
            } else {
                states[head.group] = None;
            }
        }
        Ok(if written {
            Progress::Done
        } else {
            Progress::Again
        })
    }

    /// Enters ranges without rows. Returns `false` when a head had moved.
    async fn write_ledger(
        &self,
        heads: &[Head<'_>],
        era: u64,
        budget: &mut Budget,
    ) -> Result<bool, StoreError> {
        let attempt = attempt!(self, Purpose::Write, |connection, began| {
            if began > era {
                return Ok(0);
            }
            let arguments = ledger_arguments(heads)?.done();
            let done = connection
                .execute(sqlx::query_with(sql::WRITE_LEDGER, arguments))
                .await?;
            Ok(done.rows_affected())
        });
        match attempt {
            Ok(0) => {
                self.meters.replans.fetch_add(1, Ordering::Relaxed);
                self.pause(budget).await?;
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(failed) => {
                self.again(budget, failed).await?;
                Ok(false)
            }
        }
    }

    async fn pause(&self, budget: &mut Budget) -> Result<(), StoreError> {
        budget.again(Failed::moved(&self.cluster.address())).await
    }

    async fn write(
        &self,
        intake: &Intake<'_>,
        heads: &[Head<'_>],
        part: &[NewRow],
        plain: bool,
        era: u64,
    ) -> Result<Written, Failed> {
        // A younger connection may lead to another database than what is known is from.
        if plain {
            let plain = attempt!(self, Purpose::Write, |connection, began| {
                if began > era {
                    return Ok(Written::Moved);
                }
                write_plain(connection, intake, heads, part).await
            });
            match plain {
                Err(failed) if failed.verdict == Verdict::Taken => {}
                other => return other,
            }
        }
        attempt!(self, Purpose::Write, |connection, began| {
            if began > era {
                return Ok(Written::Moved);
            }
            write_compared(connection, intake, heads, part).await
        })
    }
}

fn drop_states(states: &mut [Option<EpochState>], groups: &[usize]) {
    for group in groups {
        states[*group] = None;
    }
}

pub(super) async fn read_known(
    connection: &mut PgConnection,
    groups: &[Group],
    wanted: &[usize],
) -> Result<Vec<(usize, EpochState)>, sqlx::Error> {
    let arguments = Columns::default()
        .array(wanted, |at| groups[*at].device.as_str())?
        .array(wanted, |at| sql_int(groups[*at].epoch.get()))?
        .array(wanted, |at| sql_int(groups[*at].floor))?
        .array(wanted, |at| sql_int(*at as u64))?;
    let found = connection
        .fetch_all(sqlx::query_with(sql::KNOWN, arguments.done()))
        .await?;
    let mut states: Vec<(usize, EpochState)> = Vec::with_capacity(wanted.len());
    for row in &found {
        let at = usize::try_from(rows::number(row, 0)?).unwrap_or(usize::MAX);
        if states.last().is_none_or(|(last, _)| *last != at) {
            let floor = groups.get(at).map_or(1, |group| group.floor);
            states.push((at, EpochState::empty(rows::int(row, 1)?, floor)));
        }
        if let (Some(span), Some((_, state))) = (rows::span(row, 2)?, states.last_mut()) {
            state.put(span);
        }
    }
    Ok(states)
}

async fn meet(
    connection: &mut PgConnection,
    groups: &[Group],
    new: &[usize],
) -> Result<(), sqlx::Error> {
    let arguments = Columns::default()
        .array(new, |at| groups[*at].device.as_str())?
        .array(new, |at| sql_int(groups[*at].epoch.get()))?
        .array(new, |at| Micros(groups[*at].received_at.micros()))?
        .array(new, |at| groups[*at].is_direct)?;
    connection
        .execute(sqlx::query_with(sql::MEET, arguments.done()))
        .await?;
    Ok(())
}

/// The hot path: one statement. Fails with 23505 when a key is taken.
async fn write_plain(
    connection: &mut PgConnection,
    intake: &Intake<'_>,
    heads: &[Head<'_>],
    part: &[NewRow],
) -> Result<Written, sqlx::Error> {
    let shape = shape(intake, part);
    let arguments = row_arguments(ledger_arguments(heads)?, intake, part, shape)?.done();
    let done = connection
        .execute(sqlx::query_with(sql::write(shape), arguments))
        .await?;
    if done.rows_affected() == 0 {
        return Ok(Written::Moved);
    }
    Ok(Written::Done(Part {
        counts: RowCounts {
            inserted: part.len() as u64,
            ..RowCounts::default()
        },
        stored: heads.iter().map(|head| head.group as u32).collect(),
        contested: Vec::new(),
    }))
}

/// The slow path: compares with what is stored, within a transaction.
async fn write_compared(
    connection: &mut PgConnection,
    intake: &Intake<'_>,
    heads: &[Head<'_>],
    part: &[NewRow],
) -> Result<Written, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let moved = transaction
        .execute(sqlx::query_with(
            sql::MOVE_HEADS,
            head_arguments(heads)?.done(),
        ))
        .await?;
    if moved.rows_affected() != heads.len() as u64 {
        transaction.rollback().await?;
        return Ok(Written::Moved);
    }
    let stored = stored(&mut transaction, intake, part).await?;
    let contest = contest::decide(intake, part, stored);
    transaction
        .execute(sqlx::query_with(
            sql::PUT_RANGES,
            range_arguments(Columns::default(), heads)?.done(),
        ))
        .await?;
    if !contest.losers.is_empty() {
        let arguments = conflict_arguments(intake, &contest)?;
        transaction
            .execute(sqlx::query_with(sql::PUT_CONFLICTS, arguments))
            .await?;
        let superseded = contest.superseded(intake);
        let superseded = Columns::default()
            .array(&superseded, |(device, _)| *device)?
            .array(&superseded, |(_, lost)| sql_int(*lost))?;
        transaction
            .execute(sqlx::query_with(sql::SUPERSEDE, superseded.done()))
            .await?;
    }
    if !contest.writes.is_empty() {
        let arguments = row_arguments(Columns::default(), intake, &contest.writes, Shape::WHOLE)?;
        transaction
            .execute(sqlx::query_with(sql::PUT_ROWS, arguments.done()))
            .await?;
    }
    transaction.commit().await?;
    Ok(Written::Done(Part {
        counts: contest.counts,
        stored: contest.stored().collect(),
        contested: contest.contested().collect(),
    }))
}

async fn stored<'a>(
    connection: &mut PgConnection,
    intake: &Intake<'a>,
    part: &[NewRow],
) -> Result<HashMap<contest::Key<'a>, StoredReading>, sqlx::Error> {
    let found = found(connection, sql::STORED, intake, part).await?;
    let found = found.into_iter();
    Ok(found
        .map(|(at, reading)| (contest::key(intake, &part[at]), reading))
        .collect())
}

/// What is under the keys of a part, each with the place of its row there.
async fn found(
    connection: &mut PgConnection,
    sql: &'static str,
    intake: &Intake<'_>,
    part: &[NewRow],
) -> Result<Vec<(usize, StoredReading)>, sqlx::Error> {
    let numbered: Vec<(usize, &NewRow)> = part.iter().enumerate().collect();
    let arguments = Columns::default()
        .array(&numbered, |(_, row)| intake.row(row).0.device.as_str())?
        .array(&numbered, |(_, row)| intake.row(row).1)?
        .array(&numbered, |(_, row)| observed(intake, row))?
        .array(&numbered, |(at, _)| sql_int(*at as u64))?;
    let rows = connection
        .fetch_all(sqlx::query_with(sql, arguments.done()))
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let at = usize::try_from(rows::number(row, 0)?).unwrap_or(usize::MAX);
        let Some(new) = part.get(at) else { continue };
        let (delivery, _, reading) = intake.row(new);
        let sensor = delivery.batch.sensor(reading).clone();
        found.push((at, rows::reading(row, 1, sensor)?));
    }
    Ok(found)
}

/// Before which time rows of these devices are gone.
async fn gone_before(
    connection: &mut PgConnection,
    intake: &Intake<'_>,
    part: &[NewRow],
) -> Result<GoneBefore, sqlx::Error> {
    let devices = Columns::default().array(part, |row| intake.row(row).0.device.as_str())?;
    let found = connection
        .fetch_all(sqlx::query_with(sql::GONE_BEFORE, devices.done()))
        .await?;
    let of = |row: &PgRow| {
        let Micros(before) = row.try_get(1)?;
        Ok((rows::device(row, 0)?, ObservedAt::from_micros(before)))
    };
    found.iter().map(of).collect()
}

pub(super) const fn micros(at: ReceivedAt) -> Micros {
    Micros(at.micros())
}

/// A number for an eight-byte column. What reaches a store was checked to fit.
pub(super) fn sql_int(number: u64) -> i64 {
    debug_assert!(i64::try_from(number).is_ok(), "{number} was not checked");
    i64::try_from(number).unwrap_or(i64::MAX)
}
