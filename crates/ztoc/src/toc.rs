//! One entry of a layer's table of contents.

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

    /// Its name in a zTOC.
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

    /// The kind with this name in a zTOC.
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
    /// The path as in the tar, any bytes.
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

/// The low 32 bits, which hold all that a mode can mean.
pub(crate) const fn low_half(value: i64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "that is the purpose"
    )]
    let low = value as u32;
    low
}
