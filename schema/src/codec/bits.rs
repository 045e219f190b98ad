//! Bits, least significant first.
//!
//! The reader never fails in the middle of a column: past the end it sees zeros, and the overrun
//! is asked for once a column with [`BitReader::check`].

use super::DecodeError;

/// Appends bits to bytes.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    acc: u64,
    used: u32,
}

impl BitWriter {
    /// Forgets what was written, keeps the memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.acc = 0;
        self.used = 0;
    }

    /// Appends the low `count` bits of `value`, whose other bits are zero; at most 64.
    #[inline]
    pub(super) fn write(&mut self, value: u64, count: u32) {
        debug_assert!(count <= 64 && (count == 64 || value >> count == 0));
        self.acc |= value << self.used;
        let used = self.used + count;
        if used < 64 {
            self.used = used;
        } else {
            self.flush();
            // In two steps: nothing is left of a value of 64 bits.
            self.acc = value >> 1 >> (63 - self.used);
            self.used = used - 64;
        }
    }

    fn flush(&mut self) {
        self.bytes.extend_from_slice(&self.acc.to_le_bytes());
    }

    /// Appends seven bits a group, least significant first, with a flag for more.
    pub(super) fn write_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.write(value & 0x7f | 0x80, 8);
            value >>= 7;
        }
        self.write(value, 8);
    }

    /// Fills the last byte with zeros, and returns all.
    pub(super) fn finish(&mut self) -> &[u8] {
        let tail = self.used.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.acc.to_le_bytes()[..tail]);
        self.acc = 0;
        self.used = 0;
        &self.bytes
    }
}

/// Takes bits from bytes.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// In bits; may pass the end.
    position: usize,
}

impl<'a> BitReader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// At least the next 57 bits, zeros past the end.
    pub(super) fn peek(&self) -> u64 {
        let at = self.position / 8;
        let word = match self.bytes.get(at..at + 8) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
            None => {
                let mut padded = [0; 8];
                let rest = self.bytes.get(at..).unwrap_or_default();
                padded[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(padded)
            }
        };
        word >> (self.position % 8)
    }

    /// Passes over bits that were peeked at.
    pub(super) const fn advance(&mut self, count: u32) {
        self.position += count as usize;
    }

    /// The next `count` bits, at most 64.
    pub(super) fn read(&mut self, count: u32) -> u64 {
        if count > 57 {
            let low = self.read(32);
            return low | self.read(count - 32) << 32;
        }
        let value = self.peek() & ((1 << count) - 1);
        self.advance(count);
        value
    }

    /// A number of at most ten groups.
    ///
    /// # Errors
    /// [`DecodeError::Varint`] when it has more, or more than 64 bits.
    pub(super) fn read_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let group = self.read(8);
            let low = group & 0x7f;
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if group < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint)
    }

    /// Whether all that was read was there.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when it was not.
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        if self.position > 8 * self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(())
    }

    /// Whether nothing is left but the zeros that fill the last byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] and [`DecodeError::TrailingBits`].
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        self.check()?;
        let left = 8 * self.bytes.len() - self.position;
        if left >= 8 || self.peek() != 0 {
            return Err(DecodeError::TrailingBits);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in prop::collection::vec((any::<u64>(), 0..=64u32, any::<bool>()), 0..100)) {
            let mut writer = BitWriter::default();
            let cut = |value: u64, count: u32| if count == 64 { value } else { value & ((1 << count) - 1) };
            for &(value, count, varint) in &parts {
                if varint {
                    writer.write_varint(value);
                } else {
                    writer.write(cut(value, count), count);
                }
            }
            let bytes = writer.finish().to_vec();
            let mut reader = BitReader::new(&bytes);
            for &(value, count, varint) in &parts {
                if varint {
                    prop_assert_eq!(reader.read_varint(), Ok(value));
                } else {
                    prop_assert_eq!(reader.read(count), cut(value, count));
                }
            }
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn the_end_is_seen() {
        let mut reader = BitReader::new(&[0xff]);
        assert_eq!(reader.read(4), 0xf);
        assert_eq!(reader.finish(), Err(DecodeError::TrailingBits));
        assert_eq!(reader.read(4), 0xf);
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(reader.read(1), 0);
        assert_eq!(reader.check(), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_varint_ends_within_ten_groups() {
        assert_eq!(
            BitReader::new(&[0xff; 11]).read_varint(),
            Err(DecodeError::Varint)
        );
        let mut top = [0xff; 10];
        top[9] = 1;
        assert_eq!(BitReader::new(&top).read_varint(), Ok(u64::MAX));
        top[9] = 2;
        assert_eq!(BitReader::new(&top).read_varint(), Err(DecodeError::Varint));
    }
}
