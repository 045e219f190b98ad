//! What gives way within a commit: rows of a full buffer, averaged or dropped, and rows that are too old.

use std::time::Duration;

use schema::{RangeSet, SeqRange};

use super::Commit;
use crate::buffer::age::{Ages, Looked};
use crate::buffer::consolidate::{Levels, Merged, Part};
use crate::buffer::eviction::{Candidate, Need, Sweep};
use crate::buffer::file::runs;
use crate::buffer::keep::Reason;
use crate::buffer::policy::Policy;
use crate::buffer::row::{Held, ROW_BYTES, text_bytes, to_sql};
use crate::buffer::settings::BufferSettings;

/// Rows that the sweep looks at in one step.
const SWEEP_ROWS: usize = 1024;

/// The part of its limits that a full buffer frees beyond what it must.
const SLACK_DIVISOR: u64 = 128;

/// Most rows that are too old and go in one commit: the log must not grow by the whole buffer.
const AGED_ROWS_MAX: u64 = 16 * 1024;

/// Most rows that one commit looks at for their age.
const AGED_LOOKED_AT: u64 = 64 * 1024;

impl Commit<'_> {
    pub(super) async fn make_room(
        &mut self,
        settings: &BufferSettings,
        sweep: &mut Sweep,
    ) -> Result<(), libsql::Error> {
        self.sweep_before = Some(sweep.clone());
        let mut need = self.need(settings);
        let uniform = settings.policies.uniform();
        let consolidates = settings.policies.consolidates();
        let mut candidates = Vec::new();
        let mut rounds_in_vain = 0;
        let rounds_max = match consolidates {
            true => Levels::ROUNDS_IN_VAIN_MAX,
            false => Sweep::ROUNDS_IN_VAIN_MAX,
        };
        while rounds_in_vain < rounds_max {
            let evicted_before = self.evicted.count();
            while let Some(ahead) = SeqRange::new(sweep.next().max(1), self.last_held()) {
                let rows = match consolidates {
                    true => self.keep().levels.group_rows(settings.rows_max),
                    false => SWEEP_ROWS,
                };
                self.file
                    .candidates(ahead, rows as i64, &mut candidates)
                    .await?;
                let Some(last) = candidates.last().map(|candidate| candidate.seq) else {
                    break;
                };
                // What is settled and not deleted yet is no candidate.
                let (epochs, given) = (&self.state.epochs, self.state.epochs.last_row());
                candidates.retain(|row| row.seq > given || epochs.is_pending(row.seq));
                if consolidates {
                    self.consolidate(&candidates, settings, &mut need).await?;
                    sweep.drops_consolidated = self.keep().levels.is_in_vain();
                    let gone = &self.evicted;
                    candidates.retain(|row| !gone.contains(row.seq));
                }
                let mut victims = RangeSet::new();
                let sensors = &mut self.state.sensors;
                let policy = |sensor| match uniform {
                    Some(policy) => policy,
                    None => sensors.wanted(sensor, &settings.policies).when_full,
                };
                let is_enough = sweep.judge(&candidates, policy, &mut need, &mut victims);
                self.evict(&victims, Reason::Full).await?;
                if is_enough {
                    return Ok(());
                }
                sweep.pass(last);
            }
            sweep.begin_again();
            if consolidates {
                self.keep().levels.begin_again();
            }
            if need.is_met() {
                return Ok(());
            }
            rounds_in_vain = match self.evicted.count() == evicted_before {
                true => rounds_in_vain + 1,
                false => 0,
            };
        }
        Ok(())
    }

    /// Averages what of these rows may be, unless there is room already.
    async fn consolidate(
        &mut self,
        candidates: &[Candidate],
        settings: &BufferSettings,
        need: &mut Need,
    ) -> Result<(), libsql::Error> {
        let (Some(first), Some(last)) = (candidates.first(), candidates.last()) else {
            return Ok(());
        };
        if need.is_met_at(first.seq) {
            return Ok(());
        }
        let levels = self.keep().levels.clone();
        let (mut wanted, mut seen) = (RangeSet::new(), 0);
        // A mean does not reach over what was sent.
        let mut sent = Vec::new();
        for candidate in candidates {
            let of = self
                .state
                .sensors
                .wanted(candidate.sensor, &settings.policies);
            // The last row keeps the number and the clock.
            if of.when_full != Policy::Consolidate || candidate.seq == self.last_row {
                continue;
            }
            let Some(one) = SeqRange::one(candidate.seq) else {
                continue;
            };
            if self.may_be_sent(one) {
                sent.push(candidate.seq);
                continue;
            }
            seen += 1;
            if levels.wants(levels.of(candidate.seq)) {
                wanted.insert(one);
            }
        }
        let mut gone = 0;
        for group in self.parts(&wanted, &sent).await? {
            let merged = levels.merge(&group);
            gone += merged.victims.count();
            self.carry_out(merged, settings, need).await?;
        }
        self.keep().levels.note(last.seq, seen, gone);
        Ok(())
    }

    /// Whether a row may have been sent.
    fn may_be_sent(&self, row: SeqRange) -> bool {
        let keep = self.keep.as_deref().unwrap_or(&self.state.keep);
        keep.sent
            .as_ref()
            .is_none_or(|sent| sent.contains_range(row))
    }

    /// Reads these rows, apart by their epochs and by the ones `between` them. One that is damaged is left where it is.
    async fn parts(
        &self,
        wanted: &RangeSet,
        between: &[u64],
    ) -> Result<Vec<Vec<Part>>, libsql::Error> {
        let levels = match &self.keep {
            Some(keep) => &keep.levels,
            None => &self.state.keep.levels,
        };
        // Rows of this commit are of the current epoch, which has no end.
        let base_of = |row: u64| self.state.epochs.of_row(row).map(|(_, run)| run.base);
        let mut groups: Vec<Vec<Part>> = Vec::new();
        let mut last_of = None;
        for run in runs(wanted) {
            self.file
                .for_each_row(run, |columns| {
                    let row = columns.seq.cast_unsigned();
                    if !wanted.contains(row) {
                        return true;
                    }
                    if let Some(Held::Reading(key, quality, value)) = columns.check() {
                        let of = (base_of(row), between.partition_point(|other| *other < row));
                        if last_of != Some(of) {
                            groups.push(Vec::new());
                            last_of = Some(of);
                        }
                        let level = levels.of(row);
                        let part = Part {
                            key,
                            quality,
                            value,
                            level,
                        };
                        if let Some(group) = groups.last_mut() {
                            group.push(part);
                        }
                    }
                    true
                })
                .await?;
        }
        Ok(groups)
    }

    /// Writes what stays of a group, and evicts the others.
    async fn carry_out(
        &mut self,
        merged: Merged,
        settings: &BufferSettings,
        need: &mut Need,
    ) -> Result<(), libsql::Error> {
        if merged.victims.is_empty() {
            return Ok(());
        }
        let bytes_before = self.bytes();
        self.evict(&merged.victims, Reason::Consolidated).await?;
        let mut texts = 0;
        for (key, quality, value) in merged.changed {
            // It goes when its sensor's readings go, whatever stood in this row.
            let sensors = &mut self.state.sensors;
            let wanted = sensors.wanted(key.sensor, &settings.policies);
            self.ranked.add(key.seq, wanted.priority);
            texts += text_bytes(&value);
            let mark = key.mark(quality, &value);
            self.file.change_row(key, mark, to_sql(&value)).await?;
        }
        self.text_bytes = (self.text_bytes + texts).saturating_sub(merged.text_bytes_before);
        let rows = merged.victims.count();
        for _ in 1..rows {
            need.give(ROW_BYTES);
        }
        let given = bytes_before.saturating_sub(self.bytes());
        need.give(given.saturating_sub((rows - 1) * ROW_BYTES));
        Ok(())
    }

    /// Takes note of the running time, where readings grow too old.
    pub(super) fn note_age(&mut self, settings: &BufferSettings, ran: Duration) {
        let Some(age_min) = settings.policies.age_min() else {
            return;
        };
        let step = Ages::step(age_min);
        let (ages, last_row) = (&self.state.keep.ages, self.last_row);
        let now = ages.now(ran);
        if ages.is_due(last_row, now, step) {
            let pending_first = self.state.epochs.pending_first();
            let ages = &mut self.keep().ages;
            ages.forget(pending_first);
            ages.note(last_row, now, step);
        }
    }

    /// Evicts what is older than its sensor's readings may become, or the next part of it. Returns whether there is
    /// more to look at.
    pub(super) async fn evict_aged(
        &mut self,
        settings: &BufferSettings,
        looked: &mut Looked,
        ran: Duration,
    ) -> Result<bool, libsql::Error> {
        let now = self.state.keep.ages.now(ran);
        let pending = self.state.epochs.pending();
        let mut rows_left = AGED_LOOKED_AT;
        for age in settings.policies.ages() {
            let Some(last) = self.state.keep.ages.last_of(age, now) else {
                continue;
            };
            let mut from = looked.up_to(age) + 1;
            while let Some(ahead) = SeqRange::new(from, last) {
                let old = pending.intersection(&RangeSet::from_iter([ahead]));
                let Some(first) = old.first() else {
                    break;
                };
                if rows_left == 0 || self.evicted.count() >= AGED_ROWS_MAX {
                    looked.note(age, from - 1);
                    return Ok(true);
                }
                let mut candidates = Vec::new();
                let ahead = SeqRange::new(first, last).unwrap_or(ahead);
                self.file
                    .candidates(ahead, SWEEP_ROWS as i64, &mut candidates)
                    .await?;
                let Some(end) = candidates.last().map(|candidate| candidate.seq) else {
                    break;
                };
                rows_left = rows_left.saturating_sub(candidates.len() as u64);
                let mut victims = RangeSet::new();
                for candidate in &candidates {
                    let of = self
                        .state
                        .sensors
                        .wanted(candidate.sensor, &settings.policies);
                    let is_old = of.age_max.is_some_and(|most| most <= age);
                    if is_old && old.contains(candidate.seq) {
                        victims.extend(SeqRange::one(candidate.seq));
                    }
                }
                victims.subtract(&self.evicted);
                self.evict(&victims, Reason::Age).await?;
                from = end + 1;
            }
            looked.note(age, last);
        }
        Ok(false)
    }

    /// The highest row that may still hold a reading.
    fn last_held(&self) -> u64 {
        match self.anchor {
            Some(anchor) if anchor.is_spent => anchor.key.seq - 1,
            _ => self.last_row,
        }
    }

    pub(super) async fn evict(
        &mut self,
        victims: &RangeSet,
        reason: Reason,
    ) -> Result<(), libsql::Error> {
        if self.text_bytes > 0 {
            for range in victims.iter() {
                let bytes = self.file.text_bytes(range).await?;
                self.text_bytes = self.text_bytes.saturating_sub(bytes);
            }
        }
        self.remove(victims).await?;
        self.rows_count -= victims.count();
        self.evicted.merge(victims);
        if !victims.is_empty() {
            self.keep().count(reason, victims);
        }
        Ok(())
    }

    pub(super) fn need(&self, settings: &BufferSettings) -> Need {
        let rows = self.rows_count.saturating_sub(settings.rows_max);
        let bytes = self.bytes().saturating_sub(settings.bytes_max);
        let slack = |over: u64, max: u64| if over > 0 { max / SLACK_DIVISOR } else { 0 };
        Need {
            rows,
            bytes,
            slack_rows: slack(rows, settings.rows_max),
            slack_bytes: slack(bytes, settings.bytes_max),
            fresh_from: self.state.epochs.last_row() + 1,
        }
    }
}
