//! One page: its header and its elements. All slices are bounds-checked, all positions relative
//! to the element that names them, as bbolt writes them.

use crate::BoltError;

/// Bytes of a page header: id (8), flags (2), count (2), overflow (4).
pub(crate) const HEADER: usize = 16;
/// Bytes of an element of a leaf or a branch.
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// The flag of a leaf element whose value is a bucket.
const BUCKET: u32 = 0x01;

/// A branch or leaf page within the bytes of a file, or an inline one within a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    /// Header and content, overflow pages included.
    bytes: &'a [u8],
    /// For errors: the page, or the one that an inline page is in.
    number: u64,
    is_leaf: bool,
    count: usize,
}

/// What stands at one place of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Element<'a> {
    /// The number of a child page.
    Child(u64),
    /// A key with a value.
    Value { key: &'a [u8], value: &'a [u8] },
    /// A key with a bucket, still encoded.
    Bucket { key: &'a [u8], header: &'a [u8] },
}

impl<'a> Page<'a> {
    pub(crate) fn parse(bytes: &'a [u8], number: u64) -> Result<Self, BoltError> {
        let damaged = |reason| BoltError::damaged(number, reason);
        let flags = u16_at(bytes, 8).ok_or(damaged("its header is cut off"))?;
        let count = u16_at(bytes, 10).ok_or(damaged("its header is cut off"))?;
        let is_leaf = match flags {
            BRANCH => false,
            LEAF => true,
            _ => return Err(damaged("it is neither a branch nor a leaf")),
        };
        if !is_leaf && count == 0 {
            return Err(damaged("it is a branch without children"));
        }
        Ok(Self {
            bytes,
            number,
            is_leaf,
            count: usize::from(count),
        })
    }

    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// The element at a place below [`Page::count`].
    pub(crate) fn element(&self, index: usize) -> Result<Element<'a>, BoltError> {
        let damaged = |reason| BoltError::damaged(self.number, reason);
        let out_of_it = || damaged("an element points out of it");
        let start = index
            .checked_mul(ELEMENT)
            .and_then(|offset| offset.checked_add(HEADER))
            .ok_or_else(out_of_it)?;
        let element = self.bytes.get(start..).ok_or_else(out_of_it)?;
        let field = |at| {
            u32_at(element, at)
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(out_of_it)
        };
        let slice = |from: usize, length: usize| {
            let end = from.checked_add(length).ok_or_else(out_of_it)?;
            element.get(from..end).ok_or_else(out_of_it)
        };
        if !self.is_leaf {
            // Position and length of the child's first key come before its number.
            return Ok(Element::Child(u64_at(element, 8).ok_or_else(out_of_it)?));
        }
        let flags = u32_at(element, 0).ok_or_else(out_of_it)?;
        let (position, key_size, value_size) = (field(4)?, field(8)?, field(12)?);
        let key = slice(position, key_size)?;
        let value = slice(
            position.checked_add(key_size).ok_or_else(out_of_it)?,
            value_size,
        )?;
        Ok(match flags {
            0 => Element::Value { key, value },
            BUCKET => Element::Bucket { key, header: value },
            _ => return Err(damaged("an element has flags that do not exist")),
        })
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
