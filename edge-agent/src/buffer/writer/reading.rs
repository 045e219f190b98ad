//! Reading rows for a batch, also where the disk does not give all of them: rows that cannot be read now are skipped
//! and kept, rows that are damaged are given up and counted.

use schema::RangeSet;
use tracing::error;

use super::Writer;
use crate::buffer::commit::Commit;
use crate::buffer::error::{BufferError, is_unreadable};
use crate::buffer::handle::Taken;
use crate::buffer::read;

impl Writer {
    pub(super) async fn read(
        &mut self,
        requested: &RangeSet,
        rows_max: usize,
    ) -> Result<Taken, BufferError> {
        let found = match self.try_read(requested, rows_max).await {
            Err(error) if is_unreadable(&error) => {
                self.go_around(requested, &error).await;
                self.try_read(requested, rows_max).await
            }
            found => found,
        };
        let (taken, damaged) = found.map_err(|error| self.failed(error))?;
        self.keep_sent(&taken).await?;
        if !damaged.is_empty() {
            let path = &self.settings.path;
            error!(path = %path.display(), rows = %damaged.count(), "rows are damaged and given up");
            self.give_up(&damaged).await?;
        }
        Ok(taken)
    }

    async fn try_read(
        &self,
        requested: &RangeSet,
        rows_max: usize,
    ) -> Result<(Taken, RangeSet), libsql::Error> {
        read::read(
            &self.file,
            &self.state,
            requested,
            &self.unreadable,
            rows_max,
        )
        .await
    }

    /// Finds the rows that cannot be read, so that the others can. They stay pending, and where they
    /// are: the next start tries again, and saves what the disk gives then.
    async fn go_around(&mut self, requested: &RangeSet, error: &libsql::Error) {
        let mut wanted = requested.intersection(&self.state.epochs.pending());
        wanted.subtract(&self.unreadable);
        let found = read::unreadable(&self.file, &wanted).await;
        if found.is_empty() {
            return;
        }
        self.unreadable.merge(&found);
        error!(
            path = %self.settings.path.display(),
            rows = found.count(),
            %error,
            "readings stand in a part of the file that cannot be read; the others go on, and the next start \
             saves what can be read then"
        );
        let rows = self.unreadable.count();
        self.shows
            .storage
            .send_modify(|storage| storage.unreadable = rows);
    }

    /// Evicts damaged rows.
    async fn give_up(&mut self, rows: &RangeSet) -> Result<(), BufferError> {
        let given_up = Commit::new(&mut self.file, &mut self.state, &mut self.deferred)
            .give_up(rows, self.clock.now_ms())
            .await
            .map_err(|error| self.failed(error))?;
        self.evicted(&given_up);
        self.publish_progress();
        Ok(())
    }
}
