//! One entry of a layer's table of contents.

use crate::entry::{Entry, Records};

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Another name of the file that `linkname` names.
    Hardlink,
    /// A symbolic link to `linkname`.
    Symlink,
    /// A directory.
    Dir,
    /// A regular file.
    Reg,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

impl FileType {
    /// All kinds, in no particular order.
    pub const ALL: [Self; 7] = [
        Self::Hardlink,
        Self::Symlink,
        Self::Dir,
        Self::Reg,
        Self::Char,
        Self::Block,
        Self::Fifo,
    ];

    /// The word that stands for it in a zTOC.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hardlink => "hardlink",
            Self::Symlink => "symlink",
            Self::Dir => "dir",
            Self::Reg => "reg",
            Self::Char => "char",
            Self::Block => "block",
            Self::Fifo => "fifo",
        }
    }

    /// The kind that a word of a zTOC stands for.
    #[must_use]
    pub fn from_bytes(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str().as_bytes() == word)
    }
}

/// One entry of a layer's table of contents, as its tar header and PAX records said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMetadata {
    /// The path as it stands in the tar, any bytes.
    pub name: Vec<u8>,
    /// The kind of file.
    pub file_type: FileType,
    /// Where the content starts in the uncompressed tar, in bytes.
    pub uncompressed_offset: u64,
    /// The length of the content in bytes.
    pub uncompressed_size: u64,
    /// The target of a symbolic or hard link, any bytes.
    pub linkname: Vec<u8>,
    /// The low 32 bits of the tar header's mode field: permissions, setuid, setgid, sticky, and
    /// whatever else was there.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name.
    pub uname: Vec<u8>,
    /// Group's name.
    pub gname: Vec<u8>,
    /// The modification time as stored: RFC 3339 with as many fractional digits as needed.
    pub mod_time: String,
    /// Device major number.
    pub devmajor: i64,
    /// Device minor number.
    pub devminor: i64,
    /// *All* PAX records, sorted by key.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
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
    pub const fn content_len(&self) -> u64 {
        match self.file_type {
            FileType::Reg => self.uncompressed_size,
            _ => 0,
        }
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
