//! Answers to the kernel, encoded as bytes. No I/O.

use std::time::Duration;

use zerocopy::IntoBytes;

use crate::abi::{AttrOut, AttrWire, Dirent, EntryOut, StatFsOut};

/// Attributes of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number, which is also the node number.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Time of modification, and of access and change: seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of `mtime`.
    pub mtime_nanos: u32,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's encoding of 32 bits ([`encode_device`]).
    pub rdev: u32,
    /// Preferred size of reads in bytes.
    pub blksize: u32,
}

impl Attr {
    fn wire(&self) -> AttrWire {
        AttrWire {
            ino: self.ino,
            size: self.size,
            blocks: self.blocks,
            atime: self.mtime,
            mtime: self.mtime,
            ctime: self.mtime,
            atimensec: self.mtime_nanos,
            mtimensec: self.mtime_nanos,
            ctimensec: self.mtime_nanos,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.blksize,
            flags: 0,
        }
    }
}

/// Encodes a device number as the kernel packs it into 32 bits (`new_encode_dev` in
/// include/linux/kdev_t.h): 12 bits of major, 20 bits of minor. `None` if one is larger.
#[must_use]
pub const fn encode_device(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The result of a lookup, and how long the kernel may cache it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node's attributes; its number is their `ino`. `None`: there is no such name, which the
    /// kernel caches, too.
    pub attr: Option<Attr>,
    /// How long the kernel may cache the name.
    pub entry_ttl: Duration,
    /// How long the kernel may cache the attributes.
    pub attr_ttl: Duration,
}

impl Entry {
    pub(crate) fn wire(&self) -> EntryOut {
        EntryOut {
            nodeid: self.attr.map_or(0, |attr| attr.ino),
            generation: 0,
            entry_valid: self.entry_ttl.as_secs(),
            attr_valid: self.attr_ttl.as_secs(),
            entry_valid_nsec: self.entry_ttl.subsec_nanos(),
            attr_valid_nsec: self.attr_ttl.subsec_nanos(),
            attr: self.attr.unwrap_or_default().wire(),
        }
    }
}

pub(crate) fn attr_out(attr: &Attr, ttl: Duration) -> AttrOut {
    AttrOut {
        attr_valid: ttl.as_secs(),
        attr_valid_nsec: ttl.subsec_nanos(),
        dummy: 0,
        attr: attr.wire(),
    }
}

/// Capacity of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size in units of `frsize`.
    pub blocks: u64,
    /// Free, in units of `frsize`.
    pub bfree: u64,
    /// Free to ordinary users, in units of `frsize`.
    pub bavail: u64,
    /// Number of inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size in bytes.
    pub bsize: u32,
    /// Longest file name in bytes.
    pub namelen: u32,
    /// Block size in bytes.
    pub frsize: u32,
}

impl StatFs {
    pub(crate) const fn wire(&self) -> StatFsOut {
        StatFsOut {
            blocks: self.blocks,
            bfree: self.bfree,
            bavail: self.bavail,
            files: self.files,
            ffree: self.ffree,
            bsize: self.bsize,
            namelen: self.namelen,
            frsize: self.frsize,
            padding: 0,
            spare: [0; 6],
        }
    }
}

/// The entries of one READDIR or READDIRPLUS answer, within the room that the kernel has.
#[derive(Debug)]
pub struct DirBuffer {
    bytes: Vec<u8>,
    room: usize,
    plus: bool,
}

impl DirBuffer {
    /// Creates an empty answer to a request with room for `size` bytes. At most 1 MiB is used.
    #[must_use]
    pub fn new(size: u32, plus: bool) -> Self {
        let room = usize::try_from(size).unwrap_or(usize::MAX).min(1 << 20);
        Self {
            bytes: Vec::with_capacity(room.min(64 << 10)),
            room,
            plus,
        }
    }

    /// Adds an entry; `next` is the offset at which the listing resumes after it. `mode` is the
    /// type as in `st_mode`. `entry` is called only for a READDIRPLUS answer; one without
    /// attributes means that the kernel looks the name up itself. False, and nothing is added, if
    /// there is no more room.
    pub fn push(
        &mut self,
        name: &[u8],
        ino: u64,
        mode: u32,
        next: u64,
        entry: impl FnOnce() -> Entry,
    ) -> bool {
        let head = if self.plus { size_of::<EntryOut>() } else { 0 } + size_of::<Dirent>();
        let end = self.bytes.len() + (head + name.len()).next_multiple_of(8);
        let Ok(namelen) = u32::try_from(name.len()) else {
            return false;
        };
        if end > self.room {
            return false;
        }
        if self.plus {
            self.bytes.extend_from_slice(entry().wire().as_bytes());
        }
        let dirent = Dirent {
            ino,
            off: next,
            namelen,
            kind: (mode >> 12) & 0xf,
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    /// The encoded entries.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}
