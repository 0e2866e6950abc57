//! One entry of a table of contents, borrowed from a zTOC or from a [`FileMetadata`].

use crate::ZtocError;
use std::hash::{BuildHasher, Hash as _, Hasher as _};

use crate::flatbuffer_read::{References, Table};
use crate::toc::{FileMetadata, FileType, low_half};
use crate::ztoc::slots;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// An entry of a table of contents. The fields are those of [`FileMetadata`].
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "FileMetadata describes the fields")]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub file_type: FileType,
    pub uncompressed_offset: u64,
    pub uncompressed_size: u64,
    pub linkname: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub uname: &'a [u8],
    pub gname: &'a [u8],
    pub mod_time: &'a str,
    pub devmajor: i64,
    pub devminor: i64,
    pub(crate) records: Records<'a>,
}

/// The PAX records of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Records<'a> {
    Owned(&'a [(Vec<u8>, Vec<u8>)]),
    Stored(References<'a>),
}

fn invalid(what: impl Into<String>) -> ZtocError {
    ZtocError::Invalid(what.into())
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

impl<'a> Entry<'a> {
    fn read(table: Table<'a>) -> Result<Self, ZtocError> {
        use slots::entry as slot;
        let name = table.bytes(slot::NAME, "entry name")?;
        let mod_time = std::str::from_utf8(table.bytes(slot::MOD_TIME, "entry time")?)
            .map_err(|_| invalid(format!("the time of {} is not text", lossy(name))))?;
        let kind = table.bytes(slot::TYPE, "entry type")?;
        let file_type = FileType::from_bytes(kind).ok_or_else(|| {
            let kind = kind.get(..kind.len().min(32)).unwrap_or_default();
            let (name, kind) = (lossy(name), lossy(kind));
            invalid(format!("{name} has the unknown type {kind:?}"))
        })?;
        Ok(Self {
            name,
            file_type,
            uncompressed_offset: table.size(slot::OFFSET, "entry offset")?,
            uncompressed_size: table.size(slot::SIZE, "entry size")?,
            linkname: table.bytes(slot::LINKNAME, "entry link name")?,
            mode: low_half(table.i64(slot::MODE, "entry mode")?),
            uid: table.u32(slot::UID, "entry uid")?,
            gid: table.u32(slot::GID, "entry gid")?,
            uname: table.bytes(slot::UNAME, "entry user name")?,
            gname: table.bytes(slot::GNAME, "entry group name")?,
            mod_time,
            devmajor: table.i64(slot::DEVMAJOR, "entry device major")?,
            devminor: table.i64(slot::DEVMINOR, "entry device minor")?,
            records: Records::Stored(table.references(slot::XATTRS, "entry xattrs")?),
        })
    }

    /// Number of bytes of content that follow the entry's header. Only regular files have any,
    /// whatever the size field of other entries says.
    #[must_use]
    pub const fn content_len(&self) -> u64 {
        match self.file_type {
            FileType::Reg => self.uncompressed_size,
            _ => 0,
        }
    }

    /// The modification time in seconds and nanoseconds since 1970. `None` where the tar had none
    /// (Go's zero time, in the year 1) or the text is not an RFC 3339 time.
    #[must_use]
    pub fn mtime(&self) -> Option<(i64, u32)> {
        let time: jiff::Timestamp = self.mod_time.parse().ok()?;
        let (second, nanosecond) = (time.as_second(), time.subsec_nanosecond());
        // Before 1970 both parts are negative.
        let (second, nanosecond) = if nanosecond < 0 {
            (second - 1, nanosecond + 1_000_000_000)
        } else {
            (second, nanosecond)
        };
        // 0001-01-01T00:00:00Z
        if (second, nanosecond) == (-62_135_596_800, 0) {
            return None;
        }
        Some((second, u32::try_from(nanosecond).ok()?))
    }

    /// Number of PAX records.
    #[must_use]
    pub const fn record_count(&self) -> usize {
        match self.records {
            Records::Owned(records) => records.len(),
            Records::Stored(references) => references.len(),
        }
    }

    /// The PAX records as they are stored, or why one cannot be read.
    pub(crate) fn checked_records(
        &self,
    ) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), ZtocError>> + use<'a> {
        let (owned, stored) = match self.records {
            Records::Owned(records) => (records, None),
            Records::Stored(references) => (&[][..], Some(references)),
        };
        let owned = owned
            .iter()
            .map(|(key, value)| Ok((key.as_slice(), value.as_slice())));
        let stored = stored.into_iter().flat_map(|references| {
            references.tables("xattr").map(|record| {
                let record = record?;
                let key = record.bytes(0, "xattr key")?;
                Ok((key, record.bytes(1, "xattr value")?))
            })
        });
        owned.chain(stored)
    }

    /// *All* PAX records, in the order in which they are stored.
    pub fn records(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        // They were read before, so that there is no error.
        self.checked_records().filter_map(Result::ok)
    }

    /// All PAX records, sorted by key.
    pub(crate) fn sorted_records(&self) -> Vec<(&'a [u8], &'a [u8])> {
        let mut records: Vec<_> = self.records().collect();
        records.sort_by_key(|(key, _)| *key);
        records
    }

    /// The extended attributes to show: those under `SCHILY.xattr.`, without `trusted.*`, because
    /// an image must not forge overlay's own marks.
    pub fn posix_xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.records().filter_map(|(key, value)| {
            let name = key.strip_prefix(XATTR_PREFIX)?;
            (!name.starts_with(b"trusted.")).then_some((name, value))
        })
    }

    /// A keyed hash of all that the entry says but its offset: entries with different fields have
    /// different ones, unless their author knows the keys. `time` is its
    /// [`mtime`](Self::mtime).
    #[must_use]
    pub fn fingerprint(&self, keys: &impl BuildHasher, time: Option<(i64, u32)>) -> u64 {
        let mut state = keys.build_hasher();
        (self.name, self.file_type, self.content_len(), self.linkname).hash(&mut state);
        (self.mode, self.uid, self.gid, self.uname, self.gname).hash(&mut state);
        (time, self.devmajor, self.devminor).hash(&mut state);
        if self.record_count() > 0 {
            self.sorted_records().hash(&mut state);
        }
        state.finish()
    }

    /// A copy that does not borrow; its records are sorted by key.
    #[must_use]
    pub fn to_metadata(&self) -> FileMetadata {
        let records = self.sorted_records().into_iter();
        FileMetadata {
            name: self.name.to_vec(),
            file_type: self.file_type,
            uncompressed_offset: self.uncompressed_offset,
            uncompressed_size: self.uncompressed_size,
            linkname: self.linkname.to_vec(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            uname: self.uname.to_vec(),
            gname: self.gname.to_vec(),
            mod_time: self.mod_time.to_owned(),
            devmajor: self.devmajor,
            devminor: self.devminor,
            xattrs: records
                .map(|(key, value)| (key.to_vec(), value.to_vec()))
                .collect(),
        }
    }
}

impl FileMetadata {
    /// The entry that this is.
    #[must_use]
    pub fn as_entry(&self) -> Entry<'_> {
        Entry {
            name: &self.name,
            file_type: self.file_type,
            uncompressed_offset: self.uncompressed_offset,
            uncompressed_size: self.uncompressed_size,
            linkname: &self.linkname,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            uname: &self.uname,
            gname: &self.gname,
            mod_time: &self.mod_time,
            devmajor: self.devmajor,
            devminor: self.devminor,
            records: Records::Owned(&self.xattrs),
        }
    }

    /// As [`Entry::content_len`].
    #[must_use]
    pub fn content_len(&self) -> u64 {
        self.as_entry().content_len()
    }

    /// As [`Entry::mtime`].
    #[must_use]
    pub fn mtime(&self) -> Option<(i64, u32)> {
        self.as_entry().mtime()
    }

    /// As [`Entry::posix_xattrs`].
    pub fn posix_xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.as_entry().posix_xattrs()
    }
}

/// The entries in a zTOC's blob.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a>(References<'a>);

impl<'a> Entries<'a> {
    /// The entries of the zTOC whose root table it is.
    pub(crate) fn of(root: Table<'a>) -> Result<Self, ZtocError> {
        const WHAT: &str = "table of contents";
        match root.table(slots::TOC, WHAT) {
            Ok(toc) => Ok(Self(toc.references(0, WHAT)?)),
            Err(ZtocError::Missing(_)) => Ok(Self(References::default())),
            Err(error) => Err(error),
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The entries as they are stored, or why one cannot be read.
    pub(crate) fn checked(self) -> impl Iterator<Item = Result<Entry<'a>, ZtocError>> {
        self.0.tables("entry").map(|table| Entry::read(table?))
    }

    /// The positions of the entries, sorted by `uncompressed_offset`.
    pub(crate) fn order(self) -> Vec<u32> {
        let mut places: Vec<(u64, u32)> = (0_u32..)
            .zip(self.iter(None))
            .map(|(position, entry)| (entry.uncompressed_offset, position))
            .collect();
        places.sort_unstable();
        places.into_iter().map(|(_, position)| position).collect()
    }

    /// The entries, which have been checked, in this order.
    pub(crate) fn iter<'o>(
        self,
        order: Option<&'o [u32]>,
    ) -> impl Iterator<Item = Entry<'a>> + use<'a, 'o> {
        let position = move |index: usize| match order {
            Some(order) => order
                .get(index)
                .map_or(usize::MAX, |&at| usize::try_from(at).unwrap_or(usize::MAX)),
            None => index,
        };
        let entry = move |index| self.0.table(position(index), "entry").and_then(Entry::read);
        // They were read before, so that there is no error.
        (0..self.len()).filter_map(move |index| entry(index).ok())
    }
}
