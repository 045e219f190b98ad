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
const ZEROS: u64 = 0;
const VARINTS: u64 = 1;
const SPARSE: u64 = 2;
const RICE: u64 = 3;
const ZERO_FLAG: u64 = 4;
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

/// How many bits a number has, from its highest one on.
pub(super) const fn length(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// The inverse of [`zigzag`].
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// How a column that is not all zeros is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Varints,
    Sparse { count: u64, gaps: u32, values: u32 },
    Rice { k: u32 },
    ZeroFlag { k: u32 },
}

/// Writes a column in the cheapest way.
pub(super) fn write(column: &[u64], out: &mut BitWriter) {
    let all = column.iter().fold(0, |all, value| all | value);
    if all == 0 {
        out.write(ZEROS, TAG_BITS);
        return;
    }
    // Taken out of its place, so that the loops below keep it in registers.
    let mut bits = std::mem::take(out);
    match cheapest(column, length(all)) {
        Way::Varints => {
            bits.write(VARINTS, TAG_BITS);
            for &value in column {
                bits.write_varint(value);
            }
        }
        Way::Sparse {
            count,
            gaps,
            values,
        } => {
            bits.write(SPARSE, TAG_BITS);
            bits.write_varint(count);
            bits.write(u64::from(values << K_BITS | gaps), 2 * K_BITS);
            for (gap, value) in sparse(column) {
                write_rice(gap, gaps, &mut bits);
                write_rice(value, values, &mut bits);
            }
        }
        Way::Rice { k } => {
            bits.write(u64::from(k) << TAG_BITS | RICE, TAG_BITS + K_BITS);
            for &value in column {
                write_rice(value, k, &mut bits);
            }
        }
        Way::ZeroFlag { k } => {
            bits.write(u64::from(k) << TAG_BITS | ZERO_FLAG, TAG_BITS + K_BITS);
            for &value in column {
                match value.checked_sub(1) {
                    None => bits.write(0, 1),
                    Some(less) => {
                        bits.write(1, 1);
                        write_rice(less, k, &mut bits);
                    }
                }
            }
        }
    }
    *out = bits;
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
        ZEROS => column.resize(count, 0),
        VARINTS => {
            for _ in 0..count {
                column.push(reader.read_varint()?);
            }
        }
        SPARSE => read_sparse(reader, count, column)?,
        RICE => {
            let k = read_k(reader)?;
            column.extend((0..count).map(|_| read_rice(reader, k)));
        }
        ZERO_FLAG => {
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

// Always: the parameter's part is then done once, and the bits are in registers.
#[inline(always)]
fn write_rice(value: u64, k: u32, out: &mut BitWriter) {
    let quotient = value >> k;
    if quotient >= u64::from(ESCAPE) {
        return write_escaped(value, out);
    }
    let ones = quotient as u32;
    let low = value & ((1 << k) - 1);
    if k + ESCAPE <= u64::BITS {
        out.write(low << 1 << ones | ((1 << ones) - 1), ones + 1 + k);
    } else {
        out.write((1 << ones) - 1, ones + 1);
        out.write(low, k);
    }
}

#[cold]
fn write_escaped(value: u64, out: &mut BitWriter) {
    let length = length(value);
    let head = u64::from(length - 1) << ESCAPE | ((1 << ESCAPE) - 1);
    out.write(head, ESCAPE + LENGTH_BITS);
    out.write(value, length);
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

/// Chooses by the lengths of the values, which is near enough. `longest` is that of the longest,
/// which is not 0.
fn cheapest(column: &[u64], longest: u32) -> Way {
    let lengths = Lengths::of(column, longest);
    let count = column.len() as i32;
    let (zeros, nonzero) = (lengths.zeros, count - lengths.zeros);
    let k_bits = K_BITS as i32;
    let (bits, k) = lengths.best_k(count, 0);
    let mut best = (bits + k_bits, Way::Rice { k });
    let mut offer = |bits: i32, way: Way| {
        if bits < best.0 {
            best = (bits, way);
        }
    };
    // Seven bits a group beat a parameter only where lengths differ much.
    if longest > k + 4 {
        offer(varint_bits(column), Way::Varints);
    }
    if 4 * zeros >= count {
        let (value_bits, k) = lengths.best_k(nonzero, lengths.ones);
        offer(k_bits + count + value_bits, Way::ZeroFlag { k });
        if 2 * zeros >= count {
            let gaps = (zeros / nonzero + 1).ilog2();
            let gap_bits = nonzero * (gaps as i32 + 2);
            let count_bits = if nonzero < 0x80 { 8 } else { 16 };
            offer(
                count_bits + 2 * k_bits + gap_bits + value_bits,
                Way::Sparse {
                    count: nonzero as u64,
                    gaps,
                    values: k,
                },
            );
        }
    }
    best.1
}

fn varint_bits(column: &[u64]) -> i32 {
    let groups = |&value: &u64| length(value).max(1).div_ceil(7);
    8 * column.iter().map(groups).sum::<u32>() as i32
}

/// Rice parameters that are tried side by side, in steps that a processor adds at once.
const K_STEP: usize = 16;

/// More values than this are counted by length first: sums of so many fit 16 bits.
const FEW: usize = 64;

/// What a value costs beyond 1 + k bits, by 64 − its length + k: the table may be read from there
/// on for one k after another.
const OVER: [i16; 128] = {
    let mut table = [0; 128];
    let mut over = 1;
    while over <= 64 {
        table[64 - over as usize] = match over {
            // The middle one of this length is 1.5 times the least one.
            1..=4 => (3 << (over - 1)) >> 1,
            _ => (ESCAPE + LENGTH_BITS) as i16 - 1 + over,
        };
        over += 1;
    }
    table
};

/// What the values of a column cost, as far as their lengths tell.
#[derive(Debug, PartialEq, Eq)]
struct Lengths {
    /// By Rice parameter: bits beyond 1 + k a value.
    over: [[i32; K_STEP]; 4],
    zeros: i32,
    ones: i32,
    /// The longest.
    longest: u32,
}

impl Lengths {
    fn of(column: &[u64], longest: u32) -> Self {
        if column.len() <= FEW && longest as usize <= K_STEP {
            return Self::of_few(column, longest);
        }
        Self::of_many(column, longest)
    }

    /// By a count of each length.
    fn of_many(column: &[u64], longest: u32) -> Self {
        let mut counts = [0; 65];
        for &value in column {
            counts[length(value) as usize] += 1;
        }
        let mut lengths = Self {
            over: [[0; K_STEP]; 4],
            zeros: counts[0],
            ones: counts[1],
            longest,
        };
        let steps = (longest as usize).div_ceil(K_STEP);
        for (length, &count) in counts.iter().enumerate().take(longest as usize + 1) {
            if count == 0 {
                continue;
            }
            let costs = OVER[64 - length..].as_chunks::<K_STEP>().0;
            for (over, costs) in lengths.over.iter_mut().zip(costs).take(steps) {
                for (over, cost) in over.iter_mut().zip(costs) {
                    *over += count * i32::from(*cost);
                }
            }
        }
        lengths
    }

    /// One by one, for few that are short: their sums stay in two registers.
    fn of_few(column: &[u64], longest: u32) -> Self {
        let mut sums = [0i16; K_STEP];
        let (mut zeros, mut ones) = (0, 0);
        for &value in column {
            zeros += i32::from(value == 0);
            ones += i32::from(value == 1);
            let costs = &OVER[64 - length(value) as usize..];
            for (sum, cost) in sums.iter_mut().zip(costs) {
                *sum += cost;
            }
        }
        Self {
            over: [sums.map(i32::from), [0; K_STEP], [0; K_STEP], [0; K_STEP]],
            zeros,
            ones,
            longest,
        }
    }

    /// About what so many values cost, with the best Rice parameter. `ones` of them are written as
    /// zeros.
    #[inline]
    fn best_k(&self, count: i32, ones: i32) -> (i32, u32) {
        let mut best = i32::MAX;
        let steps = (self.longest as usize).div_ceil(K_STEP);
        for (over, first) in self.over.iter().zip((0..).step_by(K_STEP)).take(steps) {
            // The parameter stands below the costs, so that the least of all says both.
            let mut offers = [0; K_STEP];
            for ((offer, over), k) in offers.iter_mut().zip(over).zip(first..) {
                *offer = (count * (1 + k) + over) << K_BITS | k;
            }
            if first == 0 {
                offers[0] -= ones << K_BITS;
            }
            for offer in offers {
                best = best.min(offer);
            }
        }
        // 63 is none, and no better than 62 but for values of 64 bits alone.
        (
            best >> K_BITS,
            (best as u32 & ((1 << K_BITS) - 1)).min(K_MAX),
        )
    }
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
        let way_of = |column: &[u64]| {
            let longest = column.iter().map(|value| length(*value)).max();
            cheapest(column, longest.unwrap())
        };
        let mut sparse = vec![0; 100];
        sparse[40] = 9;
        assert!(matches!(way_of(&sparse), Way::Sparse { .. }));
        assert!(matches!(way_of(&[5, 6, 4, 5, 7, 5]), Way::Rice { .. }));
        assert!(matches!(
            way_of(&[0x7f, 0x3fff, 0x3fff, 0x7f, 0x3f_ffff_ffff, 0x7f]),
            Way::Varints
        ));
        let flags: Vec<u64> = (0..100)
            .map(|n| if n % 2 == 0 { 0 } else { 90 + n % 9 })
            .collect();
        assert!(matches!(way_of(&flags), Way::ZeroFlag { .. }));
    }

    #[test]
    fn few_and_many_are_weighed_alike() {
        for count in [1, 2, FEW - 1, FEW, FEW + 1] {
            for longest in [1, K_STEP - 1, K_STEP, K_STEP + 1, 64] {
                let column: Vec<u64> = (0..count as u64)
                    .map(|n| u64::MAX >> (64 - longest) >> (n * n % 5))
                    .collect();
                let longest = longest as u32;
                let expected = Lengths::of_many(&column, longest);
                assert_eq!(Lengths::of(&column, longest), expected);
            }
        }
    }

    #[test]
    fn the_best_parameter_is_near_what_columns_really_take() {
        let mut state = 1u64;
        for spread in 1..=64 {
            let column: Vec<u64> = (0..40)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.checked_shr(64 - spread).unwrap_or(0)
                })
                .collect();
            let bits = |k: u32| {
                let mut writer = BitWriter::default();
                for &value in &column {
                    write_rice(value, k, &mut writer);
                }
                writer.finish().len()
            };
            let longest = column.iter().map(|value| length(*value)).max().unwrap();
            let (_, k) = Lengths::of(&column, longest).best_k(40, 0);
            let least = (0..=K_MAX).map(bits).min().unwrap();
            assert!(bits(k) <= least + least / 10 + 1, "{spread} bits: {k}");
        }
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
