//! Registers of one point → its value. Pure; a fuzz target and property tests drive it with whatever a
//! device may send.

use std::fmt;

use schema::Value;
use serde::Deserialize;

use super::decimal::{Decimal, Scale};

/// In what order the bytes of a value stand in its registers. A device's manual often says it with four letters, of which
/// A is the most significant byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// ABCD: as the protocol has it.
    #[default]
    #[serde(alias = "ABCD")]
    Big,
    /// DCBA: the whole value backwards.
    #[serde(alias = "DCBA")]
    Little,
    /// CDAB: the least significant register first, each register as the protocol has it.
    #[serde(alias = "CDAB")]
    SwappedWords,
    /// BADC: the most significant register first, the bytes of each swapped.
    #[serde(alias = "BADC")]
    SwappedBytes,
}

/// What the registers of a point hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 16 bits, from 0.
    U16,
    /// 16 bits, two's complement.
    I16,
    /// 32 bits, from 0.
    U32,
    /// 32 bits, two's complement.
    I32,
    /// 64 bits, from 0.
    U64,
    /// 64 bits, two's complement.
    I64,
    /// A single of IEEE 754.
    F32,
    /// A double of IEEE 754.
    F64,
    /// One bit of a register, counted from the least significant, 0.
    Bit(u8),
    /// UTF-8, two bytes a register, up to the first NUL; blanks at its end are padding.
    Text {
        /// How many registers it fills.
        registers: u16,
    },
}

/// How the registers of a point become a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoding {
    /// What they hold.
    pub kind: Kind,
    /// In what order.
    pub order: Order,
    /// What makes a measure of the number; without it whole numbers stay whole.
    pub scale: Option<Scale>,
    /// Whether a single is taken as the double of the same value, rather than as its decimal.
    pub exact: bool,
}

/// Why registers hold no value that can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// NaN or an infinity, which devices send for a broken sensor.
    #[error("it is not a finite number")]
    NotFinite,
    /// A whole number above the largest of 64 bits with a sign.
    #[error("{0} is more than a whole number can hold; give it a scale")]
    TooLarge(u64),
    /// Bytes that are no text.
    #[error("its bytes are not UTF-8")]
    NotUtf8,
    /// Fewer registers than the type has.
    #[error("{found} registers instead of {expected}")]
    Short {
        /// Registers that there are.
        found: usize,
        /// Registers of its type.
        expected: u16,
    },
}

impl DecodeError {
    /// The error as it stands in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::TooLarge(_) => "out_of_range",
            Self::NotUtf8 => "bad_text",
            Self::Short { .. } => "malformed",
        }
    }
}

impl Kind {
    /// How many registers it fills.
    #[must_use]
    pub const fn registers(self) -> u16 {
        match self {
            Self::U16 | Self::I16 | Self::Bit(_) => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
            Self::Text { registers } => registers,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bit(_) => "bit",
            Self::Text { .. } => "string",
        })
    }
}

impl Order {
    /// The order's bytes put as the protocol has them: the most significant first.
    fn straighten(self, registers: &[u16]) -> impl Iterator<Item = u16> {
        let count = registers.len();
        let from_the_end = matches!(self, Self::Little | Self::SwappedWords);
        let swapped = matches!(self, Self::Little | Self::SwappedBytes);
        (0..count).map(move |at| {
            let register = registers[if from_the_end { count - 1 - at } else { at }];
            if swapped {
                register.swap_bytes()
            } else {
                register
            }
        })
    }
}

impl Encoding {
    /// The value of a point's registers; what stands behind them is not looked at.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(&self, registers: &[u16]) -> Result<Value, DecodeError> {
        let expected = self.kind.registers();
        let Some(registers) = registers.get(..usize::from(expected)) else {
            let found = registers.len();
            return Err(DecodeError::Short { found, expected });
        };
        let bits = || {
            let registers = self.order.straighten(registers);
            registers.fold(0u64, |bits, register| bits << 16 | u64::from(register))
        };
        // No bit is lost: a type has as many as its registers.
        match self.kind {
            Kind::U16 | Kind::U32 | Kind::U64 => self.whole(bits().into()),
            Kind::I16 => self.whole((bits() as u16 as i16).into()),
            Kind::I32 => self.whole((bits() as u32 as i32).into()),
            Kind::I64 => self.whole((bits() as i64).into()),
            Kind::F32 => self.single(f32::from_bits(bits() as u32)),
            Kind::F64 => self.double(f64::from_bits(bits())),
            Kind::Bit(place) => Ok(Value::Bool(bits() >> place & 1 == 1)),
            Kind::Text { .. } => text(self.order.straighten(registers)),
        }
    }

    fn whole(&self, number: i128) -> Result<Value, DecodeError> {
        match self.scale {
            Some(scale) => finite(scale.of(Decimal::whole(number))),
            None => i64::try_from(number)
                .map(Value::I64)
                .map_err(|_| DecodeError::TooLarge(number as u64)),
        }
    }

    fn single(&self, number: f32) -> Result<Value, DecodeError> {
        if self.exact {
            return self.double(number.into());
        }
        let decimal = Decimal::shortest_single(number).ok_or(DecodeError::NotFinite)?;
        finite(match self.scale {
            Some(scale) => scale.of(decimal),
            // The sign of zero is lost in decimal.
            None if number == 0.0 => number.into(),
            None => decimal.nearest(),
        })
    }

    fn double(&self, number: f64) -> Result<Value, DecodeError> {
        let Some(scale) = self.scale else {
            return finite(number);
        };
        match Decimal::shortest(number) {
            Some(decimal) if !self.exact => finite(scale.of(decimal)),
            _ => finite(scale.of_double(number)),
        }
    }
}

fn finite(number: f64) -> Result<Value, DecodeError> {
    match number.is_finite() {
        true => Ok(Value::F64(number)),
        false => Err(DecodeError::NotFinite),
    }
}

fn text(registers: impl Iterator<Item = u16>) -> Result<Value, DecodeError> {
    let mut bytes: Vec<u8> = registers.flat_map(u16::to_be_bytes).collect();
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    let text = String::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8)?;
    Ok(Value::Text(text.trim_end_matches(' ').into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Order; 4] = [
        Order::Big,
        Order::Little,
        Order::SwappedWords,
        Order::SwappedBytes,
    ];

    fn plain(kind: Kind, order: Order) -> Encoding {
        Encoding {
            kind,
            order,
            scale: None,
            exact: false,
        }
    }

    fn scaled(kind: Kind, factor: f64, offset: f64) -> Encoding {
        let scale = Some(Scale::new(factor, offset));
        let plain = plain(kind, Order::Big);
        Encoding { scale, ..plain }
    }

    /// The registers of a value whose most significant byte is first, in an order.
    fn registers(bytes: &[u8], order: Order) -> Vec<u16> {
        let mut bytes = bytes.to_vec();
        match order {
            Order::Big => {}
            Order::Little => bytes.reverse(),
            Order::SwappedWords => {
                bytes = bytes.chunks(2).rev().flatten().copied().collect();
            }
            Order::SwappedBytes => bytes.chunks_mut(2).for_each(<[u8]>::reverse),
        }
        let pairs = bytes.chunks(2);
        pairs
            .map(|two| u16::from_be_bytes([two[0], two[1]]))
            .collect()
    }

    #[test]
    fn the_letters_of_manuals_are_what_they_say() {
        let value = 0x0A0B_0C0Du32;
        for (order, sent) in [
            (Order::Big, [0x0A0B, 0x0C0D]),
            (Order::Little, [0x0D0C, 0x0B0A]),
            (Order::SwappedWords, [0x0C0D, 0x0A0B]),
            (Order::SwappedBytes, [0x0B0A, 0x0D0C]),
        ] {
            let read = plain(Kind::U32, order).decode(&sent).unwrap();
            assert_eq!(read, Value::I64(value.into()), "{order:?}");
        }
    }

    #[test]
    fn every_type_is_read_in_every_order() {
        for order in ORDERS {
            let check = |kind, bytes: &[u8], value| {
                let sent = registers(bytes, order);
                assert_eq!(
                    plain(kind, order).decode(&sent),
                    Ok(value),
                    "{kind} {order:?}"
                );
            };
            check(Kind::U16, &0xFF01u16.to_be_bytes(), Value::I64(0xFF01));
            check(Kind::I16, &(-2i16).to_be_bytes(), Value::I64(-2));
            check(Kind::U32, &u32::MAX.to_be_bytes(), Value::I64(0xFFFF_FFFF));
            check(
                Kind::I32,
                &(-123_456i32).to_be_bytes(),
                Value::I64(-123_456),
            );
            check(Kind::U64, &(1u64 << 62).to_be_bytes(), Value::I64(1 << 62));
            check(Kind::I64, &i64::MIN.to_be_bytes(), Value::I64(i64::MIN));
            check(Kind::F32, &5.09f32.to_be_bytes(), Value::F64(5.09));
            check(Kind::F64, &(-1e-7f64).to_be_bytes(), Value::F64(-1e-7));
            for (place, set) in [(0, true), (1, false), (14, false), (15, true)] {
                check(Kind::Bit(place), &0x8001u16.to_be_bytes(), Value::Bool(set));
            }
        }
    }

    #[test]
    fn a_single_is_its_decimal_unless_it_is_to_be_exact() {
        let sent = registers(&5.09f32.to_be_bytes(), Order::Big);
        let decimal = plain(Kind::F32, Order::Big);
        assert_eq!(decimal.decode(&sent), Ok(Value::F64(5.09)));
        let exact = Encoding {
            exact: true,
            ..decimal
        };
        assert_eq!(exact.decode(&sent), Ok(Value::F64(5.090_000_152_587_891)));
        let scaled = scaled(Kind::F32, 10.0, 0.0);
        assert_eq!(scaled.decode(&sent), Ok(Value::F64(50.9)));
    }

    #[test]
    fn scaled_numbers_are_fractions_and_others_whole() {
        assert_eq!(
            scaled(Kind::U16, 0.1, -40.0).decode(&[655]),
            Ok(Value::F64(25.5))
        );
        assert_eq!(
            scaled(Kind::I16, 1.0, 0.0).decode(&[5]),
            Ok(Value::F64(5.0))
        );
        assert_eq!(plain(Kind::I16, Order::Big).decode(&[5]), Ok(Value::I64(5)));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let nan = registers(&f32::NAN.to_be_bytes(), Order::Big);
        let infinity = registers(&f64::NEG_INFINITY.to_be_bytes(), Order::Big);
        let single = plain(Kind::F32, Order::Big);
        assert_eq!(single.decode(&nan), Err(DecodeError::NotFinite));
        assert_eq!(
            Encoding {
                exact: true,
                ..single
            }
            .decode(&nan),
            Err(DecodeError::NotFinite)
        );
        let double = plain(Kind::F64, Order::Big);
        assert_eq!(double.decode(&infinity), Err(DecodeError::NotFinite));
        assert_eq!(
            scaled(Kind::F64, 2.0, 0.0).decode(&infinity),
            Err(DecodeError::NotFinite)
        );
        let largest = registers(&f64::MAX.to_be_bytes(), Order::Big);
        assert_eq!(
            scaled(Kind::F64, 2.0, 0.0).decode(&largest),
            Err(DecodeError::NotFinite)
        );
        let short = Err(DecodeError::Short {
            found: 3,
            expected: 4,
        });
        assert_eq!(double.decode(&[0; 3]), short);
        let unsigned = plain(Kind::U64, Order::Big);
        let largest = i64::MAX as u64;
        for (number, value) in [
            (largest - 1, Ok(Value::I64(i64::MAX - 1))),
            (largest, Ok(Value::I64(i64::MAX))),
            (largest + 1, Err(DecodeError::TooLarge(largest + 1))),
        ] {
            let sent = registers(&number.to_be_bytes(), Order::Big);
            assert_eq!(unsigned.decode(&sent), value);
        }
    }

    #[test]
    fn a_text_ends_at_its_padding() {
        let decode = |bytes: &[u8], order| {
            let kind = Kind::Text {
                registers: u16::try_from(bytes.len() / 2).unwrap(),
            };
            plain(kind, order).decode(&registers(bytes, order))
        };
        for (bytes, text) in [
            (&b"PM5560\0\0"[..], "PM5560"),
            (b"PM5560  ", "PM5560"),
            (b"a\0bc", "a"),
            (b"\0\0", ""),
            ("°C\0".as_bytes(), "°C"),
        ] {
            let text = Value::Text(text.into());
            assert_eq!(decode(bytes, Order::Big), Ok(text.clone()));
            assert_eq!(decode(bytes, Order::SwappedBytes), Ok(text));
        }
        assert_eq!(decode(&[0xFF, 0xFE], Order::Big), Err(DecodeError::NotUtf8));
    }

    proptest! {
        #[test]
        fn no_registers_panic_and_all_values_can_be_kept(
            sent in prop::collection::vec(any::<u16>(), 0..10),
            kind in prop::sample::select(vec![
                Kind::U16, Kind::I16, Kind::U32, Kind::I32, Kind::U64, Kind::I64, Kind::F32, Kind::F64,
                Kind::Bit(15), Kind::Text { registers: 5 },
            ]),
            order in prop::sample::select(ORDERS.to_vec()),
            scale in prop::option::of((any::<f64>(), any::<f64>())),
            exact in any::<bool>(),
        ) {
            let scale = scale.map(|(factor, offset)| Scale::new(factor, offset));
            if let Ok(value) = (Encoding { kind, order, scale, exact }).decode(&sent) {
                prop_assert_eq!(value.validate(), Ok(()));
            }
        }

        #[test]
        fn whole_numbers_come_back(number in any::<i64>(), order in prop::sample::select(ORDERS.to_vec())) {
            let sent = registers(&number.to_be_bytes(), order);
            prop_assert_eq!(plain(Kind::I64, order).decode(&sent), Ok(Value::I64(number)));
        }
    }
}
