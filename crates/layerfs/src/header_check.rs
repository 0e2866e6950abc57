//! The comparison of a file's tar headers with its entries in the zTOC, which the first read of the
//! file makes. Names, modes and owners come from the zTOC alone; here the layer itself confirms them.

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};

use soci_ztoc::{Entry, entry_of_header};

use crate::inode::Extent;
use crate::tree::Tree;

/// Size of a tar block, in bytes.
const BLOCK: u64 = 512;
/// The longest header that is compared, in blocks: 4 MiB of PAX records and long names.
const MOST_BLOCKS: u64 = 8192;
/// Bits of a fingerprint. Its key is random and never leaves the process.
const FINGERPRINT: u64 = (1 << 48) - 1;

/// Where an entry's tar header lies, with all that belongs to it, and what it must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Offset in the tar.
    pub(crate) at: u64,
    /// Length in bytes.
    pub(crate) len: usize,
    fingerprint: u64,
}

/// A header that does not say what the zTOC says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its tar header differs from its zTOC entry: {found}; the zTOC is forged or damaged")]
pub(crate) struct HeaderMismatch {
    found: String,
}

/// What is needed to check the headers of a tree.
#[derive(Debug, Default)]
pub(crate) struct HeaderChecks {
    keys: RandomState,
    /// Headers of hard links that gave their file other metadata, by inode number.
    pub(crate) of_links: Vec<(u32, Header)>,
    /// A bit per inode whose headers are as its entries say.
    checked: Box<[AtomicU64]>,
}

impl HeaderChecks {
    pub(crate) fn memory(&self) -> usize {
        self.checked.len() * size_of::<u64>()
            + self.of_links.capacity() * size_of::<(u32, Header)>()
    }

    /// Makes room for the bits of `inodes` inodes.
    pub(crate) fn prepare(&mut self, inodes: usize) {
        let words = inodes / 64 + 1;
        self.checked = (0..words).map(|_| AtomicU64::new(0)).collect();
    }

    /// The header of an entry that begins where the content of the entry before it ends.
    pub(crate) fn header(&self, entry: &Entry<'_>, from: u64, time: Option<(i64, u32)>) -> Header {
        let len = entry.uncompressed_offset.saturating_sub(from);
        Header {
            at: from,
            len: usize::try_from(len).unwrap_or(usize::MAX),
            fingerprint: entry.fingerprint(&self.keys, time) & FINGERPRINT,
        }
    }

    /// Whether what lies at the header says the same.
    pub(crate) fn check(&self, header: &Header, bytes: &[u8]) -> Result<(), HeaderMismatch> {
        let differs = |found| Err(HeaderMismatch { found });
        let entry = match entry_of_header(bytes) {
            Ok(entry) => entry,
            Err(error) => return differs(error.to_string()),
        };
        let entry = entry.as_entry();
        let fingerprint = entry.fingerprint(&self.keys, entry.mtime()) & FINGERPRINT;
        if fingerprint == header.fingerprint {
            return Ok(());
        }
        let name = entry.name.get(..200).unwrap_or(entry.name);
        differs(format!(
            "there it is {:?}, type {}, mode {:#o}, owner {}:{}, {} bytes, time {}",
            String::from_utf8_lossy(name),
            entry.file_type.as_str(),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.content_len(),
            entry.mod_time,
        ))
    }

    /// Whether the file's headers are known to say what its entries say.
    pub(crate) fn is_checked(&self, ino: u64) -> bool {
        let word = self.word(ino);
        word.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Records that the file's headers say what its entries say.
    pub(crate) fn set_checked(&self, ino: u64) {
        if let Some((word, bit)) = self.word(ino) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn word(&self, ino: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.checked.get(usize::try_from(ino / 64).ok()?)?;
        Some((word, 1 << (ino % 64)))
    }
}

impl Header {
    /// As the number that an [`Extent`] keeps; `None` if it is longer than any header.
    pub(crate) fn packed(&self) -> Option<u64> {
        let blocks = self.len as u64 / BLOCK;
        (blocks <= MOST_BLOCKS).then_some(self.fingerprint | (blocks << 48))
    }

    /// Whether what begins at that offset in the tar follows the header.
    pub(crate) fn ends_at(&self, offset: u64) -> bool {
        self.at.checked_add(self.len as u64) == Some(offset)
    }

    fn of(extent: &Extent) -> Self {
        let (check, start) = (extent.check(), extent.start());
        let blocks = check >> 48;
        let block_start = start / BLOCK * BLOCK;
        let at = block_start.saturating_sub(blocks * BLOCK);
        Self {
            at,
            len: usize::try_from(start - at).unwrap_or(usize::MAX),
            fingerprint: check & FINGERPRINT,
        }
    }
}

/// The headers that must be compared before a file's content is shown; none if it has been done.
pub(crate) fn headers_to_check(tree: &Tree, ino: u64) -> Vec<Header> {
    let Some(extent) = tree.file(ino) else {
        return Vec::new();
    };
    if tree.headers.is_checked(ino) {
        return Vec::new();
    }
    let links = &tree.headers.of_links;
    let first = links.partition_point(|(linked, _)| u64::from(*linked) < ino);
    let of_links = links.iter().skip(first);
    let of_links = of_links.take_while(|(linked, _)| u64::from(*linked) == ino);
    let own = std::iter::once(Header::of(extent));
    own.chain(of_links.map(|(_, header)| *header)).collect()
}
