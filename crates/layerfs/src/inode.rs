//! The attributes of one inode in compact form: 16 bytes, 20 more of a file or 8 of a directory, and 16
//! that many inodes share.

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_ISGID: u32 = 0o2000;
/// Type and permissions of a directory without an entry.
pub(crate) const DIRECTORY_MODE: u32 = S_IFDIR | 0o755;

/// The file has more names than one; their number is in a table of its own.
const LINKED: u32 = 1 << 31;
const NANOS: u64 = 1_000_000_000;

/// One inode. What depends on its type lies in a table of the type.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inode {
    /// Modification time in nanoseconds since 1970.
    pub(crate) mtime: u64,
    /// Position of its [`Meta`], and [`LINKED`].
    meta: u32,
    /// Position in the table of files, directories or symbolic links. Devices: the device number.
    pub(crate) at: u32,
}

impl Inode {
    pub(crate) const fn new(meta: u32, at: u32) -> Self {
        Self { mtime: 0, meta, at }
    }

    pub(crate) const fn meta(&self) -> u32 {
        self.meta & !LINKED
    }

    pub(crate) const fn set_meta(&mut self, meta: u32) {
        self.meta = (self.meta & LINKED) | (meta & !LINKED);
    }

    pub(crate) const fn is_linked(&self) -> bool {
        self.meta & LINKED != 0
    }

    pub(crate) const fn set_linked(&mut self) {
        self.meta |= LINKED;
    }

    /// The modification time in seconds and nanoseconds.
    pub(crate) const fn time(&self) -> (i64, u32) {
        let seconds = (self.mtime / NANOS).cast_signed();
        (seconds, (self.mtime % NANOS) as u32)
    }
}

/// Where the content of a regular file lies in the tar, and the check of its header. Bytes instead of
/// numbers, which would be aligned: 20 bytes, not 24.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extent {
    check: [u8; 8],
    start: [u8; 6],
    size: [u8; 6],
}

impl Extent {
    /// `check` is the fingerprint of the entry (48 bits) and the length of its tar header in blocks
    /// (16). `None`: it starts beyond, or has more than, 256 TiB.
    pub(crate) fn new(start: u64, size: u64, check: u64) -> Option<Self> {
        Some(Self {
            check: check.to_le_bytes(),
            start: six_bytes(start)?,
            size: six_bytes(size)?,
        })
    }

    /// Where the content starts in the tar.
    pub(crate) const fn start(&self) -> u64 {
        number(self.start)
    }

    /// Length in bytes.
    pub(crate) const fn size(&self) -> u64 {
        number(self.size)
    }

    pub(crate) const fn check(&self) -> u64 {
        u64::from_le_bytes(self.check)
    }
}

const fn six_bytes(number: u64) -> Option<[u8; 6]> {
    match number.to_le_bytes() {
        [a, b, c, d, e, f, 0, 0] => Some([a, b, c, d, e, f]),
        _ => None,
    }
}

const fn number([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// A directory. Its entries end where those of the next directory start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Directory {
    /// Position of its first name.
    pub(crate) first: u32,
    /// Its inode number.
    pub(crate) ino: u32,
}

/// A time since 1970 in nanoseconds. containerd sets times before 1970, and those that do not fit 64
/// bits of nanoseconds, to 1970 (`boundTime`).
pub(crate) fn nanoseconds(time: Option<(i64, u32)>) -> u64 {
    const LATEST: u64 = i64::MAX.unsigned_abs();
    let (seconds, nanos) = time.unwrap_or_default();
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(NANOS)?.checked_add(nanos.into()))
        .filter(|time| *time <= LATEST)
        .unwrap_or_default()
}

/// What many inodes share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Meta {
    /// Type and permissions, and [`Meta::FLAGS`].
    mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Which set of extended attributes, plus one; 0: none.
    pub(crate) xattrs: u32,
}

impl Meta {
    /// A directory that was made before an entry described it.
    const IMPLIED: u32 = 1 << 31;
    /// An entry described it later.
    const DESCRIBED: u32 = 1 << 30;
    /// It was made in an implied directory that no entry had described yet.
    const IN_IMPLIED: u32 = 1 << 29;
    const FLAGS: u32 = Self::IMPLIED | Self::DESCRIBED | Self::IN_IMPLIED;

    pub(crate) const fn new(mode: u32, uid: u32, gid: u32) -> Self {
        Self {
            mode,
            uid,
            gid,
            xattrs: 0,
        }
    }

    /// A directory without an entry of its own in one that has this metadata now. mkdir(2) gives it
    /// the group of a directory with the set-group-ID bit.
    pub(crate) const fn implied_in(parent: Self) -> Self {
        let mut meta = Self::new(DIRECTORY_MODE | Self::IMPLIED, 0, 0);
        if parent.is_only_implied() {
            meta.mode |= Self::IN_IMPLIED;
        } else if parent.mode & S_ISGID != 0 {
            meta.gid = parent.gid;
        }
        meta
    }

    /// The metadata of an entry for a directory that has this metadata already.
    pub(crate) const fn described(self, mode: u32, uid: u32, gid: u32) -> Self {
        let mut meta = Self::new(mode, uid, gid);
        if self.is_implied() {
            meta.mode |= Self::IMPLIED | Self::DESCRIBED;
        }
        meta
    }

    /// The same with a set of extended attributes.
    pub(crate) const fn with_xattrs(mut self, xattrs: u32) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Whether it is a directory that was made before an entry described it.
    pub(crate) const fn is_implied(&self) -> bool {
        self.mode & Self::IMPLIED != 0
    }

    /// Whether no entry describes it.
    pub(crate) const fn is_only_implied(&self) -> bool {
        self.mode & (Self::IMPLIED | Self::DESCRIBED) == Self::IMPLIED
    }

    /// Whether it was made in an implied directory that no entry had described yet.
    pub(crate) const fn is_in_implied(&self) -> bool {
        self.mode & Self::IN_IMPLIED != 0
    }

    pub(crate) const fn mode(&self) -> u32 {
        self.mode & !Self::FLAGS
    }

    pub(crate) const fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }
}
