//! One coder for every column of integers: a tag, then the cheapest of five ways.
//!
//! ```text
//! 0 zeros     nothing
//! 1 varints   seven bits a group
//! 2 sparse    count · k of gaps · k of values · (gap, value − 1)…
//! 3 Rice      k · values
//! 4 zero flag k · (0 │ 1, value − 1)…
//! ```
//!
//! Rice with parameter k: the quotient by 2^k in ones, a zero, then k bits. Sixteen ones are an
//! escape: a length of six bits (less one) and the raw bits follow, so that no value is long.

use super::DecodeError;
use super::bits::{BitReader, BitWriter};

const TAG_BITS: u32 = 3;
const K_BITS: u32 = 6;
const LENGTH_BITS: u32 = 6;

/// Ones that mean an escape.
const ESCAPE: u32 = 16;

/// Highest Rice parameter: with 63 the quotient would be a single bit.
pub(super) const K_MAX: u32 = 62;

/// A signed number with its sign in the lowest bit.
pub(super) const fn zigzag(value: i64) -> u64 {
    (value as u64) << 1 ^ (value >> 63) as u64
}

/// The inverse of [`zigzag`].
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// How a column is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Zeros,
    Varints,
    Sparse {
        count: usize,
        gaps: u32,
        values: u32,
    },
    Rice {
        k: u32,
    },
    ZeroFlag {
        k: u32,
    },
}

/// Writes a column in the cheapest way.
pub(super) fn write(column: &[u64], out: &mut BitWriter) {
    match cheapest(column) {
        Way::Zeros => out.write(0, TAG_BITS),
        Way::Varints => {
            out.write(1, TAG_BITS);
            for &value in column {
                out.write_varint(value);
            }
        }
        Way::Sparse {
            count,
            gaps,
            values,
        } => {
            out.write(2, TAG_BITS);
            out.write_varint(count as u64);
            out.write(u64::from(gaps), K_BITS);
            out.write(u64::from(values), K_BITS);
            for (gap, value) in sparse(column) {
                write_rice(gap, gaps, out);
                write_rice(value, values, out);
            }
        }
        Way::Rice { k } => {
            out.write(3, TAG_BITS);
            out.write(u64::from(k), K_BITS);
            for &value in column {
                write_rice(value, k, out);
            }
        }
        Way::ZeroFlag { k } => {
            out.write(4, TAG_BITS);
            out.write(u64::from(k), K_BITS);
            for &value in column {
                match value.checked_sub(1) {
                    None => out.write(0, 1),
                    Some(less) => {
                        out.write(1, 1);
                        write_rice(less, k, out);
                    }
                }
            }
        }
    }
}

/// Reads a column of `count` integers into `column`, replacing what it held. `count` is bounded
/// by the caller; nothing here allocates beyond it.
pub(super) fn read(
    reader: &mut BitReader<'_>,
    count: usize,
    column: &mut Vec<u64>,
) -> Result<(), DecodeError> {
    column.clear();
    match reader.read(TAG_BITS) {
        0 => column.resize(count, 0),
        1 => {
            for _ in 0..count {
                column.push(reader.read_varint()?);
            }
        }
        2 => read_sparse(reader, count, column)?,
        3 => {
            let k = read_k(reader)?;
            column.extend((0..count).map(|_| read_rice(reader, k)));
        }
        4 => {
            let k = read_k(reader)?;
            column.extend((0..count).map(|_| match reader.read(1) {
                0 => 0,
                _ => read_rice(reader, k).wrapping_add(1),
            }));
        }
        tag => return Err(DecodeError::Tag(tag as u8)),
    }
    reader.check()
}

fn read_sparse(
    reader: &mut BitReader<'_>,
    count: usize,
    column: &mut Vec<u64>,
) -> Result<(), DecodeError> {
    let nonzero = reader.read_varint()?;
    if nonzero > count as u64 {
        return Err(DecodeError::SparsePosition);
    }
    let (gaps, values) = (read_k(reader)?, read_k(reader)?);
    column.resize(count, 0);
    let mut next = 0u64;
    for _ in 0..nonzero {
        let position = next
            .checked_add(read_rice(reader, gaps))
            .filter(|&position| position < count as u64)
            .ok_or(DecodeError::SparsePosition)?;
        column[position as usize] = read_rice(reader, values).wrapping_add(1);
        next = position + 1;
    }
    Ok(())
}

fn read_k(reader: &mut BitReader<'_>) -> Result<u32, DecodeError> {
    let k = reader.read(K_BITS) as u32;
    if k > K_MAX {
        return Err(DecodeError::RiceParameter(k as u8));
    }
    Ok(k)
}

fn write_rice(value: u64, k: u32, out: &mut BitWriter) {
    let quotient = value >> k;
    if quotient < u64::from(ESCAPE) {
        let ones = quotient as u32;
        let low = value & ((1 << k) - 1);
        if ones + 1 + k <= u64::BITS {
            out.write(low << (ones + 1) | ((1 << ones) - 1), ones + 1 + k);
        } else {
            out.write((1 << ones) - 1, ones + 1);
            out.write(low, k);
        }
    } else {
        let length = u64::BITS - value.leading_zeros();
        out.write((1 << ESCAPE) - 1, ESCAPE);
        out.write(u64::from(length - 1), LENGTH_BITS);
        out.write(value, length);
    }
}

#[inline]
fn read_rice(reader: &mut BitReader<'_>, k: u32) -> u64 {
    let word = reader.peek();
    let ones = word.trailing_ones();
    if ones < ESCAPE {
        if ones + 1 + k <= 56 {
            reader.advance(ones + 1 + k);
            return u64::from(ones) << k | word >> (ones + 1) & ((1 << k) - 1);
        }
        reader.advance(ones + 1);
        // A forged quotient may not fit: the shifts drop what is over.
        return u64::from(ones) << k | reader.read(k);
    }
    reader.advance(ESCAPE);
    let length = reader.read(LENGTH_BITS) as u32 + 1;
    reader.read(length)
}

/// The values that are not zero, less one, each with the zeros before it.
fn sparse(column: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut zeros = 0;
    column.iter().filter_map(move |&value| {
        let Some(less) = value.checked_sub(1) else {
            zeros += 1;
            return None;
        };
        Some((std::mem::take(&mut zeros), less))
    })
}

/// Chooses by the lengths of the values, which is near enough and looks at each value once.
fn cheapest(column: &[u64]) -> Way {
    if column.iter().all(|value| *value == 0) {
        return Way::Zeros;
    }
    let lengths = Lengths::of(column);
    let count = column.len();
    let zeros = usize::from(lengths.counts[0]);
    let nonzero = count - zeros;
    let (k, bits) = lengths.best_k(Of::Values);
    let mut best = (bits + u64::from(K_BITS), Way::Rice { k });
    let mut offer = |bits: u64, way: Way| {
        if bits < best.0 {
            best = (bits, way);
        }
    };
    // Seven bits a group beat a parameter only where lengths differ much.
    if lengths.max > k + 4 {
        offer(lengths.varint_bits(), Way::Varints);
    }
    if 4 * zeros >= count {
        let (k, value_bits) = lengths.best_k(Of::NonzeroLessOne);
        offer(
            u64::from(K_BITS) + count as u64 + value_bits,
            Way::ZeroFlag { k },
        );
        if 2 * zeros >= count {
            let gaps = ((zeros / nonzero) as u64 + 1).ilog2();
            let gap_bits = nonzero as u64 * u64::from(gaps + 2);
            let count_bits = if nonzero < 0x80 { 8 } else { 16 };
            offer(
                count_bits + 2 * u64::from(K_BITS) + gap_bits + value_bits,
                Way::Sparse {
                    count: nonzero,
                    gaps,
                    values: k,
                },
            );
        }
    }
    best.1
}

/// How many values have which length in bits. A few that are very long move a mean, and not a
/// middle.
#[derive(Debug)]
struct Lengths {
    counts: [u16; 65],
    total: usize,
    /// The longest.
    max: u32,
}

impl Lengths {
    /// Of at most 65,535 values, which a batch is far below.
    fn of(column: &[u64]) -> Self {
        let mut counts = [0; 65];
        let mut all = 0;
        for &value in column {
            counts[(u64::BITS - value.leading_zeros()) as usize] += 1;
            all |= value;
        }
        Self {
            counts,
            total: column.len(),
            max: u64::BITS - all.leading_zeros(),
        }
    }

    /// The best Rice parameter, near the length of the middle value, and about what the values
    /// cost with it. For a geometric distribution the best 2^k is near its median.
    fn best_k(&self, of: Of) -> (u32, u64) {
        let middle = self.middle(of).min(K_MAX - 1);
        let cost = |k| (self.rice_bits(of, k), k);
        let (bits, k) = (middle.saturating_sub(2)..=middle + 1)
            .map(cost)
            .min()
            .unwrap_or(cost(middle));
        (k, bits)
    }

    /// The length of the middle value.
    fn middle(&self, of: Of) -> u32 {
        let skip = match of {
            Of::Values => 0,
            Of::NonzeroLessOne => usize::from(self.counts[0]),
        };
        let rank = skip + (self.total - skip) / 2;
        let mut below = 0;
        for length in 0..=self.max {
            below += usize::from(self.counts[length as usize]);
            if below > rank {
                return length;
            }
        }
        self.max
    }

    fn rice_bits(&self, of: Of, k: u32) -> u64 {
        let bits = |length: u32| match length.checked_sub(k + 1) {
            None => u64::from(1 + k),
            // The middle one of this length is 1.5 times the least one.
            Some(over @ 0..4) => u64::from(1 + k + ((3 << over) >> 1)),
            Some(_) => u64::from(ESCAPE + LENGTH_BITS + length),
        };
        let sum = |lengths: std::ops::RangeInclusive<u32>| -> u64 {
            lengths
                .map(|length| bits(length) * u64::from(self.counts[length as usize]))
                .sum()
        };
        match of {
            Of::Values => sum(0..=self.max),
            // One less is of the same length, but for ones, which become zeros.
            Of::NonzeroLessOne => bits(0) * u64::from(self.counts[1]) + sum(2..=self.max),
        }
    }

    fn varint_bits(&self) -> u64 {
        (0..=self.max)
            .map(|length| {
                let groups = u64::from(length.max(1).div_ceil(7));
                8 * groups * u64::from(self.counts[length as usize])
            })
            .sum()
    }
}

/// Which values a Rice parameter is for.
#[derive(Debug, Clone, Copy)]
enum Of {
    Values,
    NonzeroLessOne,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(column: &[u64]) -> Vec<u64> {
        let mut writer = BitWriter::default();
        write(column, &mut writer);
        let bytes = writer.finish().to_vec();
        let mut reader = BitReader::new(&bytes);
        let mut read_back = Vec::new();
        read(&mut reader, column.len(), &mut read_back).unwrap();
        reader.finish().unwrap();
        read_back
    }

    fn column() -> impl Strategy<Value = Vec<u64>> {
        let value = prop_oneof![
            5 => Just(0u64),
            3 => 0..8u64,
            2 => 0..100_000u64,
            1 => any::<u64>(),
            1 => Just(u64::MAX),
        ];
        prop::collection::vec(value, 1..200)
    }

    proptest! {
        #[test]
        fn every_column_comes_back(column in column()) {
            prop_assert_eq!(round_trip(&column), column);
        }

        #[test]
        fn columns_of_one_kind_come_back(top in 0..64u32, values in prop::collection::vec(any::<u64>(), 1..100)) {
            let column: Vec<u64> = values.iter().map(|value| value >> top).collect();
            prop_assert_eq!(round_trip(&column), column);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0..500usize) {
            let mut column = Vec::new();
            let _ = read(&mut BitReader::new(&bytes), count, &mut column);
            prop_assert!(column.len() <= count);
        }

        #[test]
        fn zigzag_comes_back(value in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn each_way_is_taken_where_it_is_cheapest() {
        let mut sparse = vec![0; 100];
        sparse[40] = 9;
        assert!(matches!(cheapest(&[0; 9]), Way::Zeros));
        assert!(matches!(cheapest(&sparse), Way::Sparse { .. }));
        assert!(matches!(cheapest(&[5, 6, 4, 5, 7, 5]), Way::Rice { .. }));
        assert!(matches!(
            cheapest(&[0x7f, 0x3fff, 0x3fff, 0x7f, 0x3f_ffff_ffff, 0x7f]),
            Way::Varints
        ));
        let flags: Vec<u64> = (0..100)
            .map(|n| if n % 2 == 0 { 0 } else { 90 + n % 9 })
            .collect();
        assert!(matches!(cheapest(&flags), Way::ZeroFlag { .. }));
    }

    #[test]
    fn unknown_tags_parameters_and_positions_are_refused() {
        let mut column = Vec::new();
        for tag in 5..8u8 {
            assert_eq!(
                read(&mut BitReader::new(&[tag]), 4, &mut column),
                Err(DecodeError::Tag(tag))
            );
        }
        let rice = |k: u64| {
            let mut writer = BitWriter::default();
            writer.write(3, 3);
            writer.write(k, 6);
            writer.write(0, 64);
            writer.finish().to_vec()
        };
        assert_eq!(read(&mut BitReader::new(&rice(62)), 1, &mut column), Ok(()));
        assert_eq!(
            read(&mut BitReader::new(&rice(63)), 1, &mut column),
            Err(DecodeError::RiceParameter(63))
        );
        let sparse = |count: u64, gap: u64| {
            let mut writer = BitWriter::default();
            writer.write(2, 3);
            writer.write_varint(count);
            writer.write(0, 12);
            write_rice(gap, 0, &mut writer);
            writer.write(0, 64);
            writer.finish().to_vec()
        };
        assert_eq!(
            read(&mut BitReader::new(&sparse(1, 3)), 4, &mut column),
            Ok(())
        );
        for bytes in [sparse(1, 4), sparse(5, 0)] {
            assert_eq!(
                read(&mut BitReader::new(&bytes), 4, &mut column),
                Err(DecodeError::SparsePosition)
            );
        }
    }
}
