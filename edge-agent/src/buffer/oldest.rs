//! The pending reading that was accepted first, for the status; and a sign of life of the thread that owns the file.

use schema::SeqRange;

use super::error::BufferError;
use super::handle::Buffer;
use super::row::Held;
use super::starts::leaving;
use crate::status::Oldest;

impl Buffer {
    /// The pending reading that was accepted first; `None` when nothing is pending, or its row cannot be read.
    ///
    /// # Errors
    /// [`BufferError`].
    pub(crate) async fn oldest(&self) -> Result<Option<Oldest>, BufferError> {
        self.run(async |writer| {
            let first = writer.state.epochs.with_rows().find_map(|(ledger, run)| {
                let first = ledger.account.pending().iter().next()?;
                Some((run.base + first.first(), ledger.clock))
            });
            let Some((row, clock)) = first else {
                return Ok(None);
            };
            let Some(range) = SeqRange::one(row) else {
                return Ok(None);
            };
            let now_ms = writer.clock.now_ms();
            let mut oldest = None;
            let read = writer.file.for_each_row(range, |columns| {
                if let Some(Held::Reading(key, quality, _)) = columns.check() {
                    let (_, observed_at, _) = leaving(clock.as_ref(), &key, quality);
                    oldest = Some(Oldest {
                        observed_at_us: observed_at.micros(),
                        age_ms: now_ms.saturating_sub(key.hlc.millis()),
                    });
                }
                false
            });
            read.await.map_err(|error| writer.failed(error))?;
            Ok(oldest)
        })
        .await
    }

    /// Returns when the thread that owns the file has come to this request: it makes progress.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub(crate) async fn answers(&self) -> Result<(), BufferError> {
        self.run(async |_| Ok(())).await
    }
}
