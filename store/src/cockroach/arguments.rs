//! Columns of a statement's arguments, encoded as arrays straight from the rows that they are
//! about: nothing is copied on the way, nothing is allocated for a row.
//!
//! An array in PostgreSQL's binary form: dimensions (1), whether it may hold NULL, the element's
//! type; length and lower bound; then each element's length (−1 for NULL) and bytes. Times travel
//! as microseconds since 2000.

use std::marker::PhantomData;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Arguments as _, Decode, Encode, Postgres, Type};

/// 2000-01-01, where PostgreSQL counts from, in microseconds since the Unix epoch.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A type that columns can have.
pub(super) trait Element {
    const OID: u32;
    const ARRAY_OID: u32;
    /// Bytes of one element, for reserving.
    const BYTES: usize;
    fn write(&self, bytes: &mut Vec<u8>);
}

/// A time in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Micros(pub(super) i64);

/// The arguments of one statement.
#[derive(Debug, Default)]
pub(super) struct Columns {
    arguments: PgArguments,
}

impl Columns {
    /// Adds an array with one element for each item of `of`.
    pub(super) fn array<'a, T, E: Element>(
        self,
        of: &'a [T],
        each: impl Fn(&'a T) -> E,
    ) -> Result<Self, sqlx::Error> {
        self.array_of_options(of, |item| Some(each(item)))
    }

    /// As [`Self::array`], with `None` for NULL.
    pub(super) fn array_of_options<'a, T, E: Element>(
        mut self,
        of: &'a [T],
        each: impl Fn(&'a T) -> Option<E>,
    ) -> Result<Self, sqlx::Error> {
        let array = Array {
            of,
            each,
            element: PhantomData::<E>,
        };
        self.arguments.add(array).map_err(sqlx::Error::Encode)?;
        Ok(self)
    }

    /// Adds one value.
    pub(super) fn one<'t, T: Encode<'t, Postgres> + Type<Postgres>>(
        mut self,
        value: T,
    ) -> Result<Self, sqlx::Error> {
        self.arguments.add(value).map_err(sqlx::Error::Encode)?;
        Ok(self)
    }

    pub(super) fn done(self) -> PgArguments {
        self.arguments
    }
}

struct Array<'a, T, E, F> {
    of: &'a [T],
    each: F,
    element: PhantomData<E>,
}

impl<'a, T, E: Element, F: Fn(&'a T) -> Option<E>> Encode<'_, Postgres> for Array<'a, T, E, F> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let bytes: &mut Vec<u8> = buffer;
        bytes.reserve(20 + self.of.len() * (4 + E::BYTES));
        let length = i32::try_from(self.of.len())?;
        for number in [1, 1, E::OID.cast_signed(), length, 1] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for item in self.of {
            let at = bytes.len();
            bytes.extend_from_slice(&(-1i32).to_be_bytes());
            if let Some(element) = (self.each)(item) {
                element.write(bytes);
                let length = i32::try_from(bytes.len() - at - 4)?;
                bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(<Self as Type<Postgres>>::type_info())
    }
}

impl<T, E: Element, F> Type<Postgres> for Array<'_, T, E, F> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(E::ARRAY_OID))
    }
}

impl Element for &str {
    const OID: u32 = 25;
    const ARRAY_OID: u32 = 1009;
    const BYTES: usize = 16;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.as_bytes());
    }
}

impl Element for &[u8] {
    const OID: u32 = 17;
    const ARRAY_OID: u32 = 1001;
    const BYTES: usize = 64;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

impl Element for i64 {
    const OID: u32 = 20;
    const ARRAY_OID: u32 = 1016;
    const BYTES: usize = 8;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_be_bytes());
    }
}

impl Element for i16 {
    const OID: u32 = 21;
    const ARRAY_OID: u32 = 1005;
    const BYTES: usize = 2;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_be_bytes());
    }
}

impl Element for f64 {
    const OID: u32 = 701;
    const ARRAY_OID: u32 = 1022;
    const BYTES: usize = 8;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_bits().to_be_bytes());
    }
}

impl Element for bool {
    const OID: u32 = 16;
    const ARRAY_OID: u32 = 1000;
    const BYTES: usize = 1;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }
}

impl Element for Micros {
    const OID: u32 = 1184;
    const ARRAY_OID: u32 = 1185;
    const BYTES: usize = 8;
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.saturating_sub(EPOCH_MICROS).to_be_bytes());
    }
}

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(Self::OID))
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        ty.oid() == Some(Oid(Self::OID))
    }
}

impl PgHasArrayType for Micros {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(<Self as Element>::ARRAY_OID))
    }
}

impl Encode<'_, Postgres> for Micros {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        self.write(buffer);
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Micros {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let since_2000 = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        Ok(Self(since_2000.saturating_add(EPOCH_MICROS)))
    }
}
