//! What devices say beside readings: reports, presence, and payloads that could not be read.

use std::collections::HashSet;

use libsql::Value as Cell;
use schema::message::Status;
use schema::message::ack::payload_digest;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, RangeSet};

use super::super::absent::{is_whole, named};
use super::super::ledger::EpochState;
use super::super::ledger::Group;
use super::super::ledger::claims::{
    Agents, Interpretation, given_up, group, has_quarantine, interpret, of_doubt, settled_by_report,
};
use super::super::quota::{self, Aside, Rooms, Taken};
use super::super::skew::{self, Said};
use super::super::{
    DEAD_LETTER_BYTES_MAX, DeadLetter, DeviceReport, Presence, ReportsSettled, StoreError,
};
use super::file::{ERA, File, ready};
use super::ingest::{load, record};
use super::port::{Statements, judged};
use super::values::{self, cell, maybe, text_cell, time_cell};

const PUT_REPORT: &str = "UPDATE sync_status SET last_seen = max(last_seen, ?3), \
     reported_at = ?3, device_time_ms = ?4, reported_accepted = max(coalesce(reported_accepted, 0), ?5), reported_committed = ?6, \
     reported_pending = ?7, reported_evicted = ?8, reported_rejected = ?10, \
     reported_quarantined = ?9, reported_discarded = ?10 \
     WHERE device_id = ?1 AND epoch = ?2 AND (reported_accepted IS NULL \
         OR reported_accepted < ?5 OR (reported_accepted = ?5 \
             AND reported_pending + coalesce(reported_quarantined, 0) >= ?7 + ?9) \
         OR reported_at < ?3 - 60000000)";

const HELD: &str = "SELECT epoch FROM sync_status WHERE device_id = ?1 AND reported_at <= ?2 \
     AND (reported_pending > 0 OR reported_quarantined > 0)";

const FORGET_ABSENT: &str = "UPDATE sync_status SET reported_pending = 0, reported_quarantined = 0 \
     WHERE device_id = ?1 AND epoch = ?2";

/// Which agent a device runs.
const AGENT: &str = "SELECT agent_version FROM devices \
     WHERE device_id = ? AND agent_version IS NOT NULL";

const PUT_PRESENCE: &str = "INSERT INTO devices (device_id, first_seen, last_seen, online, \
     session, epoch, agent_version) VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT (device_id) DO UPDATE SET \
         last_seen = CASE WHEN excluded.online AND excluded.session IS NOT session \
             THEN max(last_seen, excluded.last_seen) ELSE last_seen END, \
         online = CASE WHEN excluded.session = session_before \
             THEN online ELSE excluded.online END, \
         session_before = CASE WHEN excluded.session = session_before \
             OR excluded.session = session THEN session_before ELSE session END, \
         session = CASE WHEN excluded.session = session_before \
             THEN session ELSE excluded.session END, \
         epoch = CASE WHEN excluded.session = session_before OR excluded.epoch IS NULL \
             THEN epoch ELSE excluded.epoch END, \
         agent_version = CASE WHEN excluded.session = session_before \
             OR excluded.agent_version IS NULL \
             THEN agent_version ELSE excluded.agent_version END";

const KNOWN_LETTER: &str = "SELECT 1 FROM dead_letters WHERE device_id = ? AND payload_digest = ?";

const PUT_DEAD_LETTER: &str = "INSERT INTO dead_letters (device_id, payload_digest, topic, \
     payload, payload_bytes, reason, times, received_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7) \
     ON CONFLICT (device_id, payload_digest) DO UPDATE SET times = times + 1, \
         reason = excluded.reason, received_at = max(received_at, excluded.received_at)";

pub(super) fn report(
    file: &mut File,
    reports: &[DeviceReport],
) -> Result<ReportsSettled, StoreError> {
    let mut due = file.absent.due(reports);
    let mut agents = Agents::new();
    for device in of_doubt(reports, &due) {
        let found = file.query(AGENT, vec![text_cell(device.as_str())], |row| {
            Ok(has_quarantine(values::text(row, 0)?))
        })?;
        agents.extend(found.first().map(|has| (device.clone(), *has)));
    }
    due.retain(|report| is_whole(report, &agents));
    let interpretations = interpret(reports, &agents);
    let (groups, places) = group(reports, &interpretations);
    let states = enter(file, &groups)?;
    let mut stored = false;
    for (report, interpretation) in reports.iter().zip(&interpretations) {
        // Of one that does not know its bridge yet, the next report tells more.
        if *interpretation == Interpretation::Guarded {
            continue;
        }
        for of in &report.report.epochs {
            let balance = of.balance;
            let values = vec![
                text_cell(report.device.as_str()),
                cell(of.epoch.get()),
                time_cell(report.received_at),
                Cell::Integer(report.report.device_time_ms),
                cell(balance.accepted),
                cell(balance.committed),
                cell(balance.pending),
                cell(balance.evicted),
                cell(balance.quarantined),
                cell(balance.discarded),
            ];
            stored |= file.execute(PUT_REPORT, values)? > 0;
        }
    }
    let said = reports.iter().zip(&interpretations);
    let said = said.filter(|(_, interpretation)| **interpretation != Interpretation::Guarded);
    let clocks: Vec<Said> = said.map(|(report, _)| Said::of(report)).collect();
    judged(ready(skew::note(&mut Statements(file), &clocks)))?;
    forget_absent(file, &due)?;
    let settled = settled_by_report(reports, &places, &states);
    for (group, state) in groups.iter().zip(states) {
        if let Some(state) = state {
            file.cache.put(ERA, &group.device, group.epoch, state);
        }
    }
    Ok(ReportsSettled { settled, stored })
}

/// What devices said of epochs that they do not name any more.
fn forget_absent(file: &mut File, due: &[&DeviceReport]) -> Result<(), StoreError> {
    for report in due {
        let device = || text_cell(report.device.as_str());
        let values = vec![device(), time_cell(report.received_at)];
        let held = file.query(HELD, values, |row| values::epoch(row, 0))?;
        let named = named(report);
        for epoch in held.into_iter().filter(|epoch| !named.contains(epoch)) {
            file.execute(FORGET_ABSENT, vec![device(), cell(epoch.get())])?;
        }
    }
    file.absent.looked(due);
    Ok(())
}

/// Enters what groups claim. Returns what is known of them then.
fn enter(file: &mut File, groups: &[Group]) -> Result<Vec<Option<EpochState>>, StoreError> {
    let mut states = load(file, groups)?;
    for (group, state) in groups.iter().zip(&mut states) {
        if let Some(state) = state {
            let runs = group.claimed(state);
            record(file, group, state, &runs)?;
        }
    }
    Ok(states)
}

pub(super) fn discard(
    file: &mut File,
    device: &DeviceId,
    lost: &[(Epoch, RangeSet)],
    now: ReceivedAt,
) -> Result<(), StoreError> {
    let groups = given_up(device, lost, now);
    let states = enter(file, &groups)?;
    for (group, state) in groups.iter().zip(states) {
        if let Some(state) = state {
            file.cache.put(ERA, &group.device, group.epoch, state);
        }
    }
    Ok(())
}

pub(super) fn presence(file: &mut File, changes: &[Presence]) -> Result<(), StoreError> {
    for change in changes {
        let (online, session, epoch, version) = match &change.status {
            Status::Online {
                session,
                epoch,
                agent_version,
            } => (1, *session, Some(*epoch), Some(agent_version)),
            Status::Offline { session } => (0, *session, None, None),
        };
        let values = vec![
            text_cell(change.device.as_str()),
            time_cell(change.received_at),
            Cell::Integer(online),
            Cell::Integer(session.cast_signed()),
            maybe(epoch.map(|epoch| cell(epoch.get()))),
            maybe(version.map(|version| text_cell(version))),
        ];
        file.execute(PUT_PRESENCE, values)?;
    }
    Ok(())
}

/// Those that are there already take no room.
pub(super) fn keep_dead_letters(
    file: &mut File,
    letters: &[DeadLetter],
    rooms: &Rooms,
) -> Result<Taken, StoreError> {
    let mut known: HashSet<(&str, u64)> = HashSet::new();
    let mut new = Vec::new();
    for letter in letters {
        let key = key_of(letter);
        if known.contains(&key) {
            continue;
        }
        let values = vec![text_cell(key.0), Cell::Integer(key.1.cast_signed())];
        if file.query(KNOWN_LETTER, values, |_| Ok(()))?.is_empty() {
            new.push(letter);
        }
        known.insert(key);
    }
    let mut taken = Taken::default();
    if let Some(now) = new.iter().map(|letter| letter.received_at).max() {
        let pieces: Vec<(&str, u64)> = new
            .iter()
            .map(|letter| (key_of(letter).0, letter.kept_bytes()))
            .collect();
        taken = take(file, rooms, Aside::DeadLetters, &pieces, now)?;
        for letter in taken.split(&new).1 {
            known.remove(&key_of(letter));
        }
    }
    for letter in letters.iter().filter(|of| known.contains(&key_of(of))) {
        put_letter(file, letter)?;
    }
    Ok(taken)
}

/// Counts pieces that are kept aside, and decides which are.
pub(super) fn take(
    file: &mut File,
    rooms: &Rooms,
    aside: Aside,
    pieces: &[(&str, u64)],
    now: ReceivedAt,
) -> Result<Taken, StoreError> {
    let mut port = Statements(file);
    if rooms.is_due(aside) {
        judged(ready(quota::sum_up(&mut port, rooms, aside)))?;
    }
    judged(ready(quota::take(&mut port, rooms, aside, pieces, now)))
}

fn key_of(letter: &DeadLetter) -> (&str, u64) {
    let device = letter.device.as_ref().map_or("", DeviceId::as_str);
    (device, payload_digest(&letter.payload))
}

fn put_letter(file: &mut File, letter: &DeadLetter) -> Result<(), StoreError> {
    let payload: &[u8] = &letter.payload;
    let kept = &payload[..payload.len().min(DEAD_LETTER_BYTES_MAX)];
    let (device, digest) = key_of(letter);
    let values = vec![
        text_cell(device),
        Cell::Integer(digest.cast_signed()),
        text_cell(&letter.topic),
        Cell::Blob(kept.to_vec()),
        cell(payload.len() as u64),
        text_cell(&letter.reason),
        time_cell(letter.received_at),
    ];
    file.execute(PUT_DEAD_LETTER, values)?;
    Ok(())
}
