//! A database file: its meta pages, and finding pages by number.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::bucket::Bucket;
use crate::error::BoltError;
use crate::page::{HEADER, Page, u32_at, u64_at};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of a meta before its checksum.
const META_SUMMED: usize = 56;
/// Page sizes are powers of two from here …
const SMALLEST_PAGE: usize = 512;
/// … to here; the largest of any supported machine is 64 KiB.
const LARGEST_PAGE: usize = 1 << 20;
/// Files larger than this are not read: v0.15's have some KiB for each snapshot or artifact.
const MOST: u64 = 1 << 30;

/// A bbolt database in memory, as of its last transaction.
#[derive(Debug)]
pub struct Database {
    bytes: Vec<u8>,
    page_size: usize,
    meta: Meta,
}

/// What is used of a meta page.
#[derive(Debug, Clone, Copy)]
struct Meta {
    page_size: usize,
    root: u64,
    /// No page has this number or a higher one.
    high_water: u64,
    transaction: u64,
}

impl Database {
    /// Reads a file whole. bbolt's own lock keeps those away that write to it.
    ///
    /// # Errors
    /// It cannot be read, is in use, or is not a database.
    pub fn open(path: &Path) -> Result<Self, BoltError> {
        Self::read(path, MOST)
    }

    /// The number of the last transaction of a file, of which only the meta pages are read.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn last_transaction(path: &Path) -> Result<u64, BoltError> {
        let metas = 2 * LARGEST_PAGE;
        Ok(Self::read(path, metas as u64)?.transaction())
    }

    fn read(path: &Path, at_most: u64) -> Result<Self, BoltError> {
        let failed = |source| BoltError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(BoltError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let size = file.metadata().map_err(failed)?.len();
        if size > MOST {
            return Err(BoltError::TooLarge {
                path: path.to_owned(),
                size,
                limit: MOST,
            });
        }
        let wanted = usize::try_from(size.min(at_most)).unwrap_or_default();
        let mut bytes = Vec::with_capacity(wanted);
        // While reading it may only shrink or grow if its writer keeps no lock.
        file.by_ref()
            .take(at_most)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Self::from_bytes(bytes)
    }

    /// Takes the bytes of a database file.
    ///
    /// # Errors
    /// It is not a database.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BoltError> {
        let first = Meta::parse(&bytes);
        // The second meta is one page further on. If the first is damaged, the size is not known.
        let second = match &first {
            Ok(meta) => Meta::at(&bytes, meta.page_size).ok(),
            Err(_) => std::iter::successors(Some(SMALLEST_PAGE), |size| size.checked_mul(2))
                .take_while(|size| *size <= LARGEST_PAGE)
                .find_map(|size| Meta::at(&bytes, size).ok()),
        };
        let meta = match (first, second) {
            (Ok(first), Some(second)) if second.transaction > first.transaction => second,
            (Ok(first), _) => first,
            (Err(_), Some(second)) => second,
            (Err(error), None) => return Err(error),
        };
        Ok(Self {
            bytes,
            page_size: meta.page_size,
            meta,
        })
    }

    /// The bucket that holds all others.
    #[must_use]
    pub fn root(&self) -> Bucket<'_> {
        Bucket::at_page(self, self.meta.root)
    }

    /// The number of the last transaction: it grows with each that changed something.
    #[must_use]
    pub fn transaction(&self) -> u64 {
        self.meta.transaction
    }

    /// The number of pages that can be in use.
    pub(crate) fn pages(&self) -> u64 {
        self.meta.high_water
    }

    /// A branch or leaf page with its overflow pages.
    pub(crate) fn page(&self, number: u64) -> Result<Page<'_>, BoltError> {
        let damaged = |reason| BoltError::damaged(number, reason);
        if number < 2 || number >= self.meta.high_water {
            return Err(damaged("no page of a tree has this number"));
        }
        let beyond = "it lies beyond the end of the file";
        let from_here = usize::try_from(number)
            .ok()
            .and_then(|number| number.checked_mul(self.page_size))
            .and_then(|start| self.bytes.get(start..))
            .ok_or(damaged(beyond))?;
        if u64_at(from_here, 0) != Some(number) {
            return Err(damaged("another number stands in it"));
        }
        let overflow = u32_at(from_here, 12).ok_or(damaged(beyond))?;
        let bytes = usize::try_from(overflow)
            .ok()
            .and_then(|overflow| overflow.checked_add(1))
            .and_then(|pages| pages.checked_mul(self.page_size))
            .and_then(|length| from_here.get(..length))
            .ok_or(damaged(beyond))?;
        Page::parse(bytes, number)
    }
}

impl Meta {
    /// The meta on a page that starts here.
    fn parse(page: &[u8]) -> Result<Self, BoltError> {
        let none = |reason| BoltError::NoDatabase { reason };
        let meta = page
            .get(HEADER..)
            .ok_or(none("the file is shorter than a page header"))?;
        let (Some(magic), Some(version), Some(page_size), Some(root)) = (
            u32_at(meta, 0),
            u32_at(meta, 4),
            u32_at(meta, 8),
            u64_at(meta, 16),
        ) else {
            return Err(none("the file is shorter than its meta page"));
        };
        if magic != MAGIC {
            return Err(none("the magic number is not bbolt's"));
        }
        if version != VERSION {
            return Err(none("the version of the file format is not 2"));
        }
        let (Some(high_water), Some(transaction), Some(checksum)) = (
            u64_at(meta, 40),
            u64_at(meta, 48),
            u64_at(meta, META_SUMMED),
        ) else {
            return Err(none("the file is shorter than its meta page"));
        };
        if fnv1a(meta.get(..META_SUMMED).unwrap_or_default()) != checksum {
            return Err(none("the checksum of the meta page is wrong"));
        }
        let page_size = usize::try_from(page_size).unwrap_or_default();
        if !page_size.is_power_of_two() || !(SMALLEST_PAGE..=LARGEST_PAGE).contains(&page_size) {
            return Err(none("the page size is not one that exists"));
        }
        Ok(Self {
            page_size,
            root,
            high_water,
            transaction,
        })
    }

    /// The second meta, if pages have this size.
    fn at(bytes: &[u8], page_size: usize) -> Result<Self, BoltError> {
        let meta = Self::parse(bytes.get(page_size..).unwrap_or_default())?;
        if meta.page_size == page_size {
            Ok(meta)
        } else {
            Err(BoltError::NoDatabase {
                reason: "the meta pages disagree on the page size",
            })
        }
    }
}

/// The 64-bit FNV-1a hash, which bbolt protects its meta pages with.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
