//! Telemetry in: load what the ledger knows, select what is new, look whether late rows meet others, write, learn,
//! repeat for what is left.
//!
//! ```text
//!        ┌──────────────────────── some states dropped ◄──────────────┐
//!        ▼                                                             │
//! load missing states ─► select ─► look ─► for each part: write ───────┤ moved, unknown, elsewhere
//!                                    ▲        │  │                     │
//!                                    │        │  └ too large: halve    │
//!                                    └ a key is taken: split by file   │
//!                                             ▼                        │
//!                                       put states ─► … ─► settle
//! ```
//!
//! Files of which rows meet others are written in parts of their own, and so are those that another bridge has moved,
//! alone where it does so again: who repeats, or is served twice, is in nobody else's way.
//!
//! A part whose commit is unknown is not written again blindly: its states are dropped, and the
//! ledger tells whether it was. What the database refuses ends the call, and is whoever's who asked.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use schema::ObservedAt;
use schema::digest::Digester;
use schema::time::ReceivedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};

use super::super::contract::IngestStore;
use super::super::ledger::plan::{Gone, Intake, NewRow, parts};
use super::super::ledger::{EpochState, Group, contest, late};
use super::super::quota::Aside;
use super::super::sqlstate::Verdict;
use super::super::{Delivery, Ingested, StoreError};
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::failed::{Budget, Failed};
use super::found::{Met, found, gone};
use super::heads::{Head, Known, advance, heads};
use super::query::TO_MAX;
use super::write::{Part, Written, begin, write_compared, write_heads, write_plain};
use super::{Cockroach, rows, sql};

/// So often in a row a key is taken that was free a moment ago: the first few are races, with retention, too, when nothing
/// is found under the keys; beyond the last it is no race, but another key.
const RACES_QUICK: u32 = 3;
const RACES_MAX: u32 = 64;

/// Rows of a part that is not made smaller for races.
const RACING_ROWS_MIN: usize = 50;

/// How far the parts of a plan were written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    /// Some states were dropped: load them and plan again.
    Again,
}

/// One call.
#[derive(Debug)]
struct Call<'a> {
    intake: Intake<'a>,
    known: Known,
    met: Met<'a>,
    /// The versions of files that a write built on, one of which had moved.
    doubted: Vec<(usize, i64)>,
    /// How often others have moved a file's head under this call, by group.
    moved: HashMap<u32, u32>,
    written: Part,
    budget: Budget,
}

#[async_trait]
impl IngestStore for Cockroach {
    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError> {
        let intake = Intake::new(deliveries);
        let mut call = Call {
            known: Known::nothing(intake.groups.len()),
            intake,
            met: Met::new(),
            doubted: Vec::new(),
            moved: HashMap::new(),
            written: Part::default(),
            budget: self.budget(),
        };
        let mut digester = Digester::default();
        loop {
            let Call {
                intake,
                known,
                budget,
                ..
            } = &mut call;
            self.load(&intake.groups, known, budget).await?;
            let mut new_rows = Vec::new();
            intake.select_all(&known.states, &mut digester, &mut new_rows);
            if intake.doubt(&mut known.states) {
                continue;
            }
            let repeated = intake.repeated();
            if !repeated.is_empty() {
                // What loses between the two is found twice.
                let held = run!(self, budget, Purpose::Write, |connection| {
                    let mut held = found(connection, sql::STORED, intake, &repeated).await?;
                    held.extend(found(connection, sql::LOST, intake, &repeated).await?);
                    Ok(held)
                })?;
                let changed = intake.changed(&repeated, &held, self.retention.get());
                let gone = match changed.is_empty() {
                    true => Gone::default(),
                    false => run!(self, budget, Purpose::Write, |connection| {
                        gone(connection, intake, &changed).await
                    })?,
                };
                intake.refuse_changed(&changed, &gone);
            }
            call.learn_moves();
            call.met.clear();
            let suspects = late::suspects(&call.intake, &mut new_rows, &call.known.states);
            if self.look_for(&mut call, &mut new_rows, &suspects).await? == Progress::Done
                && self.write_all(&mut call, new_rows).await? == Progress::Done
            {
                break;
            }
        }
        let Call {
            intake,
            known: Known { states, era },
            written,
            ..
        } = call;
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
                    let mut transaction = begin(connection, &self.dialect).await?;
                    meet(&mut transaction, groups, &missing).await?;
                    transaction.commit().await
                })?;
                met = true;
            }
        }
        Ok(())
    }

    /// Looks what is stored under the keys of some rows, each named by its place.
    async fn look_for(
        &self,
        call: &mut Call<'_>,
        rows: &mut [NewRow],
        places: &[usize],
    ) -> Result<Progress, StoreError> {
        let rows_max = self.pace.rows_max();
        for places in places.chunks(rows_max) {
            let wanted: Vec<NewRow> = places.iter().map(|at| rows[*at]).collect();
            let intake = &call.intake;
            let held = run!(self, &mut call.budget, Purpose::Write, |connection| {
                let mut transaction = begin(connection, &self.dialect).await?;
                let held = found(&mut transaction, sql::STORED, intake, &wanted).await?;
                transaction.commit().await?;
                Ok(held)
            })?;
            let mut looks: HashMap<u32, (usize, usize)> = HashMap::new();
            for row in &wanted {
                call.met.remove(&contest::key(intake, row));
                looks.entry(row.group).or_default().0 += 1;
            }
            for (at, reading) in held {
                looks.entry(wanted[at].group).or_default().1 += 1;
                call.met.insert(contest::key(intake, &wanted[at]), reading);
                rows[places[at]].is_compared = true;
            }
            for (group, (looked, found)) in looks {
                if let Some(state) = &mut call.known.states[group as usize] {
                    late::looked(state, looked, found);
                }
            }
        }
        if places.is_empty() || self.cluster.era() == call.known.era {
            return Ok(Progress::Done);
        }
        // Another connection may have answered than those that what is known is from. Where each connection is a new one,
        // this ends with the budget.
        self.pause(&mut call.budget).await?;
        Ok(Progress::Again)
    }

    /// After a key was found taken: looks at all keys of a part. Nothing of it was written, and what is known of the
    /// ledger is true still.
    async fn look_at_all(
        &self,
        call: &mut Call<'_>,
        part: &mut [NewRow],
    ) -> Result<Progress, StoreError> {
        late::mark_twins(&call.intake, part);
        let all: Vec<usize> = (0..part.len()).collect();
        self.look_for(call, part, &all).await
    }

    /// Writes the selected rows part by part.
    async fn write_all(
        &self,
        call: &mut Call<'_>,
        new_rows: Vec<NewRow>,
    ) -> Result<Progress, StoreError> {
        let mut races = 0;
        if new_rows.iter().any(|row| row.is_compared) {
            self.sum_up(Aside::Conflicts).await;
        }
        // A stack: the first part is on top.
        let mut todo = call.parts(&new_rows, self.pace.rows_max());
        while let Some(mut part) = todo.pop() {
            let Some(heads) = heads(&call.intake, &part, &call.known.states) else {
                return Ok(Progress::Again);
            };
            let started = Instant::now();
            let failed = match self.write(call, &heads, &part).await {
                Ok(Written::Done(done)) => {
                    self.pace.took(part.len(), started.elapsed());
                    self.meters.commits.fetch_add(1, Ordering::Relaxed);
                    call.budget.progressed();
                    races = 0;
                    call.written.counts += done.counts;
                    call.written.stored.extend(done.stored);
                    for head in heads {
                        let state = &mut call.known.states[head.group];
                        advance(state, head.spans);
                        if let Some(state) = state {
                            state.contested = done.contested.contains(&(head.group as u32));
                        }
                    }
                    continue;
                }
                Ok(Written::Moved) => {
                    self.meters.replans.fetch_add(1, Ordering::Relaxed);
                    call.doubted = heads.iter().map(|h| (h.group, h.version)).collect();
                    for (group, _) in &call.doubted {
                        call.known.states[*group] = None;
                    }
                    // Bounded by the budget: whoever moved the head has made progress.
                    self.pause(&mut call.budget).await?;
                    return Ok(Progress::Again);
                }
                Ok(Written::Changed) => {
                    self.pause(&mut call.budget).await?;
                    None
                }
                Err(failed) => Some(failed),
            };
            let is_taken = |failed: &Failed| failed.verdict == Verdict::Taken;
            if failed.as_ref().is_none_or(is_taken) {
                races += 1;
                let looked = self.look_at_all(call, &mut part).await?;
                let is_explained = part.iter().any(|row| row.is_compared);
                let patience = if is_explained { RACES_MAX } else { RACES_QUICK };
                match failed {
                    // Another key than that of readings: a refusal like others.
                    Some(taken) if races > patience => {
                        self.again(&mut call.budget, taken).await?;
                    }
                    // Somebody writes the same keys beside us, or just has.
                    _ if races > RACES_QUICK || !is_explained => {
                        self.pause(&mut call.budget).await?;
                    }
                    _ => {}
                }
                self.meters.conflict.fetch_add(1, Ordering::Relaxed);
                if looked == Progress::Again {
                    return Ok(Progress::Again);
                }
                // A smaller part is written before others have written more of its keys.
                let rows_max = self.pace.rows_max() >> races.min(RACES_QUICK * 2);
                todo.extend(call.parts(&part, rows_max.max(RACING_ROWS_MIN)));
                continue;
            }
            let Some(failed) = failed else { continue };
            if failed.has_no_partition() {
                self.make_room(&call.intake, &part, failed, &mut call.budget)
                    .await?;
                todo.push(part);
                continue;
            }
            // One row says nothing about how many are too many.
            let is_too_much = failed.is_too_slow() || failed.verdict == Verdict::TooLarge;
            if is_too_much && part.len() > 1 {
                self.pace.shrink();
            }
            match failed.verdict {
                Verdict::TooLarge if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    todo.push(second);
                    todo.push(part);
                }
                Verdict::Conflict => {
                    // Nothing was written, and what is known is still true unless the next attempt
                    // says otherwise.
                    self.again(&mut call.budget, failed).await?;
                    // What is in the way of one file is not in that of the others, which are written first.
                    let second = part.split_off(middle(&part));
                    let parts = [part, second].into_iter();
                    drop(todo.splice(0..0, parts.filter(|part| !part.is_empty())));
                }
                Verdict::TooLarge
                | Verdict::Taken
                | Verdict::Unknown
                | Verdict::Elsewhere
                | Verdict::Overload
                | Verdict::Refusal
                | Verdict::Refused
                | Verdict::Schema
                | Verdict::Unforeseen => {
                    self.again(&mut call.budget, failed).await?;
                    // The next connection may be to a database that lacks what this one had, also where this one
                    // ended in a way that moves no era.
                    call.known.states.fill(None);
                    return Ok(Progress::Again);
                }
            }
        }
        let groups = &call.intake.groups;
        self.write_claims(groups, &mut call.known, &mut call.budget)
            .await
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
                advance(&mut states[head.group], head.spans);
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
                return Ok(false);
            }
            write_heads(connection, &self.dialect, heads).await
        });
        match attempt {
            Ok(false) => {
                self.meters.replans.fetch_add(1, Ordering::Relaxed);
                self.pause(budget).await?;
                Ok(false)
            }
            Ok(true) => Ok(true),
            Err(failed) => {
                self.again(budget, failed).await?;
                Ok(false)
            }
        }
    }

    pub(super) async fn pause(&self, budget: &mut Budget) -> Result<(), StoreError> {
        budget.again(Failed::moved(&self.cluster.address())).await
    }

    async fn write(
        &self,
        call: &Call<'_>,
        heads: &[Head<'_>],
        part: &[NewRow],
    ) -> Result<Written, Failed> {
        let Call {
            intake, known, met, ..
        } = call;
        let is_plain = !part.iter().any(|row| row.is_compared);
        let rooms = &self.rooms;
        attempt!(self, Purpose::Write, |connection, began| {
            // A younger connection may lead to another database than what is known is from.
            if began > known.era {
                return Ok(Written::Moved);
            }
            match is_plain {
                true => write_plain(connection, &self.dialect, intake, heads, part).await,
                false => {
                    let part = (heads, part);
                    write_compared(connection, &self.dialect, intake, part, met, rooms).await
                }
            }
        })
    }
}

impl Call<'_> {
    /// Which of the files whose heads were doubted others have moved, now that they were read again.
    fn learn_moves(&mut self) {
        for (group, version) in std::mem::take(&mut self.doubted) {
            let now = self.known.states[group].as_ref();
            if now.is_some_and(|state| state.version != version) {
                *self.moved.entry(group as u32).or_default() += 1;
            }
        }
    }

    /// Cuts rows into parts of at most `rows_max`, as a stack. First those of files of which nothing is in the way; then
    /// those of which rows meet others, and of which others have moved the head; those again and again, each by itself.
    fn parts(&self, rows: &[NewRow], rows_max: usize) -> Vec<Vec<NewRow>> {
        let (mut free, mut compared, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        let mut alone: Vec<&[NewRow]> = Vec::new();
        for file in rows.chunk_by(|a, b| a.group == b.group) {
            match self.moved.get(&file[0].group) {
                None if file.iter().any(|row| row.is_compared) => compared.extend_from_slice(file),
                None => free.extend_from_slice(file),
                Some(1) => moved.extend_from_slice(file),
                Some(_) => alone.push(file),
            }
        }
        let together = [&free[..], &compared, &moved].into_iter();
        let cut = |rows: &[NewRow]| -> Vec<Vec<NewRow>> {
            let ranges = parts(0..rows.len(), rows_max);
            ranges.map(|range| rows[range].to_vec()).collect()
        };
        let mut stack: Vec<Vec<NewRow>> = together.chain(alone).flat_map(cut).collect();
        stack.reverse();
        stack
    }
}

/// Where a part is cut between two files, as near to its middle as can be; its end, where there is one file.
fn middle(part: &[NewRow]) -> usize {
    let borders = (1..part.len()).filter(|at| part[at - 1].group != part[*at].group);
    let middle = borders.min_by_key(|border| border.abs_diff(part.len() / 2));
    middle.unwrap_or(part.len())
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
            let mut state = EpochState::empty(rows::int(row, 1)?, floor);
            state.marked_before = marked_before(row, 12)?;
            states.push((at, state));
        }
        if let (Some(span), Some((_, state))) = (rows::span(row, 2)?, states.last_mut()) {
            state.put(span);
        }
    }
    Ok(states)
}

/// Before which time the rows of a file are marked, from two columns: whether its device has rollups, and until when.
fn marked_before(row: &PgRow, at: usize) -> Result<Option<ObservedAt>, sqlx::Error> {
    let until: Option<Micros> = row.try_get(at + 1)?;
    let until = until.map_or(TO_MAX, |until| ObservedAt::from_micros(until.0));
    Ok(row.try_get::<bool, _>(at)?.then_some(until))
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

pub(super) const fn micros(at: ReceivedAt) -> Micros {
    Micros(at.micros())
}

/// A number for an eight-byte column. What reaches a store was checked to fit.
pub(super) fn sql_int(number: u64) -> i64 {
    debug_assert!(i64::try_from(number).is_ok(), "{number} was not checked");
    i64::try_from(number).unwrap_or(i64::MAX)
}
