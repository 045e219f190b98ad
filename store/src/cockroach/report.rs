//! What devices say beside readings: reports, presence, and payloads that could not be read.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use async_trait::async_trait;
use schema::message::ack::payload_digest;
use schema::message::{EpochAccount, Status};
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, RangeSet};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::absent::{is_whole, named};
use super::super::contract::ReportStore;
use super::super::ledger::Group;
use super::super::ledger::claims::{
    Agents, Interpretation, given_up, group, has_quarantine, interpret, of_doubt, settled_by_report,
};
use super::super::quota::{self, Aside, Rooms, Taken};
use super::super::skew::{self, Said};
use super::super::sql::{Access, Database as _};
use super::super::{
    DEAD_LETTER_BYTES_MAX, DeadLetter, DeviceReport, Presence, ReportsSettled, StoreError,
};
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::failed::Budget;
use super::heads::Known;
use super::ingest::{Progress, micros, sql_int};
use super::port::{Statements, ended};
use super::{Cockroach, rows, sql};

#[async_trait]
impl ReportStore for Cockroach {
    /// Ranges first, totals second: what a device says it does not hold any more is then in the
    /// ledger before the database believes it.
    async fn report(&self, reports: &[DeviceReport]) -> Result<ReportsSettled, StoreError> {
        let mut budget = self.budget();
        let mut due = self.absent.due(reports);
        let agents = self.agents(&of_doubt(reports, &due), &mut budget).await?;
        due.retain(|report| is_whole(report, &agents));
        let interpretations = interpret(reports, &agents);
        let (groups, places) = group(reports, &interpretations);
        let Known { states, era } = self.enter(&groups, &mut budget).await?;
        // Of one that does not know its bridge yet, the next report tells more.
        let said = reports.iter().zip(&interpretations);
        let said = said.filter(|(_, interpretation)| **interpretation != Interpretation::Guarded);
        let clocks: Vec<Said> = said.clone().map(|(report, _)| Said::of(report)).collect();
        let totals: Vec<Total<'_>> = said.flat_map(|(report, _)| totals(report)).collect();
        let mut stored = false;
        for wave in waves(&totals, |total| (total.device, total.of.epoch)) {
            let done = run!(self, &mut budget, Purpose::Write, |connection| {
                let arguments = total_arguments(&wave)?.done();
                connection
                    .execute(sqlx::query_with(sql::PUT_REPORTS, arguments))
                    .await
            })?;
            stored |= done.rows_affected() > 0;
        }
        self.run(Access::Transaction, clocks, |port, clocks| {
            Box::pin(skew::note(port, clocks))
        })
        .await?;
        self.forget_absent(&due, &mut budget).await?;
        let settled = settled_by_report(reports, &places, &states);
        for (group, state) in groups.iter().zip(states) {
            if let Some(state) = state {
                self.cache.put(era, &group.device, group.epoch, state);
            }
        }
        Ok(ReportsSettled { settled, stored })
    }

    async fn discard(
        &self,
        device: &DeviceId,
        lost: &[(Epoch, RangeSet)],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let groups = given_up(device, lost, now);
        let Known { states, era } = self.enter(&groups, &mut self.budget()).await?;
        for (group, state) in groups.iter().zip(states) {
            if let Some(state) = state {
                self.cache.put(era, &group.device, group.epoch, state);
            }
        }
        Ok(())
    }

    async fn presence(&self, changes: &[Presence]) -> Result<(), StoreError> {
        let mut budget = self.budget();
        for wave in waves(changes, |change| &change.device) {
            run!(self, &mut budget, Purpose::Write, |connection| {
                let arguments = presence_arguments(&wave)?.done();
                connection
                    .execute(sqlx::query_with(sql::PUT_PRESENCE, arguments))
                    .await
            })?;
        }
        Ok(())
    }

    async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let mut kept: Vec<Letter<'_>> = Vec::with_capacity(letters.len());
        let mut seen: HashMap<(&str, u64), usize> = HashMap::new();
        for letter in letters {
            let digest = payload_digest(&letter.payload);
            let device = letter.device.as_ref().map_or("", DeviceId::as_str);
            let at = *seen.entry((device, digest)).or_insert_with(|| {
                kept.push(Letter::new(letter, device, digest));
                kept.len() - 1
            });
            kept[at].times += 1;
            kept[at].received_at = kept[at].received_at.max(letter.received_at);
        }
        for some in kept.chunks(LETTERS_MAX) {
            self.sum_up(Aside::DeadLetters).await;
            let taken = run!(self, &mut self.budget(), Purpose::Write, |connection| {
                let mut transaction = connection.begin().await?;
                let taken = keep_letters(&mut transaction, some, &self.rooms).await?;
                transaction.commit().await?;
                Ok(taken)
            })?;
            self.rooms.took(Aside::DeadLetters, &taken);
        }
        Ok(())
    }
}

impl Cockroach {
    /// What devices said of epochs that they do not name any more.
    async fn forget_absent(
        &self,
        due: &[&DeviceReport],
        budget: &mut Budget,
    ) -> Result<(), StoreError> {
        if due.is_empty() {
            return Ok(());
        }
        let named: Vec<(&DeviceId, Epoch)> = due
            .iter()
            .flat_map(|report| {
                named(report)
                    .into_iter()
                    .map(|epoch| (&report.device, epoch))
            })
            .collect();
        run!(self, budget, Purpose::Write, |connection| {
            let arguments = Columns::default()
                .array(due, |report| report.device.as_str())?
                .array(due, |report| micros(report.received_at))?
                .array(&named, |(device, _)| device.as_str())?
                .array(&named, |(_, epoch)| sql_int(epoch.get()))?;
            connection
                .execute(sqlx::query_with(sql::FORGET_ABSENT, arguments.done()))
                .await
        })?;
        self.absent.looked(due);
        Ok(())
    }

    /// Of some devices, whether their agents have a quarantine.
    async fn agents(
        &self,
        devices: &[&DeviceId],
        budget: &mut Budget,
    ) -> Result<Agents, StoreError> {
        if devices.is_empty() {
            return Ok(Agents::new());
        }
        run!(self, budget, Purpose::Write, |connection| {
            let wanted = Columns::default().array(devices, |device| device.as_str())?;
            let found = connection
                .fetch_all(sqlx::query_with(sql::AGENTS, wanted.done()))
                .await?;
            let of = |row| Ok((rows::device(row, 0)?, has_quarantine(row.try_get(1)?)));
            found.iter().map(of).collect()
        })
    }

    /// Enters what groups claim. Returns what is known of them then.
    async fn enter(&self, groups: &[Group], budget: &mut Budget) -> Result<Known, StoreError> {
        let mut known = Known::nothing(groups.len());
        loop {
            self.load(groups, &mut known, budget).await?;
            let written = self.write_claims(groups, &mut known, budget);
            if written.await? == Progress::Done {
                return Ok(known);
            }
        }
    }
}

/// Keeps letters as far as there is room for them. Those that are there already take none.
async fn keep_letters(
    transaction: &mut PgConnection,
    letters: &[Letter<'_>],
    rooms: &Rooms,
) -> Result<Taken, sqlx::Error> {
    let places: Vec<i64> = (0..letters.len()).map(|at| sql_int(at as u64)).collect();
    let arguments = Columns::default()
        .array(letters, |of| of.device)?
        .array(letters, |of| of.digest.cast_signed())?
        .array(&places, |at| *at)?;
    let found = transaction
        .fetch_all(sqlx::query_with(sql::KNOWN_LETTERS, arguments.done()))
        .await?;
    let mut is_known = vec![false; letters.len()];
    for row in &found {
        let at = usize::try_from(rows::number(row, 0)?).unwrap_or(usize::MAX);
        if let Some(is_known) = is_known.get_mut(at) {
            *is_known = true;
        }
    }
    let both = letters.iter().zip(is_known);
    let (known, new): (Vec<_>, Vec<_>) = both.partition(|(_, is_known)| *is_known);
    let mut kept: Vec<&Letter<'_>> = known.into_iter().map(|(letter, _)| letter).collect();
    let new: Vec<&Letter<'_>> = new.into_iter().map(|(letter, _)| letter).collect();
    let mut taken = Taken::default();
    if let Some(now) = new.iter().map(|letter| letter.received_at).max() {
        let pieces = new.iter().map(|of| (of.device, of.letter.kept_bytes()));
        let pieces: Vec<(&str, u64)> = pieces.collect();
        let mut port = Statements::within(transaction);
        let done = quota::take(&mut port, rooms, Aside::DeadLetters, &pieces, now).await;
        taken = done.map_err(ended)?;
        kept.extend(taken.split(&new).0);
    }
    if !kept.is_empty() {
        kept.sort_by_key(|letter| (letter.device, letter.digest));
        let arguments = letter_arguments(&kept)?.done();
        transaction
            .execute(sqlx::query_with(sql::PUT_DEAD_LETTERS, arguments))
            .await?;
    }
    Ok(taken)
}

/// Most dead letters in one statement: 8 MiB of payloads.
const LETTERS_MAX: usize = 128;

struct Total<'a> {
    device: &'a DeviceId,
    of: &'a EpochAccount,
    device_time_ms: i64,
    received_at: ReceivedAt,
}

fn totals(report: &DeviceReport) -> impl Iterator<Item = Total<'_>> {
    report.report.epochs.iter().map(|of| Total {
        device: &report.device,
        of,
        device_time_ms: report.report.device_time_ms,
        received_at: report.received_at,
    })
}

fn total_arguments(totals: &[&Total<'_>]) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .array(totals, |total| total.device.as_str())?
        .array(totals, |total| sql_int(total.of.epoch.get()))?
        .array(totals, |total| micros(total.received_at))?
        .array(totals, |total| total.device_time_ms)?
        .array(totals, |total| capped(total.of.balance.accepted))?
        .array(totals, |total| capped(total.of.balance.committed))?
        .array(totals, |total| capped(total.of.balance.pending))?
        .array(totals, |total| capped(total.of.balance.evicted))?
        .array(totals, |total| capped(total.of.balance.quarantined))?
        .array(totals, |total| capped(total.of.balance.discarded))
}

/// A device may report any number; SQL holds 63 bits.
fn capped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn presence_arguments(changes: &[&Presence]) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .array(changes, |change| change.device.as_str())?
        .array(changes, |change| micros(change.received_at))?
        .array(changes, |change| match change.status {
            Status::Online { .. } => true,
            Status::Offline { .. } => false,
        })?
        .array(changes, |change| match change.status {
            Status::Online { session, .. } | Status::Offline { session } => session.cast_signed(),
        })?
        .array_of_options(changes, |change| match change.status {
            Status::Online { epoch, .. } => Some(sql_int(epoch.get())),
            Status::Offline { .. } => None,
        })?
        .array_of_options(changes, |change| match &change.status {
            Status::Online { agent_version, .. } => Some(agent_version.as_str()),
            Status::Offline { .. } => None,
        })
}

struct Letter<'a> {
    device: &'a str,
    digest: u64,
    letter: &'a DeadLetter,
    times: u64,
    received_at: ReceivedAt,
}

impl<'a> Letter<'a> {
    fn new(letter: &'a DeadLetter, device: &'a str, digest: u64) -> Self {
        Self {
            device,
            digest,
            letter,
            times: 0,
            received_at: letter.received_at,
        }
    }
}

fn letter_arguments(letters: &[&Letter<'_>]) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .array(letters, |kept| kept.device)?
        .array(letters, |kept| kept.digest.cast_signed())?
        .array(letters, |kept| kept.letter.topic.as_str())?
        .array(letters, |kept| {
            let payload: &[u8] = &kept.letter.payload;
            &payload[..payload.len().min(DEAD_LETTER_BYTES_MAX)]
        })?
        .array(letters, |kept| sql_int(kept.letter.payload.len() as u64))?
        .array(letters, |kept| kept.letter.reason.as_str())?
        .array(letters, |kept| sql_int(kept.times))?
        .array(letters, |kept| Micros(kept.received_at.micros()))
}

/// Cuts `items` so that no key is twice in one part and each key's items stay in order: one
/// statement may not touch a row twice.
fn waves<'a, T, K: Hash + Eq>(items: &'a [T], key: impl Fn(&'a T) -> K) -> Vec<Vec<&'a T>> {
    let mut waves: Vec<Vec<&'a T>> = Vec::new();
    let mut seen: HashSet<K> = HashSet::new();
    for item in items {
        if !seen.insert(key(item)) || waves.is_empty() {
            seen.clear();
            seen.insert(key(item));
            waves.push(Vec::new());
        }
        if let Some(wave) = waves.last_mut() {
            wave.push(item);
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_hold_each_key_once_and_keep_its_order() {
        let waves = waves(&[1, 2, 1, 3, 3, 2], |item| *item);
        assert_eq!(waves, [vec![&1, &2], vec![&1, &3], vec![&3, &2]]);
        assert!(super::waves(&[] as &[u8], |item| *item).is_empty());
    }
}
