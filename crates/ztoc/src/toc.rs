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

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl FileMetadata {
    /// How many bytes of content follow the entry's header. Only regular files have any, whatever
    /// the size field of other entries says.
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

    /// The extended attributes to show: those under `SCHILY.xattr.`, without `trusted.*`, because
    /// an image must not forge overlay's own marks.
    pub fn posix_xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(XATTR_PREFIX)?;
            (!name.starts_with(b"trusted.")).then_some((name, value.as_slice()))
        })
    }
}
