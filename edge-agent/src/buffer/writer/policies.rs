//! What the owner wants of sensors, beside what a full buffer does: readings that are too old go, what is read for a batch is
//! known as sent before it is, alarms that an earlier run took go first, and a buffer that fills is said to.

use schema::{RangeSet, SeqRange};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Writer;
use crate::buffer::age::{Ages, Looked};
use crate::buffer::commit::{Commit, Ranked};
use crate::buffer::error::BufferError;
use crate::buffer::file::File;
use crate::buffer::handle::Taken;

/// The part of the limits by which a buffer has to empty below the mark before it is said to be well again.
const FILLING_ENDS_BELOW: f64 = 0.9;

/// Rows that are known as sent beyond those that are: so many rows one after the other cost one commit.
const SENT_AHEAD: (u64, u64) = (64, 4096);

/// Rows looked at in one step.
const STEP_ROWS: i64 = 4096;

impl Writer {
    /// Begins to hold to policies that are new: of the rows that are there, too. What may have been sent before anybody
    /// kept count of that counts as sent.
    pub(in crate::buffer) async fn hold_to_policies(&mut self) {
        self.state.sensors.forget_wanted();
        let consolidates = self.settings.policies.consolidates();
        let last_row = self.state.epochs.last_row();
        self.state.keep_due |= self.state.keep.track(consolidates, last_row);
        self.looked = Looked::default();
        self.age_by = None;
        self.age_soon();
        self.rank_found().await;
        self.publish_progress();
    }

    /// Makes the next look at the age of rows due, if any may become too old and some wait.
    pub(super) fn age_soon(&mut self) {
        if self.age_by.is_none()
            && let Some(age_min) = self.settings.policies.age_min()
            && self.state.epochs.pending_rows() > 0
        {
            self.age_by = Some(Instant::now() + Ages::step(age_min));
        }
    }

    /// Evicts rows that have become too old.
    pub(super) async fn age(&mut self) {
        self.age_by = None;
        let at = (self.clock.now_ms(), self.began.elapsed());
        let done = match self.stay_in_place().await {
            Ok(()) => Commit::new(&mut self.file, &mut self.state, &mut self.deferred)
                .age(&self.settings, &mut self.looked, at)
                .await
                .map_err(|error| self.failed(error)),
            Err(gone) => Err(gone),
        };
        match done {
            Ok((evicted, has_more)) => {
                if has_more {
                    self.age_by = Some(Instant::now());
                }
                if let (Some(first), Some(last)) = (evicted.first(), evicted.last()) {
                    let rows = evicted.count();
                    info!(
                        rows,
                        first, last, "readings older than age_max were evicted"
                    );
                    self.evicted(&evicted);
                    self.publish_progress();
                }
            }
            Err(error) => self.has_trouble(&error),
        }
        self.age_soon();
    }

    /// These rows are pending again: they may be too old already.
    pub(in crate::buffer) fn pending_again(&mut self, rows: &RangeSet) {
        if let Some(first) = rows.first() {
            self.looked.again(first);
            self.age_soon();
        }
    }

    /// Makes sure that rows which are about to be sent are known as such after a crash: they never change again. Where
    /// nothing is consolidated, that an earlier run knew of some is forgotten before others are sent.
    pub(super) async fn keep_sent(&mut self, taken: &Taken) -> Result<(), BufferError> {
        let rows: RangeSet = taken
            .batch
            .rows
            .iter()
            .filter_map(|row| SeqRange::one(taken.base + row.seq))
            .collect();
        // By the file, too: what a commit is still to write is not known after a crash.
        let is_kept = self.state.keep.knows_sent(&rows) && self.state.kept.knows_sent(&rows);
        if is_kept || rows.is_empty() {
            return Ok(());
        }
        let mut written = self.write_sent(&rows).await;
        // As an append does: with the room of the reserve.
        if let Err(
            BufferError::DiskFull { .. } | BufferError::Disk { .. } | BufferError::Database { .. },
        ) = written
        {
            let now_ms = self.clock.now_ms();
            self.free_room(now_ms).await;
            // Made anew: that may have written a part of it.
            written = self.write_sent(&rows).await;
        }
        written.inspect_err(|error| self.has_trouble(error))
    }

    /// Writes that these rows may have been sent, and some behind them.
    async fn write_sent(&mut self, rows: &RangeSet) -> Result<(), BufferError> {
        let (least, most) = SENT_AHEAD;
        let ahead = (self.settings.rows_max / 64).clamp(least, most);
        let mut keep = self.state.keep.clone();
        keep.send(rows, ahead, self.state.epochs.pending_first());
        let of = (
            self.state.epochs.current().account.epoch(),
            self.clock.now_ms(),
        );
        let writes = self.state.kept.changes(&keep, of, &mut self.state.ids);
        let all = async |file: &mut File| file.write_log(writes.iter()).await;
        self.in_place(async |file: &mut File| file.transaction(all).await)
            .await?;
        self.state.kept.committed(&writes);
        self.state.keep = keep;
        self.state.keep_due = false;
        Ok(())
    }

    /// Shows which of the rows that an earlier run took go before all others.
    pub(super) async fn rank_found(&mut self) {
        let last_row = self.state.epochs.last_row();
        if !self.settings.policies.ranks() {
            return;
        }
        let (mut from, mut candidates) = (1, Vec::new());
        while let Some(ahead) = SeqRange::new(from, last_row) {
            // What cannot be read now goes without its rank.
            let read = self
                .file
                .candidates(ahead, STEP_ROWS, &mut candidates)
                .await;
            let (Ok(()), Some(last)) = (read, candidates.last()) else {
                return;
            };
            from = last.seq + 1;
            let mut ranked = Ranked::default();
            for candidate in &candidates {
                if self.state.epochs.is_pending(candidate.seq) {
                    let sensors = &mut self.state.sensors;
                    let wanted = sensors.wanted(candidate.sensor, &self.settings.policies);
                    ranked.add(candidate.seq, wanted.priority);
                }
            }
            self.shows.alarms.add_bridged(&ranked.alarms);
        }
    }

    /// Logs once when more is pending than is well, and once when it is less again.
    pub(super) fn note_fill(&mut self) {
        let (rows, bytes) = self.fill();
        let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
        let fill = share(rows, self.settings.rows_max).max(share(bytes, self.settings.bytes_max));
        let warn_at = self.settings.warn_at;
        if !self.filling && fill >= warn_at {
            self.filling = true;
            warn!(
                rows,
                rows_max = self.settings.rows_max,
                bytes,
                bytes_max = self.settings.bytes_max,
                "the buffer fills: when it is full, [buffer] when_full says what gives way"
            );
        } else if self.filling && fill < warn_at * FILLING_ENDS_BELOW {
            self.filling = false;
            info!(rows, bytes, "the buffer empties again");
        }
    }
}
