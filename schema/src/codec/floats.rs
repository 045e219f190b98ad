//! A column of floats, as decimals where they are decimals.
//!
//! ```text
//! value = from_ordered(ordered(m / 10^e) + r)
//!
//! e: 5 bits           0 to 22; 31: no decimals, the column is ordered bits
//! single: 1 bit       m / 10^e is rounded through f32 first
//! mantissas m         a column of whole numbers
//! exact: 1 bit        1: every r is zero and left out; else a column of r
//! ```
//!
//! Correctly rounded division makes r = 0 for ordinary decimals and ±1 or ±2 for the noise of
//! sums; NaN, infinities and −0 are just another r. So nothing is an exception, and every bit
//! pattern comes back. Single is for sensors whose values were f32, and for those whose values
//! came through text or a sum since: `5.0900001525878915` is 5.09 as f32 and one unit more.

use super::DecodeError;
use super::bits::{BitReader, BitWriter};
use super::integers::{self, unzigzag, zigzag};
use super::whole;

/// Highest decimal exponent: 10^22 is the last power of ten that a float holds exactly.
pub(super) const EXPONENT_MAX: u8 = 22;

const EXPONENT_BITS: u32 = 5;
const NO_DECIMALS: u64 = 31;

/// Corrections up to this many units in the last place still count as a decimal.
const NOISE_ULPS_MAX: u64 = 2;

/// The same beside an f32, of which there is one in 2^29 units, so that nothing is there by
/// coincidence: what is left of it when 14 digits are printed.
const SINGLE_NOISE_ULPS_MAX: u64 = 256;

/// A mantissa over this is a coincidence: every float has a decimal of 17 digits.
const MANTISSA_MAX: f64 = 1e15;

/// 1.5 × 2^52: added to anything up to a quarter of it, it takes the fraction away.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// Values of a column that an exponent is searched for.
const SAMPLE: usize = 48;

/// Columns of a sensor between two searches.
const HINT_USES: u32 = 64;

const POWERS: [f64; EXPONENT_MAX as usize + 1] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// Memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    numbers: Vec<i64>,
    corrections: Vec<u64>,
    /// How many corrections are not zero.
    corrected: usize,
    column: Vec<u64>,
}

/// How a column is represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Decimal { exponent: u8, single: bool },
    Ordered,
}

/// How a sensor's columns were represented last, so that most columns need no search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    form: Form,
    /// Quarters of a bit a value, above which the form is searched again.
    bits_max: u32,
    /// Columns before it is searched again in any case: the next one may do better.
    uses: u32,
}

impl Default for Hint {
    fn default() -> Self {
        Self {
            form: Form::Ordered,
            bits_max: 0,
            uses: 0,
        }
    }
}

/// Writes at least one value. `hint` is how this sensor fared last.
pub(super) fn write(values: &[f64], hint: &mut Hint, scratch: &mut Scratch, out: &mut BitWriter) {
    let form = choose(values, hint, scratch);
    match form {
        Form::Ordered => out.write(NO_DECIMALS, EXPONENT_BITS),
        Form::Decimal { exponent, single } => {
            out.write(u64::from(exponent), EXPONENT_BITS);
            out.write(u64::from(single), 1);
        }
    }
    whole::write(&scratch.numbers, &mut scratch.column, out);
    if matches!(form, Form::Decimal { .. }) {
        out.write(u64::from(scratch.corrected == 0), 1);
        if scratch.corrected > 0 {
            integers::write(&scratch.corrections, out);
        }
    }
}

/// Reads `count` values into `values`, replacing what it held.
pub(super) fn read(
    reader: &mut BitReader<'_>,
    count: usize,
    column: &mut Vec<u64>,
    numbers: &mut Vec<i64>,
    values: &mut Vec<f64>,
) -> Result<(), DecodeError> {
    values.clear();
    let exponent = reader.read(EXPONENT_BITS);
    if exponent == NO_DECIMALS {
        whole::read(reader, count, column, numbers)?;
        values.extend(numbers.iter().map(|number| from_ordered(*number)));
        return Ok(());
    }
    let power = *POWERS
        .get(exponent as usize)
        .ok_or(DecodeError::Exponent(exponent as u8))?;
    let single = reader.read(1) == 1;
    whole::read(reader, count, column, numbers)?;
    if single {
        values.extend(
            numbers
                .iter()
                .map(|m| f64::from((*m as f64 / power) as f32)),
        );
    } else {
        values.extend(numbers.iter().map(|m| *m as f64 / power));
    }
    if reader.read(1) == 0 {
        integers::read(reader, count, column)?;
        for (value, correction) in values.iter_mut().zip(column.iter()) {
            let number = ordered(*value).wrapping_add(unzigzag(*correction));
            *value = from_ordered(number);
        }
    }
    reader.check()
}

/// Floats as whole numbers in the same order; its own inverse.
fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

fn from_ordered(number: i64) -> f64 {
    f64::from_bits((number ^ (((number >> 63) as u64) >> 1) as i64) as u64)
}

/// Mantissa and correction of one value. One that is too large, or no number, takes the mantissa
/// before it, whose difference costs nothing, and a correction that makes up for all.
#[inline]
fn split(value: f64, power: f64, single: bool, last: i64) -> (i64, i64) {
    let scaled = value * power;
    let mantissa = if scaled.abs() <= MANTISSA_MAX {
        // Rounds to the nearest whole number: the sum has no bits left for a fraction.
        ((scaled + ROUNDER) - ROUNDER) as i64
    } else {
        last
    };
    let decimal = mantissa as f64 / power;
    let decimal = if single {
        f64::from(decimal as f32)
    } else {
        decimal
    };
    (mantissa, ordered(value).wrapping_sub(ordered(decimal)))
}

/// The mantissa of a value that is a decimal with this exponent, give or take what it gathered on
/// its way.
fn decimal(value: f64, exponent: u8, single: bool) -> Option<i64> {
    // No float has both this mantissa and the neighbours that would make it one.
    let (mantissa, correction) = split(value, POWERS[usize::from(exponent)], single, i64::MAX);
    let noise = if single {
        SINGLE_NOISE_ULPS_MAX
    } else {
        NOISE_ULPS_MAX
    };
    (correction.unsigned_abs() <= noise).then_some(mantissa)
}

/// Picks the form for a column, and leaves its mantissas and corrections in `scratch`.
fn choose(values: &[f64], hint: &mut Hint, scratch: &mut Scratch) -> Form {
    let bits = scratch.bits(values, hint.form);
    let as_ever = bits * 4 <= u64::from(hint.bits_max) * values.len() as u64;
    if as_ever && hint.uses > 0 {
        hint.uses -= 1;
        return hint.form;
    }
    let form = cheapest(values, scratch);
    let bits = scratch.bits(values, form);
    *hint = Hint {
        form,
        // In quarters of a bit: a quarter more than now, and one bit for columns of nearly none.
        bits_max: u32::try_from(5 * bits / values.len() as u64 + 4).unwrap_or(u32::MAX),
        uses: HINT_USES,
    };
    form
}

/// Tries the ordered bits, and the exponents that the values need.
fn cheapest(values: &[f64], scratch: &mut Scratch) -> Form {
    let sample = || {
        values
            .iter()
            .copied()
            .step_by(values.len().div_ceil(SAMPLE))
    };
    let mut best = (scratch.bits(values, Form::Ordered), Form::Ordered);
    let mut offer = |needed: &Needed, single: bool| {
        for exponent in needed.exponents() {
            let form = Form::Decimal { exponent, single };
            let bits = scratch.bits(values, form);
            if bits < best.0 {
                best = (bits, form);
            }
        }
    };
    let needed = Needed::by(sample(), false);
    let singles = sample().filter(|value| is_single(*value)).count();
    // Short decimals may be f32 as well, and are none the shorter for it.
    if !needed.all_short && 2 * singles > sample().count() {
        offer(&Needed::by(sample(), true), true);
    }
    offer(&needed, false);
    best.1
}

/// The exponents with which values are decimals.
#[derive(Debug)]
struct Needed {
    /// By exponent: whether one of the values has no lower one.
    exponents: [bool; EXPONENT_MAX as usize + 1],
    /// Whether every value is a decimal whose mantissa an f32 would hold.
    all_short: bool,
}

impl Needed {
    fn by(values: impl Iterator<Item = f64>, single: bool) -> Self {
        let mut needed = Self {
            exponents: [false; EXPONENT_MAX as usize + 1],
            all_short: true,
        };
        for value in values {
            let lowest = (0..=EXPONENT_MAX)
                .find_map(|exponent| Some((exponent, decimal(value, exponent, single)?)));
            if let Some((exponent, _)) = lowest {
                needed.exponents[usize::from(exponent)] = true;
            }
            needed.all_short &= lowest
                .is_some_and(|(_, mantissa)| mantissa.unsigned_abs() < 1 << f32::MANTISSA_DIGITS);
        }
        needed
    }

    /// In ascending order. 0 is among them, which may be best beside NaN and the like.
    fn exponents(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=EXPONENT_MAX)
            .filter(|&exponent| exponent == 0 || self.exponents[usize::from(exponent)])
    }
}

impl Scratch {
    /// Fills the columns of a form, and estimates the bits that they will take.
    fn bits(&mut self, values: &[f64], form: Form) -> u64 {
        let (mut bits, mut last) = (0, 0);
        self.numbers.clear();
        self.corrected = 0;
        match form {
            Form::Ordered => self.numbers.extend(values.iter().map(|&value| {
                let number = ordered(value);
                bits += length(zigzag(number.wrapping_sub(last)));
                last = number;
                number
            })),
            Form::Decimal { exponent, single } => {
                let power = POWERS[usize::from(exponent)];
                self.corrections.clear();
                self.corrections.resize(values.len(), 0);
                let corrections = self.corrections.iter_mut();
                self.numbers
                    .extend(values.iter().zip(corrections).map(|(&value, slot)| {
                        let (mantissa, correction) = split(value, power, single, last);
                        *slot = zigzag(correction);
                        bits += length(zigzag(mantissa.wrapping_sub(last))) + length(*slot);
                        last = mantissa;
                        self.corrected += usize::from(*slot != 0);
                        mantissa
                    }));
                if self.corrected > 0 {
                    // One bit says of each value whether it is corrected.
                    bits += values.len() as u64;
                }
            }
        }
        bits
    }
}

fn length(value: u64) -> u64 {
    u64::from(integers::length(value))
}

/// Whether a value was an f32, give or take what it gathered on its way. NaN and infinities may
/// have been.
fn is_single(value: f64) -> bool {
    let noise = ordered(value).wrapping_sub(ordered(f64::from(value as f32)));
    !value.is_finite() || noise.unsigned_abs() <= SINGLE_NOISE_ULPS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(values: &[f64]) -> (usize, Form) {
        let mut writer = BitWriter::default();
        let mut hint = Hint::default();
        write(values, &mut hint, &mut Scratch::default(), &mut writer);
        let form = hint.form;
        let bytes = writer.finish().to_vec();
        let mut reader = BitReader::new(&bytes);
        let (mut column, mut numbers, mut read_back) = (Vec::new(), Vec::new(), Vec::new());
        read(
            &mut reader,
            values.len(),
            &mut column,
            &mut numbers,
            &mut read_back,
        )
        .unwrap();
        reader.finish().unwrap();
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read_back), bits(values));
        (bytes.len(), form)
    }

    fn float() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (any::<i32>(), 0..9u8).prop_map(|(m, e)| f64::from(m) / POWERS[usize::from(e)]),
            (any::<i16>(), 0..9u8).prop_map(|(m, e)| f64::from(m) / POWERS[usize::from(e)]),
            any::<u32>().prop_map(|bits| f64::from(f32::from_bits(bits))),
            (any::<i32>(), 0..9u8, -300..300i64).prop_map(|(m, e, ulps)| {
                let single = (f64::from(m) / POWERS[usize::from(e)]) as f32;
                beside(f64::from(single), ulps)
            }),
            Just(-0.0),
        ]
    }

    fn beside(value: f64, ulps: i64) -> f64 {
        from_ordered(ordered(value).wrapping_add(ulps))
    }

    proptest! {
        #[test]
        fn any_floats_come_back(values in prop::collection::vec(float(), 1..80)) {
            check(&values);
        }

        #[test]
        fn any_bits_come_back_in_order(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assert_eq!(from_ordered(ordered(value)).to_bits(), bits);
        }
    }

    #[test]
    fn decimals_are_seen_through_noise_and_exceptions() {
        let mut values: Vec<f64> = (0..100).map(|n| f64::from(200 + n % 7) / 10.0).collect();
        assert_eq!(
            check(&values).1,
            Form::Decimal {
                exponent: 1,
                single: false
            }
        );
        values[3] = 51.846_000_000_000_004;
        values[50] = f64::NAN;
        values[51] = f64::INFINITY;
        values[52] = -0.0;
        let (bytes, form) = check(&values);
        assert_eq!(
            form,
            Form::Decimal {
                exponent: 1,
                single: false
            }
        );
        assert!(bytes < 110, "{bytes} bytes");
    }

    #[test]
    fn sensors_of_f32_are_seen() {
        let values: Vec<f64> = (0..100u8)
            .map(|n| f64::from(f32::from(n) / 10.0 + 20.0))
            .collect();
        assert!(matches!(
            check(&values).1,
            Form::Decimal { single: true, .. }
        ));
    }

    #[test]
    fn sensors_of_f32_are_seen_through_noise_of_up_to_256_units() {
        let two_decimals = Form::Decimal {
            exponent: 2,
            single: true,
        };
        let column = |ulps: &dyn Fn(u16) -> i64| -> Vec<f64> {
            (0..100u16)
                .map(|n| {
                    let decimal = f64::from(500 + n * n % 37) / 100.0;
                    beside(f64::from(decimal as f32), ulps(n))
                })
                .collect()
        };
        // About six bits of decimal and three of noise.
        let (bytes, form) = check(&column(&|n| i64::from(n * 7 % 5) - 2));
        assert_eq!(form, two_decimals);
        assert!(bytes < 130, "{bytes} bytes");
        for (ulps, seen) in [(255, true), (256, true), (257, false)] {
            for sign in [1, -1] {
                let (_, form) = check(&column(&|n| sign * (ulps - i64::from(n % 2) * 2 * ulps)));
                assert_eq!(form == two_decimals, seen, "{ulps} units");
            }
        }
    }

    #[test]
    fn some_values_of_another_kind_do_not_hide_an_f32() {
        let mut values: Vec<f64> = (0..100u8)
            .map(|n| {
                beside(
                    f64::from(f32::from(n % 9) / 10.0 + 5.0),
                    i64::from(n % 3) - 1,
                )
            })
            .collect();
        values[7] = f64::NAN;
        values[8] = f64::NEG_INFINITY;
        values[9] = 1.0 / 3.0;
        values[10] = f64::MAX;
        let (bytes, form) = check(&values);
        assert_eq!(
            form,
            Form::Decimal {
                exponent: 1,
                single: true
            }
        );
        assert!(bytes < 150, "{bytes} bytes");
    }

    #[test]
    fn f32_of_full_precision_take_less_than_their_bits() {
        let values: Vec<f64> = (0..200u16)
            .map(|n| {
                let single = (f32::from(n) / 9.0).sin() * 40.0;
                beside(f64::from(single), i64::from(n % 5) - 2)
            })
            .collect();
        let (bytes, form) = check(&values);
        assert!(
            matches!(form, Form::Decimal { single: true, .. }),
            "{form:?}"
        );
        assert!(bytes < 5 * values.len(), "{bytes} bytes");
    }

    #[test]
    fn short_decimals_that_are_f32_too_stay_decimals() {
        let values: Vec<f64> = (0..100u8).map(|n| f64::from(n % 7) / 4.0).collect();
        assert_eq!(
            check(&values).1,
            Form::Decimal {
                exponent: 2,
                single: false
            }
        );
    }

    #[test]
    fn columns_that_are_not_decimal_use_their_bits() {
        let values: Vec<f64> = (1..100).map(|n| f64::from(n).sqrt() * 1e-30).collect();
        assert_eq!(check(&values).1, Form::Ordered);
    }

    #[test]
    fn an_exponent_over_22_is_refused() {
        for (exponent, result) in [
            (22u64, Ok(())),
            (23, Err(DecodeError::Exponent(23))),
            (30, Err(DecodeError::Exponent(30))),
        ] {
            let mut writer = BitWriter::default();
            writer.write(exponent, 5);
            writer.write(0, 1);
            whole::write(&[7], &mut Vec::new(), &mut writer);
            writer.write(1, 1);
            let bytes = writer.finish().to_vec();
            let (mut column, mut numbers, mut values) = (Vec::new(), Vec::new(), Vec::new());
            let mut reader = BitReader::new(&bytes);
            assert_eq!(
                read(&mut reader, 1, &mut column, &mut numbers, &mut values),
                result
            );
        }
    }
}
