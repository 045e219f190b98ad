//! Identities: which device, which sensor, which start of its agent.
//!
//! A value of these types has been checked; a function that holds one never checks again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits;

/// A device's enrolled identity: 1–64 characters of `A–Z a–z 0–9 . _ -`, equal to the common name
/// of its certificate and to one level of its topics.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DeviceId(Arc<str>);

/// The common name of a certificate, a device's or a service's: of the characters of a [`DeviceId`]. A device's equals its id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CommonName(Arc<str>);

/// A sensor's name within its device: 1–128 characters of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SensorName(Arc<str>);

/// The identity of one start of an agent (of one buffer file, with agents 0.1), minted at random.
///
/// Forty-eight random bits and never zero: a device whose clock restarts at 1970 must still not
/// mint the same epoch twice, or the ledger would take new readings for delivered ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Epoch(u64);

/// Why a text or number is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has no characters.
    #[error("{what} is empty")]
    Empty {
        /// Which identity was being parsed.
        what: &'static str,
    },
    /// The text has more characters than allowed.
    #[error("{what} has {chars} characters, at most {max} are allowed")]
    TooLong {
        /// Which identity was being parsed.
        what: &'static str,
        /// Characters found.
        chars: usize,
        /// Characters allowed.
        max: usize,
    },
    /// The text has a character that the identity may not hold.
    #[error("{what} holds {character:?}, allowed are {allowed}")]
    Character {
        /// Which identity was being parsed.
        what: &'static str,
        /// The first offending character.
        character: char,
        /// What may stand in such an identity.
        allowed: &'static str,
    },
    /// The number is zero or needs more than 48 bits.
    #[error("epoch {0} is out of range, allowed are 1 to 2^48 - 1")]
    Epoch(u64),
}

/// What all checked texts have in common; `$check` says which are sound.
macro_rules! checked_text {
    ($type:ident, $check:expr) => {
        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(D::Error::custom)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

checked_text!(DeviceId, |text| check_name("device id", text));
checked_text!(CommonName, |text| check_name("common name", text));
checked_text!(SensorName, check_sensor);

impl CommonName {
    /// The id of the device of this name. Whether there is one says the role beside it.
    #[must_use]
    pub fn device_id(&self) -> DeviceId {
        DeviceId(Arc::clone(&self.0))
    }
}

impl From<DeviceId> for CommonName {
    fn from(device: DeviceId) -> Self {
        Self(device.0)
    }
}

impl Epoch {
    /// The highest epoch, 2^48 − 1.
    pub const MAX: u64 = (1 << 48) - 1;

    /// Mints an epoch from random bits; the caller owns the randomness.
    #[must_use]
    pub fn from_random(bits: u64) -> Self {
        Self((bits & Self::MAX).max(1))
    }

    /// The epoch as a number, 1 to 2^48 − 1.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

fn check_name(what: &'static str, text: &str) -> Result<(), IdError> {
    check_length(what, text, limits::DEVICE_ID_CHARS_MAX)?;
    let is_sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    check_characters(what, text, is_sound, "A-Z a-z 0-9 . _ -")
}

fn check_sensor(text: &str) -> Result<(), IdError> {
    const WHAT: &str = "sensor name";
    check_length(WHAT, text, limits::SENSOR_NAME_CHARS_MAX)?;
    check_characters(
        WHAT,
        text,
        |c| !c.is_control(),
        "all but control characters",
    )
}

fn check_characters(
    what: &'static str,
    text: &str,
    is_sound: impl Fn(char) -> bool,
    allowed: &'static str,
) -> Result<(), IdError> {
    match text.chars().find(|c| !is_sound(*c)) {
        None => Ok(()),
        Some(character) => Err(IdError::Character {
            what,
            character,
            allowed,
        }),
    }
}

fn check_length(what: &'static str, text: &str, max: usize) -> Result<(), IdError> {
    match text.chars().count() {
        0 => Err(IdError::Empty { what }),
        chars if chars > max => Err(IdError::TooLong { what, chars, max }),
        _ => Ok(()),
    }
}

impl TryFrom<u64> for Epoch {
    type Error = IdError;

    fn try_from(number: u64) -> Result<Self, IdError> {
        match number {
            1..=Self::MAX => Ok(Self(number)),
            _ => Err(IdError::Epoch(number)),
        }
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(u64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_bounded_at_64_characters() {
        assert!("d".repeat(63).parse::<DeviceId>().is_ok());
        assert!("d".repeat(64).parse::<DeviceId>().is_ok());
        assert_eq!(
            "d".repeat(65).parse::<DeviceId>(),
            Err(IdError::TooLong {
                what: "device id",
                chars: 65,
                max: 64
            })
        );
        assert!("".parse::<DeviceId>().is_err());
    }

    #[test]
    fn a_device_id_holds_no_topic_syntax() {
        assert!("Press-7.a_b".parse::<DeviceId>().is_ok());
        for bad in ["a/b", "+", "#", "$share", "a b", "ü", "a\0"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_sensor_name_is_bounded_at_128_characters_of_any_width() {
        assert!("°".repeat(127).parse::<SensorName>().is_ok());
        assert!("°".repeat(128).parse::<SensorName>().is_ok());
        assert!("°".repeat(129).parse::<SensorName>().is_err());
        assert!("line/1 °C".parse::<SensorName>().is_ok());
        assert!("a\nb".parse::<SensorName>().is_err());
        assert!("".parse::<SensorName>().is_err());
    }

    #[test]
    fn an_epoch_is_never_zero_and_fits_48_bits() {
        assert_eq!(Epoch::from_random(0).get(), 1);
        assert_eq!(Epoch::from_random(u64::MAX).get(), Epoch::MAX);
        assert!(Epoch::try_from(0).is_err());
        assert!(Epoch::try_from(Epoch::MAX).is_ok());
        assert!(Epoch::try_from(Epoch::MAX + 1).is_err());
    }
}
