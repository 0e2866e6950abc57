//! The file tree of a layer in compact arrays: about its names plus 64 bytes an entry.
//!
//! Directories are numbered breadth first and the entries of a directory lie side by side, sorted
//! by name: a lookup is a binary search, and the position in a listing is a plain index. All of it
//! follows from the zTOC alone, so that every process that reads it numbers the nodes alike.

use soci_fuse::Attr;
use soci_oci::Digest;

use soci_layer::{IdMaps, OverlayXattr};

/// Version of the rule by which nodes are numbered and listings positioned. It changes whenever a
/// zTOC would give other numbers: a server with another version must not adopt a connection.
pub const NUMBERING_VERSION: u32 = 1;

/// Space is accounted for in blocks of this size, in bytes.
pub(crate) const BLOCK: u64 = 4096;

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;

/// Attributes of one inode.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inode {
    /// Files: where the content starts in the tar. Links: where the target starts in the bytes.
    /// Directories: the first of its entries.
    pub(crate) start: u64,
    /// Files and links: length in bytes. Directories: number of entries.
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) mtime_nanos: u32,
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    /// Devices: the device number. Directories: the parent's inode number.
    pub(crate) aux: u32,
    /// Which set of extended attributes, plus one; 0: none.
    pub(crate) xattrs: u32,
}

impl Inode {
    pub(crate) const fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    /// Where the name starts in the bytes; it ends where the next one starts.
    pub(crate) start: u32,
    pub(crate) ino: u32,
}

/// Names and values, sorted by name.
pub(crate) type XattrSet = Vec<(Vec<u8>, Vec<u8>)>;

/// The files of a layer as containerd would unpack them, whiteouts in overlay's form.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Inode number `n` is at `n - 1`.
    pub(crate) inodes: Vec<Inode>,
    pub(crate) names: Vec<Name>,
    /// All names in the order of `names`, then all link targets.
    pub(crate) bytes: Vec<u8>,
    /// Where the names end in `bytes`.
    pub(crate) names_end: u32,
    pub(crate) xattr_sets: Vec<XattrSet>,
    pub(crate) checksum: Digest,
    /// Length of the uncompressed tar.
    pub(crate) tar_size: u64,
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The file name.
    pub name: &'a [u8],
    /// The inode number.
    pub ino: u64,
    /// The position after this entry, at which the listing resumes.
    pub next: u64,
}

impl Tree {
    /// The same tree with translated owners. Numbers and positions stay.
    #[must_use]
    pub fn remapped(&self, maps: &IdMaps) -> Self {
        let mut tree = self.clone();
        for inode in &mut tree.inodes {
            (inode.uid, inode.gid) = maps.map(inode.uid, inode.gid);
        }
        tree
    }

    /// The same tree without extended attributes but the mark of opaque directories; `None` if it
    /// has no others.
    #[must_use]
    pub fn without_xattrs(&self, mark: OverlayXattr) -> Option<Self> {
        let is_mark = |name: &[u8]| name == mark.opaque().as_bytes();
        let mut all = self.xattr_sets.iter().flatten();
        if all.all(|(name, _)| is_mark(name)) {
            return None;
        }
        let mut tree = self.clone();
        for set in &mut tree.xattr_sets {
            set.retain(|(name, _)| is_mark(name));
        }
        if tree.xattr_sets.iter().all(Vec::is_empty) {
            tree.xattr_sets.clear();
        }
        for inode in &mut tree.inodes {
            let set = usize::try_from(inode.xattrs).ok();
            let set = set.and_then(|set| tree.xattr_sets.get(set.checked_sub(1)?));
            if set.is_none_or(Vec::is_empty) {
                inode.xattrs = 0;
            }
        }
        Some(tree)
    }

    /// How many inodes there are; their numbers are 1 to this.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// Never true: there is always a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// Checksum over the numbering: names, inode numbers and types in order.
    #[must_use]
    pub const fn numbering_checksum(&self) -> &Digest {
        &self.checksum
    }

    /// Memory that the tree holds, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let xattrs = self.xattr_sets.iter().flatten();
        self.inodes.capacity() * size_of::<Inode>()
            + self.names.capacity() * size_of::<Name>()
            + self.bytes.capacity()
            + xattrs
                .map(|(name, value)| name.capacity() + value.capacity())
                .sum::<usize>()
    }

    /// Length of the uncompressed tar in bytes.
    #[must_use]
    pub const fn tar_size(&self) -> u64 {
        self.tar_size
    }

    pub(crate) fn inode(&self, ino: u64) -> Option<&Inode> {
        let index = usize::try_from(ino.checked_sub(1)?).ok()?;
        self.inodes.get(index)
    }

    fn directory(&self, ino: u64) -> Option<(&Inode, usize, usize)> {
        let inode = self.inode(ino).filter(|inode| inode.kind() == S_IFDIR)?;
        let first = usize::try_from(inode.start).ok()?;
        let count = usize::try_from(inode.size).ok()?;
        Some((inode, first, count))
    }

    fn name(&self, index: usize) -> Option<&[u8]> {
        let start = self.names.get(index)?.start;
        let next = self.names.get(index.checked_add(1)?);
        let end = next.map_or(self.names_end, |name| name.start);
        self.bytes
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    /// Whether the inode is a directory.
    #[must_use]
    pub fn is_directory(&self, ino: u64) -> bool {
        self.directory(ino).is_some()
    }

    /// The inode that `name` stands for in directory `parent`. `.` and `..` are known.
    #[must_use]
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Option<u64> {
        let (inode, first, count) = self.directory(parent)?;
        match name {
            b"." => return Some(parent),
            b".." => return Some(u64::from(inode.aux)),
            _ => {}
        }
        let (mut low, mut high) = (first, first.checked_add(count)?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(u64::from(self.names.get(middle)?.ino)),
            }
        }
        None
    }

    /// Looks up a path of plain names from the root: no `..`, no links. See [`Tree::resolve`].
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<u64> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .try_fold(soci_fuse::ROOT_ID, |parent, name| self.lookup(parent, name))
    }

    /// Attributes of an inode.
    #[must_use]
    pub fn attr(&self, ino: u64) -> Option<Attr> {
        let inode = self.inode(ino)?;
        let kind = inode.kind();
        // What a directory's size means is up to the file system; one block is what others say.
        let size = if kind == S_IFDIR { BLOCK } else { inode.size };
        let device = kind == S_IFCHR || kind == S_IFBLK;
        Some(Attr {
            ino,
            size,
            blocks: size.div_ceil(BLOCK).saturating_mul(BLOCK / 512),
            mtime: inode.mtime,
            mtime_nanos: inode.mtime_nanos,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: if device { inode.aux } else { 0 },
            blksize: 4096,
        })
    }

    /// Attributes of the root directory: the layer's root entry, or 0755 root.
    #[must_use]
    pub fn root_attr(&self) -> Attr {
        self.attr(soci_fuse::ROOT_ID).unwrap_or_default()
    }

    /// The target of a symbolic link.
    #[must_use]
    pub fn readlink(&self, ino: u64) -> Option<&[u8]> {
        let inode = self.inode(ino).filter(|inode| inode.kind() == S_IFLNK)?;
        let start = usize::try_from(inode.start).ok()?;
        let end = start.checked_add(usize::try_from(inode.size).ok()?)?;
        self.bytes.get(start..end)
    }

    /// Where a regular file's content lies in the uncompressed tar: offset and length in bytes.
    #[must_use]
    pub fn extent(&self, ino: u64) -> Option<(u64, u64)> {
        let inode = self.inode(ino).filter(|inode| inode.kind() == S_IFREG)?;
        Some((inode.start, inode.size))
    }

    /// The entries of a directory from position `offset` (0 is the first, which is `.`) on.
    /// Positions are the same in every process. `None`: not a directory.
    #[must_use]
    pub fn readdir(&self, ino: u64, offset: u64) -> Option<impl Iterator<Item = DirEntry<'_>>> {
        let (inode, first, count) = self.directory(ino)?;
        let parent = u64::from(inode.aux);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        Some((from..count.saturating_add(2)).filter_map(move |position| {
            let next = position as u64 + 1;
            let entry = |name, ino| DirEntry { name, ino, next };
            match position {
                0 => Some(entry(b".".as_slice(), ino)),
                1 => Some(entry(b"..".as_slice(), parent)),
                _ => {
                    let index = first.checked_add(position - 2)?;
                    let ino = u64::from(self.names.get(index)?.ino);
                    Some(entry(self.name(index)?, ino))
                }
            }
        }))
    }

    /// Whether any inode has extended attributes (the opaque mark is one).
    #[must_use]
    pub fn has_xattrs(&self) -> bool {
        !self.xattr_sets.is_empty()
    }

    /// The extended attributes of an inode, sorted by name.
    #[must_use]
    pub fn xattrs(&self, ino: u64) -> &[(Vec<u8>, Vec<u8>)] {
        self.inode(ino)
            .and_then(|inode| usize::try_from(inode.xattrs).ok()?.checked_sub(1))
            .and_then(|set| self.xattr_sets.get(set))
            .map_or(&[], Vec::as_slice)
    }

    /// One extended attribute of an inode.
    #[must_use]
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Option<&[u8]> {
        self.xattrs(ino)
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_slice())
    }

    /// A path of an inode, for the log. Searches the whole tree.
    #[must_use]
    pub fn path(&self, ino: u64) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        // The depth is bounded by the number of inodes; broken numbers cannot loop for ever.
        while at != soci_fuse::ROOT_ID && parts.len() <= self.inodes.len() {
            let Some(index) = self.names.iter().position(|name| u64::from(name.ino) == at) else {
                break;
            };
            parts.push(self.name(index).unwrap_or_default());
            let holds = |inode: &Inode| {
                inode.kind() == S_IFDIR
                    && (inode.start..inode.start + inode.size).contains(&(index as u64))
            };
            let Some(parent) = self.inodes.iter().position(holds) else {
                break;
            };
            at = parent as u64 + 1;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }
}
