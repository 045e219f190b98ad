//! Serial numbers of certificates, which revocation lists name.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The most bytes that RFC 5280 allows.
const BYTES_MAX: usize = 20;

/// Random bytes of a new serial number: 127 random bits never meet by chance.
const BYTES_NEW: usize = 16;

/// A serial number: a positive number, held without leading zeros.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// A text or number that is no serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a serial number: use 1 to 40 hexadecimal digits, as `certs list` prints them")]
pub struct SerialError;

impl Serial {
    /// A new serial number at random: two authorities' lists never mean each other's.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes: [u8; BYTES_NEW] = rand::random();
        // Positive and sixteen bytes long in DER, whatever the dice say.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes.to_vec())
    }

    /// The serial number as DER holds it, where zeros may lead.
    ///
    /// # Errors
    /// [`SerialError`] when it is zero or too long.
    pub fn from_der(bytes: &[u8]) -> Result<Self, SerialError> {
        let start = bytes.iter().position(|byte| *byte != 0);
        match start.map(|start| &bytes[start..]) {
            Some(bytes) if bytes.len() <= BYTES_MAX => Ok(Self(bytes.to_vec())),
            _ => Err(SerialError),
        }
    }

    /// Its bytes, highest first, without leading zeros.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    /// Reads hexadecimal digits in either case, also in pairs with colons as openssl prints them.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let padded = if digits.len() % 2 == 1 {
            format!("0{digits}")
        } else {
            digits
        };
        Self::from_der(&hex::decode(padded).map_err(|_| SerialError)?)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssls_spellings_mean_the_same_number() {
        let serial: Serial = "0a1b2c".parse().unwrap();
        for text in ["a1b2c", "0A1B2C", "0A:1B:2C", "000a1b2c"] {
            assert_eq!(text.parse(), Ok(serial.clone()), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "0", "00", "xyz", "12 34", "-1", &"f".repeat(41)] {
            assert_eq!(text.parse::<Serial>(), Err(SerialError), "{text}");
        }
        assert!("f".repeat(40).parse::<Serial>().is_ok());
    }

    #[test]
    fn new_ones_are_positive_sixteen_bytes_and_differ() {
        let (one, other) = (Serial::random(), Serial::random());
        assert!(one.as_bytes().len() == 16 && one.as_bytes()[0] < 0x80);
        assert_ne!(one, other);
    }
}
