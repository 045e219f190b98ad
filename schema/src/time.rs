//! When a reading was taken, on the device's clock, and when the bridge took it, on its own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch at which a reading was taken. Sources stamp in whole
/// milliseconds unless asked for more: the codec then saves 1.2 bytes a reading.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ObservedAt(i64);

impl ObservedAt {
    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From milliseconds since the Unix epoch; saturates at the ends of the range.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// Microseconds since the Unix epoch at which the bridge took something, on the bridge's clock.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ReceivedAt(i64);

impl ReceivedAt {
    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// So long before; saturates.
    #[must_use]
    pub fn minus(self, age: Duration) -> Self {
        let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_rounded_down_before_1970_too() {
        for (micros, millis) in [
            (1_999, 1),
            (1_000, 1),
            (999, 0),
            (0, 0),
            (-1, -1),
            (-1_001, -2),
        ] {
            assert_eq!(ObservedAt::from_micros(micros).millis(), millis, "{micros}");
            assert_eq!(ReceivedAt::from_micros(micros).millis(), millis, "{micros}");
        }
    }

    #[test]
    fn milliseconds_beyond_the_range_become_its_ends() {
        let micros = |millis| ObservedAt::from_millis(millis).micros();
        assert_eq!(micros(i64::MAX / 1000), i64::MAX / 1000 * 1000);
        assert_eq!(micros(i64::MAX / 1000 + 1), i64::MAX);
        assert_eq!(micros(i64::MIN), i64::MIN);
    }
}
