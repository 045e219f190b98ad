//! A cursor over a packet's body. Every read checks what is left; nothing is copied.

use crate::error::Refusal;

/// What is left of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// One property of MQTT 5, as far as a server needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property {
    /// One that is understood, with its number.
    Number(u8, u32),
    /// One whose content does not matter here.
    Other(u8),
}

impl<'a> Reader<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .ok_or(Refusal::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number in groups of seven bits, at most four.
    fn varint(&mut self) -> Result<usize, Refusal> {
        let mut number = 0;
        for at in 0..4 {
            let byte = self.u8()?;
            number |= usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Refusal::Malformed)
    }

    /// Bytes after their length.
    pub(super) fn binary(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// UTF-8 without NUL, after its length.
    pub(super) fn text(&mut self) -> Result<&'a str, Refusal> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Refusal::Malformed)?;
        if text.contains('\0') {
            return Err(Refusal::Malformed);
        }
        Ok(text)
    }

    /// A packet id, which is never zero.
    pub(super) fn packet_id(&mut self) -> Result<u16, Refusal> {
        match self.u16()? {
            0 => Err(Refusal::Malformed),
            id => Ok(id),
        }
    }

    /// Reads all properties of a packet, each handed to `each`.
    pub(super) fn properties(
        &mut self,
        mut each: impl FnMut(Property) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let length = self.varint()?;
        let mut inner = Self::new(self.take(length)?);
        while !inner.is_empty() {
            each(inner.property()?)?;
        }
        Ok(())
    }

    fn property(&mut self) -> Result<Property, Refusal> {
        let id = self.u8()?;
        Ok(match id {
            1 | 23 | 25 | 36 | 37 | 40..=42 => Property::Number(id, self.u8()?.into()),
            19 | 33..=35 => Property::Number(id, self.u16()?.into()),
            2 | 17 | 24 | 39 => Property::Number(id, self.u32()?),
            11 => {
                self.varint()?;
                Property::Other(id)
            }
            3 | 8 | 18 | 21 | 26 | 28 | 31 => {
                self.text()?;
                Property::Other(id)
            }
            9 | 22 => {
                self.binary()?;
                Property::Other(id)
            }
            38 => {
                self.text()?;
                self.text()?;
                Property::Other(id)
            }
            _ => return Err(Refusal::Malformed),
        })
    }
}
