//! One commit: what it writes, in which order, and what it changes in memory once it is on disk.
//! A commit that fails leaves file and memory as they were. `room` is what gives way.

mod room;

use std::time::Duration;

use schema::{RangeSet, SensorName, SeqRange};

use super::age::Looked;
use super::append::{Append, Sample, Timing};
use super::deferred::Deferred;
use super::epochs::Plan;
use super::eviction::Sweep;
use super::file::File;
use super::handle::Appended;
use super::keep::{Keep, Reason};
use super::load::{Anchor, State};
use super::policy::Priority;
use super::positions::KeptPosition;
use super::row::{self, Key, ROW_BYTES, ReadingError, SENSORS_MAX, SensorId, to_sql};
use super::settings::BufferSettings;
use super::writer::Waiting;

/// What a commit does about what was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    /// Nothing, unless room is needed: then as [`Self::Rows`].
    No,
    /// Writes the accounts. Its rows stay, also when room is needed: a start knows them by these.
    Accounts,
    /// Writes the accounts, and deletes the rows, or the next part of them.
    Rows,
}

/// What a commit has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// What became of each append.
    pub(super) appended: Vec<Appended>,
    /// The rows that went.
    pub(super) evicted: RangeSet,
    /// The new rows that do not go as they come.
    pub(super) ranked: Ranked,
}

/// Rows that do not go as they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranked {
    pub(super) alarms: RangeSet,
    pub(super) history: RangeSet,
}

impl Ranked {
    pub(super) fn add(&mut self, row: u64, priority: Priority) {
        match priority {
            Priority::Alarm => self.alarms.extend(SeqRange::one(row)),
            Priority::History => self.history.extend(SeqRange::one(row)),
            Priority::Fresh => {}
        }
    }
}

/// A commit in the making.
pub(super) struct Commit<'a> {
    file: &'a mut File,
    state: &'a mut State,
    deferred: &'a mut Deferred,
    /// Names that this commit adds.
    new_sensors: Vec<SensorId>,
    /// Names that this commit forgets.
    forgotten: Vec<(SensorId, SensorName)>,
    anchor: Option<Anchor>,
    last_row: u64,
    rows_count: u64,
    text_bytes: u64,
    /// Rows that this commit evicts.
    evicted: RangeSet,
    /// What the policies keep, where this commit changes it.
    keep: Option<Box<Keep>>,
    /// Rows that it adds and that go before or behind others.
    ranked: Ranked,
    /// The sweep before it.
    sweep_before: Option<Sweep>,
    /// Settled rows that it deletes, when it does and so writes the accounts.
    deleted: Option<RangeSet>,
}

impl<'a> Commit<'a> {
    pub(super) fn new(
        file: &'a mut File,
        state: &'a mut State,
        deferred: &'a mut Deferred,
    ) -> Self {
        Self {
            new_sensors: Vec::new(),
            forgotten: Vec::new(),
            anchor: state.anchor,
            last_row: state.epochs.last_row(),
            rows_count: state.epochs.pending_rows(),
            text_bytes: state.text_bytes,
            evicted: RangeSet::new(),
            keep: None,
            ranked: Ranked::default(),
            sweep_before: None,
            deleted: None,
            file,
            state,
            deferred,
        }
    }

    /// Adds the readings that wait, deletes what is settled when it is due, and evicts what is
    /// over the limits.
    pub(super) async fn append(
        mut self,
        waiting: &[Waiting],
        settle: Settle,
        settings: &BufferSettings,
        sweep: &mut Sweep,
        (now_ms, ran): (u64, Duration),
    ) -> Result<Done, libsql::Error> {
        let clock = self.state.clock.clone();
        let done = self
            .write(waiting, settle, settings, sweep, (now_ms, ran))
            .await;
        match done {
            Ok(appended) => Ok(Done {
                appended,
                evicted: self.evicted,
                ranked: self.ranked,
            }),
            Err(error) => {
                self.file.rollback().await;
                if let Some(before) = self.sweep_before {
                    *sweep = before;
                }
                self.state.clock = clock;
                for id in self.new_sensors {
                    self.state.sensors.remove(id);
                }
                for (id, name) in self.forgotten {
                    self.state.sensors.remember(id, name);
                }
                Err(error)
            }
        }
    }

    /// Evicts rows that cannot be read any more.
    pub(super) async fn give_up(
        mut self,
        rows: &RangeSet,
        now_ms: u64,
    ) -> Result<RangeSet, libsql::Error> {
        let done = async {
            self.file.begin().await?;
            let rows = rows.intersection(&self.state.epochs.pending());
            self.delete_settled().await?;
            self.evict(&rows, Reason::Damaged).await?;
            self.finish(now_ms).await
        }
        .await;
        match done {
            Ok(()) => Ok(self.evicted),
            Err(error) => {
                self.file.rollback().await;
                Err(error)
            }
        }
    }

    /// Evicts what has become too old, or a part of it. Returns the rows, and whether there is more.
    pub(super) async fn age(
        mut self,
        settings: &BufferSettings,
        looked: &mut Looked,
        (now_ms, ran): (u64, Duration),
    ) -> Result<(RangeSet, bool), libsql::Error> {
        let before = looked.clone();
        let done = async {
            self.file.begin().await?;
            self.note_age(settings, ran);
            let has_more = self.evict_aged(settings, looked, ran).await?;
            self.finish(now_ms).await?;
            Ok(has_more)
        }
        .await;
        match done {
            Ok(has_more) => Ok((self.evicted, has_more)),
            Err(error) => {
                *looked = before;
                self.file.rollback().await;
                Err(error)
            }
        }
    }

    async fn write(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        settings: &BufferSettings,
        sweep: &mut Sweep,
        (now_ms, ran): (u64, Duration),
    ) -> Result<Vec<Appended>, libsql::Error> {
        self.file.begin().await?;
        if self.state.keep_due {
            self.keep();
        }
        let before = self.anchor;
        let mut appended = Vec::with_capacity(waiting.len());
        for one in waiting {
            let first_row = self.last_row + 1;
            let (done, is_held_back) = self.add(one, settings).await?;
            if let Some(position) = &one.append.position
                && !is_held_back
            {
                let kept = KeptPosition {
                    position: position.clone(),
                    first_row,
                    last_row: self.last_row,
                    at_ms: now_ms,
                };
                self.file.keep_position(&kept).await?;
            }
            appended.push(done);
        }
        if self.last_row > self.state.epochs.last_row() {
            self.hand_over_anchor(before).await?;
        }
        // After a crash that forgot settlements there may be more than the limit; it is for
        // those who add to find room.
        let is_over = !waiting.is_empty() && !self.need(settings).is_met();
        let needs_room = is_over || !self.evicted.is_empty();
        match settle {
            Settle::No if !needs_room => {}
            Settle::No | Settle::Rows => self.delete_settled().await?,
            Settle::Accounts => self.deleted = Some(RangeSet::new()),
        }
        self.note_age(settings, ran);
        if is_over {
            self.make_room(settings, sweep).await?;
        }
        self.finish(now_ms).await?;
        Ok(appended)
    }

    /// Gives the readings of one append their row numbers and clocks. Also returns whether its source has to
    /// come again with all of it.
    async fn add(
        &mut self,
        waiting: &Waiting,
        settings: &BufferSettings,
    ) -> Result<(Appended, bool), libsql::Error> {
        let Append {
            samples,
            can_hold_back,
            position,
            ..
        } = &waiting.append;
        if position.is_some() && *can_hold_back && !self.finds_room(samples, settings) {
            return Ok((Appended::full(samples.len()), true));
        }
        let mut refused = Vec::new();
        let first = self.last_row + 1;
        let ranks = settings.policies.ranks();
        for (index, Sample { reading, timing }) in samples.iter().enumerate() {
            if let Err(error) = reading.value.validate() {
                refused.push((index, ReadingError::Value(error)));
                continue;
            }
            let has_room = self.rows_count < settings.rows_max
                && self.bytes() + row::row_bytes(reading) <= settings.bytes_max;
            let is_turned_away =
                !has_room && settings.policies.of(&reading.sensor).keeps_what_is_there();
            if is_turned_away && *can_hold_back {
                refused.push((index, ReadingError::BufferFull));
                continue;
            }
            let Some(sensor) = self.sensor(&reading.sensor).await? else {
                refused.push((index, ReadingError::TooManySensors));
                continue;
            };
            let observed_at = match timing {
                Timing::Given => self.state.sensors.given(sensor, reading.observed_at),
                Timing::Read => self.state.sensors.stamp(sensor, reading.observed_at),
            };
            self.last_row += 1;
            let key = Key {
                seq: self.last_row,
                hlc: self.state.clock.tick(waiting.now_ms),
                observed_at,
                sensor,
                is_given: *timing == Timing::Given,
                has_position: position.is_some(),
            };
            if is_turned_away {
                let row = RangeSet::from_iter(SeqRange::one(key.seq));
                self.keep().count(Reason::Full, &row);
                self.evicted.merge(&row);
            } else {
                if ranks {
                    let wanted = self.state.sensors.wanted(sensor, &settings.policies);
                    self.ranked.add(key.seq, wanted.priority);
                }
                self.rows_count += 1;
                self.text_bytes += row::text_bytes(&reading.value);
                let mark = key.mark(reading.quality, &reading.value);
                self.file.add_row(key, mark, to_sql(&reading.value)).await?;
            }
            self.anchor = Some(Anchor {
                key,
                is_spent: is_turned_away,
            });
        }
        let range = SeqRange::new(first, self.last_row);
        Ok((Appended { range, refused }, false))
    }

    /// Whether all of these find room, or make it.
    fn finds_room(&self, samples: &[Sample], settings: &BufferSettings) -> bool {
        let (mut rows, mut bytes) = (self.rows_count, self.bytes());
        samples
            .iter()
            .filter(|sample| sample.reading.value.validate().is_ok())
            .all(|Sample { reading, .. }| {
                rows += 1;
                bytes += row::row_bytes(reading);
                let has_room = rows <= settings.rows_max && bytes <= settings.bytes_max;
                has_room || !settings.policies.of(&reading.sensor).keeps_what_is_there()
            })
    }

    /// The number of a sensor; `None` when there is no room for its name.
    async fn sensor(&mut self, name: &SensorName) -> Result<Option<SensorId>, libsql::Error> {
        if let Some(id) = self.state.sensors.id(name) {
            return Ok(Some(id));
        }
        if self.state.sensors.is_full() {
            self.forget_sensors().await?;
            if self.state.sensors.is_full() {
                return Ok(None);
            }
        }
        let id = self.state.sensors.add(name);
        self.new_sensors.push(id);
        self.file.add_sensor(id, name.as_str()).await?;
        Ok(Some(id))
    }

    /// Forgets the names that no row refers to. It looks at every row, so not too often.
    async fn forget_sensors(&mut self) -> Result<(), libsql::Error> {
        if self.last_row < self.state.forget_sensors_from {
            return Ok(());
        }
        self.state.forget_sensors_from = self.last_row + SENSORS_MAX as u64;
        self.file.finish_rows().await?;
        let mut in_use = self.file.sensors_in_use().await?;
        in_use.extend_from_slice(&self.new_sensors);
        in_use.sort_unstable();
        let unused: Vec<SensorId> = self
            .state
            .sensors
            .all_ids()
            .filter(|id| in_use.binary_search(id).is_err())
            .collect();
        for id in unused {
            self.file.delete_sensor(id).await?;
            let name = self.state.sensors.remove(id);
            self.forgotten.extend(name.map(|name| (id, name)));
        }
        Ok(())
    }

    /// Makes the newest row the one that keeps the number.
    async fn hand_over_anchor(&mut self, before: Option<Anchor>) -> Result<(), libsql::Error> {
        if let Some(Anchor {
            key,
            is_spent: true,
        }) = self.anchor
        {
            // Its reading was evicted at once: the row is there for its number alone.
            self.file
                .add_row(key, key.spent_mark(), libsql::Value::Null)
                .await?;
        }
        self.file.finish_rows().await?;
        if let Some(Anchor {
            key,
            is_spent: true,
        }) = before
        {
            self.file
                .delete_rows(SeqRange::one(key.seq).into_iter())
                .await?;
        }
        Ok(())
    }

    /// Deletes what was settled in memory, or the next part of it.
    async fn delete_settled(&mut self) -> Result<(), libsql::Error> {
        let rows = self.deferred.next();
        self.remove(&rows).await?;
        self.deleted = Some(rows);
        Ok(())
    }

    /// Takes rows out of the file. The one with the highest number stays, without its value.
    async fn remove(&mut self, rows: &RangeSet) -> Result<(), libsql::Error> {
        for range in rows.iter() {
            let mut last = range.last();
            if last == self.last_row
                && let Some(anchor) = &mut self.anchor
            {
                last -= 1;
                anchor.is_spent = true;
                self.file.spend_row(anchor.key).await?;
            }
            self.file
                .delete_rows(SeqRange::new(range.first(), last).into_iter())
                .await?;
        }
        Ok(())
    }

    /// Writes what has changed of the accounts, commits, and only then changes the memory.
    async fn finish(&mut self, now_ms: u64) -> Result<(), libsql::Error> {
        let state = &mut *self.state;
        // The first rows of an epoch bring its name along; later ones need not.
        let begins = self.last_row > state.epochs.last_row() && !state.epochs.is_begun();
        let mut plan: Option<Plan> = None;
        if self.deleted.is_some() || !self.evicted.is_empty() || begins {
            let next = state
                .epochs
                .plan(self.last_row, &self.evicted, now_ms, &mut state.ids);
            self.file.write_log(next.writes()).await?;
            plan = Some(next);
        }
        let mut kept = Vec::new();
        if let Some(keep) = &self.keep {
            let of = (state.epochs.current().account.epoch(), now_ms);
            kept = state.kept.changes(keep, of, &mut state.ids);
            self.file.write_log(kept.iter()).await?;
        }
        self.file.commit().await?;

        match plan {
            Some(plan) => state.epochs.committed(plan),
            None => state.epochs.accept(self.last_row),
        }
        if let Some(keep) = self.keep.take() {
            state.kept.committed(&kept);
            state.keep = *keep;
            state.keep_due = false;
        }
        state.anchor = self.anchor;
        state.text_bytes = self.text_bytes;
        if let Some(deleted) = &self.deleted {
            self.deferred.committed(deleted);
        }
        Ok(())
    }

    /// What the policies keep, to be changed.
    fn keep(&mut self) -> &mut Keep {
        let Self { keep, state, .. } = self;
        keep.get_or_insert_with(|| Box::new(state.keep.clone()))
    }

    fn bytes(&self) -> u64 {
        self.rows_count * ROW_BYTES + self.text_bytes
    }
}
