//! The buffer's settings, each with the reason for its default.

use std::path::PathBuf;
use std::time::Duration;

use super::paths::Paths;
use super::policy::Policies;

/// Settings of one buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSettings {
    /// The libSQL file. Beside it stand `PATH-wal`, `PATH.lock`, `PATH.reserve` and, after damage,
    /// `PATH.damaged-TIME`; for a while `PATH.new` or `PATH.copy`.
    pub path: PathBuf,
    /// Most pending readings. A million readings are 40 MB, or 28 hours at ten a second.
    pub rows_max: u64,
    /// Most bytes of pending readings, counted as [`super::row_bytes`] has it. Only long texts
    /// reach it before `rows_max`.
    pub bytes_max: u64,
    /// Most readings in quarantine, beside those that are pending. `None`: a tenth of `rows_max`.
    pub quarantine_rows_max: Option<u64>,
    /// Most bytes of readings in quarantine. `None`: a tenth of `bytes_max`, with room for some at least. What is there was
    /// refused, and is worth keeping until somebody has looked; it must not take the disk of what
    /// flows.
    pub quarantine_bytes_max: Option<u64>,
    /// How long an append may wait for others to share its commit. Flash wears by commits, not by
    /// readings: half a second halves the wear of a quarter, and is as long as the sync session
    /// lets a reading wait anyway. See `docs/flash-wear.md`.
    pub linger: Duration,
    /// How long an acknowledgement may wait for an append to share its commit. A crash that
    /// forgets one costs a retransmission, so it may wait much longer.
    pub settle_linger: Duration,
    /// What gives way when the buffer is full, how old readings may become, and which go first.
    pub policies: Policies,
    /// The part of the rows or bytes from which on the log and the status warn that the buffer fills.
    pub warn_at: f64,
}

/// A setting that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// No room for even one reading.
    #[error("rows_max is 0, at least 1 reading must fit")]
    RowsMax,
    /// No room for even one reading with the longest text.
    #[error("bytes_max is {0}, at least {min} are needed", min = BufferSettings::BYTES_MIN)]
    BytesMax(u64),
    /// No room for even one refused reading: it would be given up at once.
    #[error("quarantine_rows_max is 0, at least 1 reading must fit")]
    QuarantineRowsMax,
    /// No room for even one refused reading with the longest text.
    #[error("quarantine_bytes_max is {0}, at least {min} are needed", min = BufferSettings::BYTES_MIN)]
    QuarantineBytesMax(u64),
    /// Waiting so long that sources stand still.
    #[error("linger is {0:?}, at most {max:?} are allowed", max = BufferSettings::LINGER_MAX)]
    Linger(Duration),
    /// Waiting so long that a crash repeats much.
    #[error("settle_linger is {0:?}, at most {max:?} are allowed", max = BufferSettings::SETTLE_LINGER_MAX)]
    SettleLinger(Duration),
    /// No part of the whole.
    #[error("warn_at is {0}, a part from 0.1 to 1 is needed; 1 warns when nothing is left")]
    WarnAt(f64),
    /// So short that a reading has no time to be sent.
    #[error("age_max is {0:?}, from {min:?} to {max:?} are allowed", min = BufferSettings::AGE_MIN, max = BufferSettings::AGE_MAX)]
    Age(Duration),
}

impl BufferSettings {
    /// Fewest bytes that a buffer must be allowed: some readings with the longest text fit.
    pub const BYTES_MIN: u64 = 4 * 1024;

    /// Longest wait of an append.
    pub const LINGER_MAX: Duration = Duration::from_secs(10);

    /// Longest wait of an acknowledgement.
    pub const SETTLE_LINGER_MAX: Duration = Duration::from_secs(60);

    /// The least part of the limits at which to warn.
    pub const WARN_AT_MIN: f64 = 0.1;

    /// The shortest age at which a reading may be given up.
    pub const AGE_MIN: Duration = Duration::from_secs(1);

    /// The longest: ten years.
    pub const AGE_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

    /// The defaults, over the file at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            rows_max: 1_000_000,
            bytes_max: 256 * 1024 * 1024,
            quarantine_rows_max: None,
            quarantine_bytes_max: None,
            linger: Duration::from_millis(500),
            settle_linger: Duration::from_secs(5),
            policies: Policies::default(),
            warn_at: 0.8,
        }
    }

    /// The files that the buffer has or may make, but for those of damaged ones.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        Paths::of(&self.path).all()
    }

    /// Most rows and bytes in quarantine.
    #[must_use]
    pub fn quarantine_max(&self) -> (u64, u64) {
        let tenth = |all: u64| all.div_ceil(10);
        (
            self.quarantine_rows_max.unwrap_or(tenth(self.rows_max)),
            self.quarantine_bytes_max
                .unwrap_or(tenth(self.bytes_max).max(Self::BYTES_MIN)),
        )
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The first [`SettingsError`].
    pub fn validate(&self) -> Result<(), SettingsError> {
        if self.rows_max == 0 {
            return Err(SettingsError::RowsMax);
        }
        if self.bytes_max < Self::BYTES_MIN {
            return Err(SettingsError::BytesMax(self.bytes_max));
        }
        if self.quarantine_rows_max == Some(0) {
            return Err(SettingsError::QuarantineRowsMax);
        }
        if let Some(bytes) = self.quarantine_bytes_max
            && bytes < Self::BYTES_MIN
        {
            return Err(SettingsError::QuarantineBytesMax(bytes));
        }
        if self.linger > Self::LINGER_MAX {
            return Err(SettingsError::Linger(self.linger));
        }
        if self.settle_linger > Self::SETTLE_LINGER_MAX {
            return Err(SettingsError::SettleLinger(self.settle_linger));
        }
        if !(Self::WARN_AT_MIN..=1.0).contains(&self.warn_at) {
            return Err(SettingsError::WarnAt(self.warn_at));
        }
        let mut ages = self.policies.ages().into_iter();
        if let Some(age) = ages.find(|age| !(Self::AGE_MIN..=Self::AGE_MAX).contains(age)) {
            return Err(SettingsError::Age(age));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::policy::Policy;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(BufferSettings::new("buffer.db").validate(), Ok(()));
    }

    #[test]
    fn each_limit_holds_at_its_value() {
        let check = |change: fn(&mut BufferSettings), valid: bool| {
            let mut settings = BufferSettings::new("buffer.db");
            change(&mut settings);
            assert_eq!(settings.validate().is_ok(), valid, "{settings:?}");
        };
        check(|s| s.rows_max = 1, true);
        check(|s| s.rows_max = 0, false);
        check(|s| s.bytes_max = BufferSettings::BYTES_MIN, true);
        check(|s| s.bytes_max = BufferSettings::BYTES_MIN - 1, false);
        check(|s| s.quarantine_rows_max = Some(1), true);
        check(|s| s.quarantine_rows_max = Some(0), false);
        check(
            |s| s.quarantine_bytes_max = Some(BufferSettings::BYTES_MIN),
            true,
        );
        check(
            |s| s.quarantine_bytes_max = Some(BufferSettings::BYTES_MIN - 1),
            false,
        );
        check(|s| s.warn_at = BufferSettings::WARN_AT_MIN, true);
        check(|s| s.warn_at = 0.0999, false);
        check(|s| s.warn_at = 1.0, true);
        check(|s| s.warn_at = 1.001, false);
        check(|s| s.warn_at = f64::NAN, false);
        let aged = |age| Policies::of_rules(Policy::DropOldest, Some(age), Vec::new());
        let second = Duration::from_secs(1);
        for (age, valid) in [
            (BufferSettings::AGE_MIN, true),
            (BufferSettings::AGE_MIN - second / 1000, false),
            (BufferSettings::AGE_MAX, true),
            (BufferSettings::AGE_MAX + second, false),
        ] {
            let mut settings = BufferSettings::new("buffer.db");
            settings.policies = aged(age);
            assert_eq!(settings.validate().is_ok(), valid, "{age:?}");
        }
        check(|s| s.linger = Duration::ZERO, true);
        check(|s| s.linger = BufferSettings::LINGER_MAX, true);
        check(|s| s.linger += BufferSettings::LINGER_MAX, false);
        check(
            |s| s.settle_linger = BufferSettings::SETTLE_LINGER_MAX,
            true,
        );
        check(
            |s| s.settle_linger += BufferSettings::SETTLE_LINGER_MAX,
            false,
        );
    }
}
