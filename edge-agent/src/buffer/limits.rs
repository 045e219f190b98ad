//! Limits and policies that change while the buffer is open.

use super::eviction::Sweep;
use super::{Buffer, BufferError, BufferSettings};

impl Buffer {
    /// Holds to other limits and policies from the next commit on; the file stays. What is above a lower limit gives
    /// way then, as in a buffer that is full.
    ///
    /// # Errors
    /// [`BufferError`]: the settings make no sense, or the buffer is closed.
    pub async fn change_limits(&self, settings: BufferSettings) -> Result<(), BufferError> {
        settings.validate()?;
        self.run(async move |writer| {
            let path = writer.settings.path.clone();
            let has_other_policies = settings.policies != writer.settings.policies;
            if has_other_policies || settings.rows_max != writer.settings.rows_max {
                writer.sweep = Sweep::new(settings.rows_max);
            }
            writer.settings = BufferSettings { path, ..settings };
            if has_other_policies {
                writer.hold_to_policies().await;
            }
            Ok(())
        })
        .await
    }
}
