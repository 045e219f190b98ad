//! The health of the buffer, as the driver sees it and as the buffer reports it: a failure is logged, shown, and tried
//! again; one that no retry mends ends the driver.

use daemon::Fault;
use tracing::warn;

use super::DriverTask;
use crate::buffer::BufferError;

impl DriverTask {
    /// The value of an answer of the buffer; a failure is counted and reported.
    pub(super) fn storage_did<T>(
        &mut self,
        what: &'static str,
        outcome: Result<T, BufferError>,
    ) -> Option<T> {
        outcome
            .inspect_err(|error| self.storage_failed(what, error))
            .ok()
    }

    /// An operation on the disk succeeded.
    pub(super) fn storage_works(&mut self) {
        if std::mem::take(&mut self.storage_fails) {
            self.storage_changed();
        }
    }

    pub(super) fn storage_failed(&mut self, what: &'static str, error: &BufferError) {
        self.parts.meters.storage_failures.inc();
        let text = error.to_string();
        if self.storage_warnings.is_due(&text) {
            warn!(error = text, what, "the buffer failed; it is tried again");
        }
        self.storage_fails = true;
        if error.fault() == Fault::Halt {
            self.broken = Some(error.clone());
        }
        self.parts.buffer_health.waiting(text.clone());
        self.last_error = Some(text);
    }

    /// Shows the health of the file, as the buffer itself reports it.
    pub(super) fn storage_changed(&mut self) {
        let trouble = self.storage.borrow_and_update().trouble.clone();
        match trouble {
            Some(trouble) => self.parts.buffer_health.waiting(trouble.to_string()),
            None if !self.storage_fails => self.parts.buffer_health.ready(),
            None => {}
        }
    }
}
