//! A column of signed numbers: whole values, decimal mantissas, or ordered bits of floats.
//!
//! ```text
//! order: 2 bits          0 around a base · 1 differences · 2 differences of differences
//! divisor − 1: varint    of all residuals, wrapping; 0 nearly always
//! base or first: varint, zigzag
//! residuals: one column (order 0: all; else all but the first)
//! ```
//!
//! Arithmetic wraps, so that any 64 bits come back.

use super::DecodeError;
use super::bits::{BitReader, BitWriter};
use super::integers::{self, unzigzag, zigzag};

const ORDER_BITS: u32 = 2;

/// Writes at least one value. `column` is memory that is used again.
pub(super) fn write(values: &[i64], column: &mut Vec<u64>, out: &mut BitWriter) {
    let first = values[0];
    column.clear();
    if values.iter().all(|value| *value == first) {
        column.resize(values.len() - 1, 0);
        return write_column(1, 1, first, column, out);
    }
    let base = base(values);
    let order = cheapest_order(values, base);
    let mut start = first;
    match order {
        0 => {
            start = base;
            column.extend(values.iter().map(|value| zigzag(value.wrapping_sub(base))));
        }
        1 => column.extend(differences(values).map(zigzag)),
        _ => {
            let mut last = 0;
            column.extend(differences(values).map(|difference| {
                let residual = difference.wrapping_sub(last);
                last = difference;
                zigzag(residual)
            }));
        }
    }
    let divisor = common_divisor(column);
    if divisor > 1 {
        for residual in &mut *column {
            *residual = zigzag(unzigzag(*residual) / divisor);
        }
    }
    write_column(order, divisor, start, column, out);
}

fn write_column(order: u64, divisor: i64, start: i64, column: &[u64], out: &mut BitWriter) {
    out.write(order, ORDER_BITS);
    out.write_varint(divisor as u64 - 1);
    out.write_varint(zigzag(start));
    integers::write(column, out);
}

/// Reads `count` values into `values`, replacing what it held.
pub(super) fn read(
    reader: &mut BitReader<'_>,
    count: usize,
    column: &mut Vec<u64>,
    values: &mut Vec<i64>,
) -> Result<(), DecodeError> {
    let order = reader.read(ORDER_BITS);
    let divisor = reader
        .read_varint()?
        .checked_add(1)
        .and_then(|divisor| i64::try_from(divisor).ok())
        .ok_or(DecodeError::Divisor)?;
    let start = unzigzag(reader.read_varint()?);
    let residual = |value: &u64| unzigzag(*value).wrapping_mul(divisor);
    values.clear();
    match order {
        0 => {
            integers::read(reader, count, column)?;
            values.extend(
                column
                    .iter()
                    .map(|value| start.wrapping_add(residual(value))),
            );
        }
        1 => {
            integers::read(reader, count.saturating_sub(1), column)?;
            let mut last = start;
            values.push(start);
            values.extend(column.iter().map(|value| {
                last = last.wrapping_add(residual(value));
                last
            }));
        }
        2 => {
            integers::read(reader, count.saturating_sub(1), column)?;
            let (mut last, mut slope) = (start, 0i64);
            values.push(start);
            values.extend(column.iter().map(|value| {
                slope = slope.wrapping_add(residual(value));
                last = last.wrapping_add(slope);
                last
            }));
        }
        _ => return Err(DecodeError::Order),
    }
    Ok(())
}

fn differences(values: &[i64]) -> impl Iterator<Item = i64> + '_ {
    values.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]))
}

/// By the lengths of the residuals, which tell the orders apart without coding them.
fn cheapest_order(values: &[i64], base: i64) -> u64 {
    let (mut last, mut slope) = (values[0], 0i64);
    let mut lengths = [length(values[0].wrapping_sub(base)), 0, 0];
    for &value in &values[1..] {
        let difference = value.wrapping_sub(last);
        lengths[0] += length(value.wrapping_sub(base));
        lengths[1] += length(difference);
        lengths[2] += length(difference.wrapping_sub(slope));
        last = value;
        slope = difference;
    }
    let mut order = 1;
    for other in [0, 2] {
        if lengths[other] < lengths[order] {
            order = other;
        }
    }
    order as u64
}

fn length(residual: i64) -> u64 {
    u64::from(integers::length(zigzag(residual)))
}

/// A value near the middle that differs from the first by a multiple of whatever divides all
/// differences: one of the values themselves.
fn base(values: &[i64]) -> i64 {
    // Floats are near enough, do not overflow, and are quick.
    let sum: f64 = values.iter().map(|&value| value as f64).sum();
    let mean = sum / values.len() as f64;
    let mut best = (f64::INFINITY, values[0]);
    for &value in values {
        let distance = (value as f64 - mean).abs();
        if distance < best.0 {
            best = (distance, value);
        }
    }
    best.1
}

/// The greatest common divisor of all residuals, which come as [`zigzag`]; at least 1 and at most
/// what a signed number holds.
fn common_divisor(column: &[u64]) -> i64 {
    // One and minus one are common, and a division is slow.
    if column.iter().any(|residual| matches!(residual, 1 | 2)) {
        return 1;
    }
    let mut divisor = 0u64;
    for residual in column {
        // The magnitude: a half, rounded up.
        let mut other = (residual >> 1) + (residual & 1);
        while other != 0 {
            (divisor, other) = (other, divisor % other);
        }
        if divisor == 1 {
            return 1;
        }
    }
    i64::try_from(divisor.max(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(values: &[i64]) -> usize {
        let mut writer = BitWriter::default();
        write(values, &mut Vec::new(), &mut writer);
        let bytes = writer.finish().to_vec();
        let mut reader = BitReader::new(&bytes);
        let (mut column, mut read_back) = (Vec::new(), Vec::new());
        read(&mut reader, values.len(), &mut column, &mut read_back).unwrap();
        reader.finish().unwrap();
        assert_eq!(read_back, values);
        bytes.len()
    }

    proptest! {
        #[test]
        fn any_values_come_back(values in prop::collection::vec(any::<i64>(), 1..100)) {
            check(&values);
        }

        #[test]
        fn steps_of_one_size_come_back(start in any::<i64>(), step in any::<i64>(), counts in prop::collection::vec(-9..9i64, 1..100)) {
            let values: Vec<i64> = counts.iter().map(|count| start.wrapping_add(step.wrapping_mul(*count))).collect();
            check(&values);
        }
    }

    #[test]
    fn extremes_come_back() {
        for values in [
            vec![i64::MIN],
            vec![i64::MIN, i64::MAX, i64::MIN],
            vec![0, i64::MIN, 0],
            vec![0, i64::MIN],
        ] {
            check(&values);
        }
    }

    #[test]
    fn lines_and_common_steps_take_little_room() {
        let line: Vec<i64> = (0..100).map(|n| 7 + 1000 * n).collect();
        assert!(check(&line) <= 10);
        let steps: Vec<i64> = (0..100).map(|n| 250 * (n * n % 7)).collect();
        assert!(check(&steps) < 60);
    }
}
