//! Numbers scaled in decimal, so that a register of 3 with a scale of 0.1 is 0.3 and not
//! 0.30000000000000004: a scale is written in decimal, and means that.
//!
//! Whatever does not fit into 128 bits of decimal digits is computed in binary instead.

/// `digits` × 10^`exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimal {
    digits: i128,
    exponent: i32,
}

/// Powers of ten that a double holds exactly.
const EXACT_POWER_MAX: usize = 22;
const EXACT_POWERS: [f64; EXACT_POWER_MAX + 1] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// Whole numbers up to here are doubles.
const EXACT_WHOLE_MAX: u128 = 1 << 53;

impl Decimal {
    /// A whole number.
    #[must_use]
    pub const fn whole(digits: i128) -> Self {
        Self {
            digits,
            exponent: 0,
        }
    }

    /// The shortest decimal that reads as this number; `None` for NaN and infinities.
    #[must_use]
    pub fn shortest(number: f64) -> Option<Self> {
        number
            .is_finite()
            .then(|| Self::read(&format!("{number:e}")))?
    }

    /// The shortest decimal that reads as this number, which has fewer digits than the double of the same
    /// value: 5.09, not 5.0900001525878906.
    #[must_use]
    pub fn shortest_single(number: f32) -> Option<Self> {
        number
            .is_finite()
            .then(|| Self::read(&format!("{number:e}")))?
    }

    /// Reads `-1.25e-3`, as Rust writes it.
    fn read(text: &str) -> Option<Self> {
        let (mantissa, exponent) = text.split_once('e')?;
        let exponent: i32 = exponent.parse().ok()?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let behind = i32::try_from(fraction.len()).ok()?;
        Some(Self {
            digits,
            exponent: exponent - behind,
        })
    }

    /// Exactly, or `None`.
    fn times(self, other: Self) -> Option<Self> {
        Some(Self {
            digits: self.digits.checked_mul(other.digits)?,
            exponent: self.exponent.checked_add(other.exponent)?,
        })
    }

    /// Exactly, or `None`.
    fn plus(self, other: Self) -> Option<Self> {
        let exponent = self.exponent.min(other.exponent);
        let at = |one: Self| {
            if one.digits == 0 {
                return Some(0);
            }
            let power = u32::try_from(one.exponent - exponent).ok()?;
            one.digits.checked_mul(10i128.checked_pow(power)?)
        };
        Some(Self {
            digits: at(self)?.checked_add(at(other)?)?,
            exponent,
        })
    }

    /// The nearest double; infinite beyond the largest.
    #[must_use]
    pub fn nearest(self) -> f64 {
        let power = usize::try_from(self.exponent.unsigned_abs()).unwrap_or(usize::MAX);
        if self.digits.unsigned_abs() <= EXACT_WHOLE_MAX && power <= EXACT_POWER_MAX {
            // Both are exact, so that one division or multiplication rounds once: to the nearest.
            let digits = self.digits as f64;
            return match self.exponent {
                ..0 => digits / EXACT_POWERS[power],
                0.. => digits * EXACT_POWERS[power],
            };
        }
        let text = format!("{}e{}", self.digits, self.exponent);
        text.parse().expect("digits and an exponent are a number")
    }
}

/// value = raw × `factor` + `offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    factor: f64,
    offset: f64,
    decimal: Option<(Decimal, Decimal)>,
}

impl Scale {
    /// Both must be finite.
    #[must_use]
    pub fn new(factor: f64, offset: f64) -> Self {
        Self {
            factor,
            offset,
            decimal: Decimal::shortest(factor).zip(Decimal::shortest(offset)),
        }
    }

    /// A number scaled: in decimal where that is exact, else as doubles compute.
    #[must_use]
    pub fn of(self, raw: Decimal) -> f64 {
        let exact = |(factor, offset)| raw.times(factor)?.plus(offset);
        match self.decimal.and_then(exact) {
            Some(scaled) => scaled.nearest(),
            None => self.of_double(raw.nearest()),
        }
    }

    /// A number scaled as doubles compute.
    #[must_use]
    pub fn of_double(self, raw: f64) -> f64 {
        raw * self.factor + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scaled_values_are_what_a_person_computes() {
        for (raw, factor, offset, value) in [
            (3, 0.1, 0.0, 0.3),
            (509, 0.01, 0.0, 5.09),
            (-7, 0.1, 0.0, -0.7),
            (655, 0.1, -40.0, 25.5),
            (1_000_003, 0.001, 0.0, 1000.003),
            (5, 1.0, 0.1, 5.1),
            (0, 0.1, -273.15, -273.15),
            (7, 0.0, 2.5, 2.5),
            (i128::from(u64::MAX), 1e-3, 0.0, 18_446_744_073_709_551.615),
        ] {
            let scaled = Scale::new(factor, offset).of(Decimal::whole(raw));
            assert_eq!(scaled, value, "{raw} × {factor} + {offset}");
        }
    }

    #[test]
    fn singles_keep_their_decimal() {
        for (single, double) in [
            (5.09f32, 5.09),
            (0.1, 0.1),
            (-1e-30, -1e-30),
            (3.402_823_5e38, 3.402_823_5e38),
            (16_777_216.0, 16_777_216.0),
        ] {
            let decimal = Decimal::shortest_single(single).unwrap();
            assert_eq!(decimal.nearest(), double);
        }
        for other in [f32::NAN, f32::INFINITY] {
            assert_eq!(Decimal::shortest_single(other), None);
        }
    }

    #[test]
    fn what_does_not_fit_is_computed_in_binary() {
        let wide = Scale::new(1.234_567_890_123_456_7e300, 9.876_543_210_987_654e-300);
        let scaled = wide.of(Decimal::whole(i128::MAX));
        assert!(scaled.is_infinite(), "{scaled}");
        let scaled = wide.of(Decimal::whole(1));
        assert_eq!(scaled, 1.234_567_890_123_456_7e300);
    }

    proptest! {
        #[test]
        fn the_nearest_double_of_the_shortest_decimal_is_the_number(number in any::<f64>()) {
            prop_assume!(number.is_finite());
            prop_assert_eq!(Decimal::shortest(number).unwrap().nearest(), number);
        }

        #[test]
        fn a_single_reads_back_from_its_double(single in any::<f32>()) {
            prop_assume!(single.is_finite());
            let double = Decimal::shortest_single(single).unwrap().nearest();
            prop_assert_eq!(double, single.to_string().parse::<f64>().unwrap());
            prop_assert_eq!(double as f32, single);
        }

        #[test]
        fn decimal_and_binary_agree_but_for_rounding(
            raw in any::<i32>(), factor in -1e6..1e6f64, offset in -1e6..1e6f64,
        ) {
            let scale = Scale::new(factor, offset);
            let (decimal, binary) = (scale.of(Decimal::whole(raw.into())), scale.of_double(raw.into()));
            let size = (f64::from(raw) * factor).abs() + offset.abs();
            prop_assert!((decimal - binary).abs() <= size * 1e-15, "{} {}", decimal, binary);
        }
    }
}
