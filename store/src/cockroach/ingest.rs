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

use schema::digest::Digester;
use schema::time::ReceivedAt;
use schema::{ObservedAt, Quality, Value};
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::contest::{self, Contest};
use super::super::ledger::{EpochState, Span};
use super::super::plan::{GoneBefore, Group, Intake, NewRow, grow, parts};
use super::super::sqlstate::Verdict;
use super::super::{Delivery, Ingested, RowCounts, StoreError, StoredReading};
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::failed::{Budget, Failed};
use super::sql::Shape;
use super::{Cockroach, rows, sql};

/// The next state of one buffer file's ledger, not yet committed.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) group: usize,
    pub(super) of: &'a Group,
    pub(super) version: i64,
    pub(super) mergeable: bool,
    pub(super) spans: Vec<Span>,
}

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

/// What is known of epochs, and in which era of the connections all of it was learnt, or later.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) states: Vec<Option<EpochState>>,
    pub(super) era: u64,
}

impl Known {
    /// Nothing yet, of so many epochs.
    pub(super) fn nothing(epochs: usize) -> Self {
        Self {
            states: vec![None; epochs],
            era: 0,
        }
    }
}

impl Cockroach {
    pub(super) async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError> {
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

/// The heads that a part moves, or `None` when a state is missing.
fn heads<'a>(
    intake: &'a Intake<'_>,
    part: &[NewRow],
    states: &[Option<EpochState>],
) -> Option<Vec<Head<'a>>> {
    let mut heads = Vec::new();
    for (group, mut runs) in intake.runs(part) {
        let of = &intake.groups[group];
        let state = states[group].as_ref()?;
        runs.extend(of.claimed(state));
        heads.push(Head::new(group, of, state, &runs));
    }
    // All writers lock rows in one order.
    heads.sort_by(Head::by_key);
    Some(heads)
}

impl<'a> Head<'a> {
    pub(super) fn new(
        group: usize,
        of: &'a Group,
        state: &EpochState,
        runs: &[super::super::ledger::Run],
    ) -> Self {
        let (spans, mergeable) = grow(state, runs, of.received_at);
        Self {
            group,
            of,
            version: state.version,
            mergeable,
            spans,
        }
    }

    fn by_key(a: &Self, b: &Self) -> std::cmp::Ordering {
        (&a.of.device, a.of.epoch).cmp(&(&b.of.device, b.of.epoch))
    }
}

/// What is known after a commit.
pub(super) fn advance(
    state: &mut Option<EpochState>,
    spans: Vec<Span>,
    contested: &[u32],
    group: usize,
) {
    if let Some(state) = state {
        state.version += 1;
        state.is_remembered = false;
        state.contested = contested.iter().any(|other| *other as usize == group);
        for span in spans {
            state.put(span);
        }
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

fn head_arguments(heads: &[Head<'_>]) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .array(heads, |head| head.of.device.as_str())?
        .array(heads, |head| sql_int(head.of.epoch.get()))?
        .array(heads, |head| head.version)?
        .array(heads, |head| Micros(head.of.received_at.micros()))?
        .array(heads, |head| head.mergeable)
}

fn ledger_arguments(heads: &[Head<'_>]) -> Result<Columns, sqlx::Error> {
    let number = sql_int(heads.len() as u64);
    range_arguments(head_arguments(heads)?.one(number)?, heads)
}

pub(super) fn range_arguments(
    columns: Columns,
    heads: &[Head<'_>],
) -> Result<Columns, sqlx::Error> {
    let mut spans: Vec<(&Group, &Span)> = Vec::with_capacity(heads.len());
    for head in heads {
        spans.extend(head.spans.iter().map(|span| (head.of, span)));
    }
    span_arguments(columns, &spans)
}

pub(super) fn span_arguments(
    columns: Columns,
    spans: &[(&Group, &Span)],
) -> Result<Columns, sqlx::Error> {
    columns
        .array(spans, |(of, _)| of.device.as_str())?
        .array(spans, |(of, _)| sql_int(of.epoch.get()))?
        .array(spans, |(_, span)| sql_int(span.range.first()))?
        .array(spans, |(_, span)| span.kind.track().as_str())?
        .array(spans, |(_, span)| sql_int(span.range.last()))?
        .array(spans, |(_, span)| span.digest.cast_signed())?
        .array_of_options(spans, |(_, span)| {
            Some(sql_int(span.extent?.hlc_max.bits()))
        })?
        .array_of_options(spans, |(_, span)| {
            Some(Micros(span.extent?.observed_min.micros()))
        })?
        .array_of_options(spans, |(_, span)| {
            Some(Micros(span.extent?.observed_max.micros()))
        })?
        .array_of_options(spans, |(_, span)| rows::reason_text(span.kind.reason()))?
        .array(spans, |(_, span)| micros(span.recorded_at))?
        .array_of_options(spans, |(_, span)| span.kind.discarder())
}

/// Which columns the rows need.
fn shape(intake: &Intake<'_>, part: &[NewRow]) -> Shape {
    part.iter().fold(Shape::default(), |shape, row| {
        let (_, _, reading) = intake.row(row);
        let shape = match reading.value {
            Value::F64(_) => shape.with(Shape::F64),
            Value::I64(_) => shape.with(Shape::I64),
            Value::Bool(_) => shape.with(Shape::BOOL),
            Value::Text(_) => shape.with(Shape::TEXT),
        };
        match reading.quality {
            Quality::Good => shape,
            Quality::Uncertain | Quality::Bad => shape.with(Shape::QUALITY),
        }
    })
}

fn row_arguments(
    columns: Columns,
    intake: &Intake<'_>,
    part: &[NewRow],
    shape: Shape,
) -> Result<Columns, sqlx::Error> {
    let mut columns = columns
        .array(part, |row| intake.row(row).0.device.as_str())?
        .array(part, |row| intake.row(row).1)?
        .array(part, |row| observed(intake, row))?;
    if shape.has(Shape::F64) {
        columns = columns.array_of_options(part, |row| float(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::I64) {
        columns = columns.array_of_options(part, |row| whole_number(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::BOOL) {
        columns = columns.array_of_options(part, |row| truth(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::TEXT) {
        columns = columns.array_of_options(part, |row| text(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::QUALITY) {
        columns = columns.array(part, |row| grade(intake.row(row).2.quality))?;
    }
    columns
        .array(part, |row| sql_int(intake.row(row).2.hlc.bits()))?
        .array(part, |row| sql_int(intake.row(row).0.batch.epoch.get()))?
        .array(part, |row| sql_int(row.seq))?
        .array(part, |row| micros(intake.row(row).0.received_at))
}

fn conflict_arguments(intake: &Intake<'_>, contest: &Contest) -> Result<PgArguments, sqlx::Error> {
    let losers: Vec<_> = contest.losers.iter().map(|l| l.reading(intake)).collect();
    let losers = losers.as_slice();
    Ok(Columns::default()
        .array(losers, |lost| lost.device)?
        .array(losers, |lost| lost.sensor)?
        .array(losers, |lost| Micros(lost.observed_at.micros()))?
        .array_of_options(losers, |lost| float(lost.value))?
        .array_of_options(losers, |lost| whole_number(lost.value))?
        .array_of_options(losers, |lost| truth(lost.value))?
        .array_of_options(losers, |lost| text(lost.value))?
        .array(losers, |lost| grade(lost.quality))?
        .array(losers, |lost| sql_int(lost.version.hlc.bits()))?
        .array(losers, |lost| sql_int(lost.version.epoch.get()))?
        .array(losers, |lost| sql_int(lost.version.seq))?
        .array(losers, |lost| micros(lost.received_at))?
        .array(losers, |lost| sql_int(lost.winner.hlc.bits()))?
        .array(losers, |lost| sql_int(lost.winner.epoch.get()))?
        .array(losers, |lost| sql_int(lost.winner.seq))?
        .array(losers, |lost| micros(lost.recorded_at))?
        .array(losers, |lost| lost.is_same)?
        .done())
}

fn observed(intake: &Intake<'_>, row: &NewRow) -> Micros {
    Micros(intake.row(row).2.observed_at.micros())
}

pub(super) const fn micros(at: ReceivedAt) -> Micros {
    Micros(at.micros())
}

const fn float(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        Value::I64(_) | Value::Bool(_) | Value::Text(_) => None,
    }
}

const fn whole_number(value: &Value) -> Option<i64> {
    match value {
        Value::I64(number) => Some(*number),
        Value::F64(_) | Value::Bool(_) | Value::Text(_) => None,
    }
}

const fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::F64(_) | Value::I64(_) | Value::Text(_) => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::F64(_) | Value::I64(_) | Value::Bool(_) => None,
    }
}

fn grade(quality: Quality) -> i16 {
    i16::from(u8::from(quality))
}

/// A number for an eight-byte column. What reaches a store was checked to fit.
pub(super) fn sql_int(number: u64) -> i64 {
    debug_assert!(i64::try_from(number).is_ok(), "{number} was not checked");
    i64::try_from(number).unwrap_or(i64::MAX)
}
