//! A commit is tried in three ways: as it is; with the room of the reserve, when there is no other; and without
//! deleting what is settled, when only that cannot be done. Who waits is answered when it is on disk, or when it
//! failed.

use std::time::Duration;

use schema::RangeSet;
use tokio::time::Instant;

use super::{Waiting, Writer};
use crate::buffer::commit::{Commit, Done, Settle};
use crate::buffer::error::BufferError;
use crate::buffer::handle::Appended;
use crate::buffer::reserve;

/// How long to wait after the disk did not take a settlement. Nothing is lost by waiting.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

impl Writer {
    /// Commits what waits, with the settlements when they are due.
    pub(in crate::buffer) async fn commit(&mut self, settle: Settle) -> Result<(), BufferError> {
        self.append_by = None;
        self.waiting_rows = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let now_ms = self.clock.now_ms();
        match self.commit_with_reserve(&waiting, settle, now_ms).await {
            Ok(appended) => {
                if self.trouble.is_some() {
                    // Something small may find room where a reading does not: check whether the trouble is over.
                    self.probe_at = Some(Instant::now());
                }
                self.settle_by = match settle {
                    _ if self.deferred.is_empty() => None,
                    Settle::No => self.settle_by,
                    _ if self.is_undeletable => Some(Instant::now() + SETTLE_PAUSE),
                    // There is more of it.
                    Settle::Accounts | Settle::Rows => Some(Instant::now()),
                };
                self.publish_progress();
                for (waiting, appended) in waiting.into_iter().zip(appended) {
                    // A source that went away does not need to know.
                    let _ = waiting.reply.send(Ok(appended));
                }
                Ok(())
            }
            Err(failed) => {
                if settle != Settle::No {
                    self.settle_by = Some(Instant::now() + SETTLE_PAUSE);
                }
                self.has_trouble(&failed);
                for waiting in waiting {
                    let _ = waiting.reply.send(Err(failed.clone()));
                }
                Err(failed)
            }
        }
    }

    /// As [`Self::commit_whole`], once more with the room of the reserve if there is no other. Settled rows that
    /// cannot be deleted keep nothing else from being written.
    pub(in crate::buffer) async fn commit_with_reserve(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        let done = self.try_with_reserve(waiting, settle, now_ms).await;
        // One that makes room deletes them, too.
        let may_delete = settle != Settle::Accounts && self.deferred.rows_count() > 0;
        match done {
            Err(error @ (BufferError::Damaged { .. } | BufferError::Disk { .. })) if may_delete => {
                let accounts = Settle::Accounts;
                let appended = self.commit_whole(waiting, accounts, now_ms).await?;
                self.is_undeletable = true;
                self.has_trouble(&error);
                Ok(appended)
            }
            Ok(appended) => {
                if settle == Settle::Rows {
                    self.is_undeletable = false;
                }
                Ok(appended)
            }
            failed => failed,
        }
    }

    async fn try_with_reserve(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        match self.commit_whole(waiting, settle, now_ms).await {
            // A quota that is used up, or a file that may not grow, shows as a failed write.
            Err(
                BufferError::DiskFull { .. }
                | BufferError::Disk { .. }
                | BufferError::Database { .. },
            ) => {
                self.free_room(now_ms).await;
                self.commit_whole(waiting, settle, now_ms).await
            }
            done => done,
        }
    }

    async fn commit_whole(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        if !self.may_accept(waiting).await {
            return Err(self.full());
        }
        self.stay_in_place().await?;
        self.try_commit(waiting, settle, now_ms).await
    }

    /// Whether there will be room to free rows again after these were added.
    async fn may_accept(&mut self, waiting: &[Waiting]) -> bool {
        waiting.is_empty()
            || self.state.epochs.pending_rows() < reserve::FROM_ROWS
            || self.reserve.hold()
            || self
                .file
                .free_bytes()
                .await
                .is_ok_and(|bytes| bytes >= reserve::FREE_BYTES_MIN)
    }

    /// Deletes what is settled with the room that the reserve leaves.
    pub(super) async fn free_room(&mut self, now_ms: u64) {
        self.reserve.release();
        // Whether these worked shows in the next attempt.
        let _ = self.file.fold().await;
        while !self.deferred.is_empty() {
            if self.try_commit(&[], Settle::Rows, now_ms).await.is_err() {
                break;
            }
            let _ = self.file.fold().await;
        }
    }

    fn full(&self) -> BufferError {
        BufferError::DiskFull {
            path: self.settings.path.clone(),
        }
    }

    pub(super) async fn try_commit(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        let done = Commit::new(&mut self.file, &mut self.state, &mut self.deferred)
            .append(
                waiting,
                settle,
                &self.settings,
                &mut self.sweep,
                (now_ms, self.began.elapsed()),
            )
            .await;
        match done {
            Ok(Done {
                appended,
                evicted,
                ranked,
            }) => {
                self.evicted(&evicted);
                self.shows.alarms.add_bridged(&ranked.alarms);
                self.shows.patient.add_bridged(&ranked.history);
                if !appended.is_empty() {
                    self.age_soon();
                }
                let (rows, bytes) = self.fill();
                if 2 * rows <= self.settings.rows_max && 2 * bytes <= self.settings.bytes_max {
                    self.sweep.rest();
                    self.state.keep_due |= self.state.keep.levels.rest();
                }
                Ok(appended)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(super) fn evicted(&mut self, evicted: &RangeSet) {
        if !evicted.is_empty() {
            self.shows.evictions.add(evicted);
            self.quarantine_answered(evicted);
        }
    }
}
