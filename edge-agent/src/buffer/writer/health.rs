//! The health of the file: whether it is where it was, what it cannot do now, and when that is over. It is checked
//! also while nobody uses it, and each trouble is logged when it begins, changes or ends.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{WARN_EVERY, Writer};
use crate::buffer::error::BufferError;
use crate::buffer::file::File;
use crate::buffer::reserve;
use crate::buffer::trouble::Trouble;

/// How soon after a use it is checked whether the file is where it was; and how often, after a
/// failure, whether it works again.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(700);

/// How often an unused file in which readings wait is checked. One in which nothing waits is left
/// alone: an idle device sleeps.
pub(super) const LOOK_IDLE: Duration = Duration::from_secs(5);

impl Writer {
    /// Writes to the file, after making sure that it is in its place.
    pub(in crate::buffer) async fn in_place<T>(
        &mut self,
        write: impl AsyncFnOnce(&mut File) -> Result<T, libsql::Error>,
    ) -> Result<T, BufferError> {
        self.stay_in_place().await?;
        let written = write(&mut self.file).await;
        written.map_err(|error| self.failed(error))
    }

    /// Makes sure that what is written is found again: a file that was removed, with its folder or
    /// without, is put back from what is still open.
    pub(super) async fn stay_in_place(&mut self) -> Result<(), BufferError> {
        if self.place.is_kept() {
            return Ok(());
        }
        let put_back = self.place.put_back(&self.file, &self.settings.path).await;
        let file = put_back.map_err(|error| {
            if self.not_put_back.is_due(&error.to_string()) {
                warn!(path = %self.settings.path.display(), %error, "the buffer's file is gone and was not put back");
            }
            BufferError::Gone {
                path: self.settings.path.clone(),
            }
        })?;
        self.file = file;
        warn!(path = %self.settings.path.display(), "the buffer's file was removed while it was in use; it is put back, nothing is lost");
        Ok(())
    }

    /// Looks whether the file is where it was, and, after a failure, whether it is over, also while no
    /// reading comes in.
    pub(super) async fn probe(&mut self) {
        let epochs = &self.state.epochs;
        let holds = epochs.pending_rows() + epochs.quarantined_rows() > 0;
        self.probe_at = holds.then(|| Instant::now() + LOOK_IDLE);
        let outcome = match self.stay_in_place().await {
            Ok(()) if self.trouble.is_none() => return,
            Ok(()) => self.file.probe().await.map_err(|error| self.failed(error)),
            Err(gone) => Err(gone),
        };
        match outcome {
            // What cannot be deleted is tried again meanwhile; the trouble ends when that succeeds.
            Ok(()) if self.is_undeletable && self.deferred.rows_count() > 0 => {}
            // What was written is little, and may have found room where a reading would not.
            Ok(()) if matches!(self.trouble, Some(BufferError::DiskFull { .. })) => {
                let has_room = self.reserve.hold();
                if self.state.epochs.pending_rows() < reserve::FROM_ROWS {
                    self.reserve.release();
                }
                if has_room {
                    self.is_well();
                }
            }
            Ok(()) => self.is_well(),
            Err(error) => self.has_trouble(&error),
        }
        if self.trouble.is_some() {
            self.look_within(LOOK_SOON);
        }
    }

    /// Makes the next check of the file due within this time.
    pub(super) fn look_within(&mut self, time: Duration) {
        let by = Instant::now() + time;
        self.probe_at = Some(self.probe_at.map_or(by, |before| before.min(by)));
    }

    /// Logs and shows that something does not work: when it begins or changes, and now and then while it lasts.
    pub(in crate::buffer) fn has_trouble(&mut self, error: &BufferError) {
        self.look_within(LOOK_SOON);
        let lasting = self.shows.storage.borrow().trouble.clone();
        let since_ms = lasting.map_or_else(|| self.clock.now_ms(), |trouble| trouble.since_ms);
        let trouble = Trouble::of(error, since_ms);
        let is_due = self
            .warned_at
            .is_none_or(|said| said + WARN_EVERY <= Instant::now());
        self.trouble = Some(error.clone());
        let is_news = self.shows.storage.send_if_modified(|storage| {
            let is_news = storage.trouble.as_ref() != Some(&trouble);
            storage.trouble = Some(trouble.clone());
            is_news
        });
        if is_news || is_due {
            self.warned_at = Some(Instant::now());
            let Trouble { what, help, .. } = trouble;
            error!(
                error = what,
                help, "readings are not accepted, or acknowledgements not kept"
            );
        }
    }

    /// The trouble is over.
    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            self.warned_at = None;
            self.shows
                .storage
                .send_modify(|storage| storage.trouble = None);
            info!(path = %self.settings.path.display(), "the buffer works again");
        }
    }

    /// Counts rows of a small table that were set aside.
    pub(in crate::buffer) async fn note_odd(&mut self, rows: u64, table: &'static str) {
        if rows > 0 {
            error!(
                path = %self.settings.path.display(),
                table,
                rows,
                "rows made no sense and are set aside; look at them in the table set_aside"
            );
        }
        let aside = self.file.aside().await.map(|aside| aside.rows);
        // If they cannot be counted now, the next time they are.
        if let Ok(aside) = aside {
            self.shows.storage.send_if_modified(|storage| {
                let is_news = storage.set_aside != aside;
                storage.set_aside = aside;
                is_news
            });
        }
    }
}
