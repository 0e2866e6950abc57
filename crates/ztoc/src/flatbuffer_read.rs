//! A reader of FlatBuffers tables in untrusted bytes.
//!
//! Not the `flatbuffers` crate: its verified path wants UTF-8 strings, while a zTOC holds whatever
//! file names a tar had, and its unverified path is `unsafe`. Every access here is bounds-checked,
//! and nothing recurses, so that cycles cannot trap it. The format: flatbuffers.dev, "Internals".

use crate::ZtocError;

/// A table inside a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    buffer: &'a [u8],
    /// Where the table starts.
    at: usize,
    /// The table's field offsets, little-endian `u16`s.
    fields: &'a [u8],
}

/// A vector of references inside a buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct References<'a> {
    buffer: &'a [u8],
    at: usize,
    len: usize,
}

fn outside(buffer: &[u8], what: &'static str, at: usize) -> ZtocError {
    ZtocError::OutOfBounds {
        what,
        at: at as u64,
        len: buffer.len() as u64,
    }
}

fn array<const N: usize>(
    buffer: &[u8],
    at: usize,
    what: &'static str,
) -> Result<[u8; N], ZtocError> {
    at.checked_add(N)
        .and_then(|end| buffer.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| outside(buffer, what, at))
}

/// Follows the unsigned 32-bit reference at `at`, which counts from its own place.
fn follow(buffer: &[u8], at: usize, what: &'static str) -> Result<usize, ZtocError> {
    let distance = u32::from_le_bytes(array(buffer, at, what)?);
    usize::try_from(distance)
        .ok()
        .and_then(|distance| at.checked_add(distance))
        .filter(|target| *target < buffer.len())
        .ok_or_else(|| outside(buffer, what, at))
}

impl<'a> Table<'a> {
    /// The root table of a buffer.
    pub(crate) fn root(buffer: &'a [u8]) -> Result<Self, ZtocError> {
        Self::at(buffer, follow(buffer, 0, "root table")?, "root table")
    }

    fn at(buffer: &'a [u8], at: usize, what: &'static str) -> Result<Self, ZtocError> {
        // A table starts with the signed distance back to its vtable; a vtable with its own length
        // and the table's, both in bytes.
        let back = i32::from_le_bytes(array(buffer, at, what)?);
        let vtable = i64::try_from(at)
            .ok()
            .map(|at| at - i64::from(back))
            .and_then(|vtable| usize::try_from(vtable).ok())
            .ok_or_else(|| outside(buffer, what, at))?;
        let len = usize::from(u16::from_le_bytes(array(buffer, vtable, what)?));
        let fields = len
            .checked_sub(4)
            .and_then(|_| vtable.checked_add(len))
            .and_then(|end| buffer.get(vtable + 4..end))
            .ok_or_else(|| outside(buffer, what, vtable))?;
        Ok(Self { buffer, at, fields })
    }

    /// Position of a field, if the table has it.
    fn field(&self, slot: usize) -> Option<usize> {
        let low = *self.fields.get(slot * 2)?;
        let high = *self.fields.get(slot * 2 + 1)?;
        match u16::from_le_bytes([low, high]) {
            0 => None,
            distance => self.at.checked_add(usize::from(distance)),
        }
    }

    fn scalar<const N: usize>(
        &self,
        slot: usize,
        what: &'static str,
    ) -> Result<Option<[u8; N]>, ZtocError> {
        self.field(slot)
            .map(|at| array(self.buffer, at, what))
            .transpose()
    }

    /// A signed byte, `default` where absent.
    pub(crate) fn i8(&self, slot: usize, default: i8, what: &'static str) -> Result<i8, ZtocError> {
        Ok(self.scalar(slot, what)?.map_or(default, i8::from_le_bytes))
    }

    /// An `int`, 0 where absent.
    pub(crate) fn i32(&self, slot: usize, what: &'static str) -> Result<i32, ZtocError> {
        Ok(self.scalar(slot, what)?.map_or(0, i32::from_le_bytes))
    }

    /// A `uint32`, 0 where absent.
    pub(crate) fn u32(&self, slot: usize, what: &'static str) -> Result<u32, ZtocError> {
        Ok(self.scalar(slot, what)?.map_or(0, u32::from_le_bytes))
    }

    /// A `long`, 0 where absent.
    pub(crate) fn i64(&self, slot: usize, what: &'static str) -> Result<i64, ZtocError> {
        Ok(self.scalar(slot, what)?.map_or(0, i64::from_le_bytes))
    }

    /// A `long` that must not be negative, 0 where absent.
    pub(crate) fn size(&self, slot: usize, what: &'static str) -> Result<u64, ZtocError> {
        let value = self.i64(slot, what)?;
        u64::try_from(value)
            .map_err(|_| ZtocError::Invalid(format!("its {what} is negative: {value}")))
    }

    /// A string or byte vector, empty where absent.
    pub(crate) fn bytes(&self, slot: usize, what: &'static str) -> Result<&'a [u8], ZtocError> {
        let Some(field) = self.field(slot) else {
            return Ok(&[]);
        };
        let (at, len) = vector(self.buffer, field, what)?;
        at.checked_add(len)
            .and_then(|end| self.buffer.get(at..end))
            .ok_or_else(|| outside(self.buffer, what, at))
    }

    /// A table.
    pub(crate) fn table(&self, slot: usize, what: &'static str) -> Result<Self, ZtocError> {
        let field = self.field(slot).ok_or(ZtocError::Missing(what))?;
        Self::at(self.buffer, follow(self.buffer, field, what)?, what)
    }

    /// A vector of strings or tables, empty where absent.
    pub(crate) fn references(
        &self,
        slot: usize,
        what: &'static str,
    ) -> Result<References<'a>, ZtocError> {
        let Some(field) = self.field(slot) else {
            return Ok(References::default());
        };
        let (at, len) = vector(self.buffer, field, what)?;
        len.checked_mul(4)
            .and_then(|size| at.checked_add(size))
            .filter(|end| *end <= self.buffer.len())
            .ok_or_else(|| outside(self.buffer, what, at))?;
        Ok(References {
            buffer: self.buffer,
            at,
            len,
        })
    }
}

/// Where the vector that the field at `field` refers to has its first element, and how many it has.
fn vector(buffer: &[u8], field: usize, what: &'static str) -> Result<(usize, usize), ZtocError> {
    let at = follow(buffer, field, what)?;
    let len = u32::from_le_bytes(array(buffer, at, what)?);
    usize::try_from(len)
        .ok()
        .and_then(|len| Some((at.checked_add(4)?, len)))
        .ok_or_else(|| outside(buffer, what, at))
}

impl<'a> References<'a> {
    /// How many there are; their places, but not what they refer to, are known to be inside.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// One of the tables.
    pub(crate) fn table(&self, index: usize, what: &'static str) -> Result<Table<'a>, ZtocError> {
        let at = index.checked_mul(4).filter(|_| index < self.len);
        let at = at.and_then(|at| self.at.checked_add(at));
        let at = at.ok_or_else(|| outside(self.buffer, what, self.at))?;
        Table::at(self.buffer, follow(self.buffer, at, what)?, what)
    }

    /// The tables.
    pub(crate) fn tables(
        self,
        what: &'static str,
    ) -> impl Iterator<Item = Result<Table<'a>, ZtocError>> {
        (0..self.len).map(move |index| self.table(index, what))
    }

    /// The strings.
    pub(crate) fn strings(
        self,
        what: &'static str,
    ) -> impl Iterator<Item = Result<&'a [u8], ZtocError>> {
        (0..self.len).map(move |index| {
            let (at, len) = vector(self.buffer, self.at + index * 4, what)?;
            at.checked_add(len)
                .and_then(|end| self.buffer.get(at..end))
                .ok_or_else(|| outside(self.buffer, what, at))
        })
    }
}
