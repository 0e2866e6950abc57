//! The file tree of a layer in compact arrays: its names and 40 bytes a file, 56 at most; extended
//! attributes are beyond that.
//!
//! Directories are numbered breadth first and the entries of a directory lie side by side, sorted
//! by name: a lookup is a binary search, and the position in a listing is a plain index. All of it
//! follows from the zTOC alone, so that every process that reads it numbers the nodes alike.

use std::ops::Range;

use soci_fuse::Attr;
use soci_oci::Digest;

use crate::header_check::HeaderChecks;
use crate::inode::{Directory, Extent, Inode, Meta, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG};
use crate::name_table::to_index;
use crate::xattr_sets::XattrSets;

/// Version of the rule by which nodes are numbered and listings positioned. It changes whenever a
/// zTOC would give other numbers: a server with another version must not adopt a connection.
pub const NUMBERING_VERSION: u32 = 1;

/// Space is accounted for in blocks of this size, in bytes.
pub(crate) const BLOCK: u64 = 4096;

/// The files of a layer as containerd would unpack them, whiteouts in overlay's form.
#[derive(Debug)]
pub struct Tree {
    /// Inode number `n` is at `n - 1`.
    pub(crate) inodes: Vec<Inode>,
    pub(crate) metas: Vec<Meta>,
    /// Sorted by inode number, and by entry.
    pub(crate) directories: Vec<Directory>,
    /// Where the content of files lies.
    pub(crate) extents: Vec<Extent>,
    /// Where the target of each symbolic link starts in `bytes`; it ends where the next one starts.
    pub(crate) links: Vec<u32>,
    /// Where each name starts in `bytes`; it ends where the next one starts. The first names of inodes
    /// are in the order of the inode numbers.
    pub(crate) names: Vec<u32>,
    /// All names in the order of `names`, then all link targets.
    pub(crate) bytes: Vec<u8>,
    /// Where the names end in `bytes`.
    pub(crate) names_end: u32,
    /// The positions in `names` of further names of files that have one before them, ascending.
    pub(crate) further_names: Vec<u32>,
    /// The inode of each further name.
    pub(crate) further_inodes: Vec<u32>,
    /// Files with several names, by inode number, and how many they have.
    pub(crate) link_counts: Vec<(u32, u32)>,
    pub(crate) xattrs: XattrSets,
    pub(crate) checksum: Digest,
    /// Length of the uncompressed tar.
    pub(crate) tar_size: u64,
    pub(crate) headers: HeaderChecks,
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
        self.inodes.capacity() * size_of::<Inode>()
            + self.metas.capacity() * size_of::<Meta>()
            + self.directories.capacity() * size_of::<Directory>()
            + self.extents.capacity() * size_of::<Extent>()
            + self.links.capacity() * size_of::<u32>()
            + self.names.capacity() * size_of::<u32>()
            + self.bytes.capacity()
            + self.further_names.capacity() * size_of::<u32>()
            + self.further_inodes.capacity() * size_of::<u32>()
            + self.link_counts.capacity() * size_of::<(u32, u32)>()
            + self.xattrs.memory()
            + self.headers.memory()
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

    pub(crate) fn meta(&self, inode: &Inode) -> Meta {
        let meta = self.metas.get(to_index(inode.meta()));
        meta.copied().unwrap_or_default()
    }

    /// The inode if it is of this type.
    fn of_kind(&self, ino: u64, kind: u32) -> Option<&Inode> {
        let inode = self.inode(ino)?;
        (self.meta(inode).kind() == kind).then_some(inode)
    }

    /// Type and permissions; 0 for an unknown inode.
    pub(crate) fn mode(&self, ino: u64) -> u32 {
        let inode = self.inode(ino);
        inode.map_or(0, |inode| self.meta(inode).mode())
    }

    /// Where a regular file's content lies.
    pub(crate) fn file(&self, ino: u64) -> Option<&Extent> {
        let inode = self.of_kind(ino, S_IFREG)?;
        self.extents.get(to_index(inode.at))
    }

    /// The positions of a directory's names.
    fn directory(&self, ino: u64) -> Option<Range<usize>> {
        let inode = self.of_kind(ino, S_IFDIR)?;
        let at = to_index(inode.at);
        let first = to_index(self.directories.get(at)?.first);
        let next = self.directories.get(at.checked_add(1)?);
        let end = next.map_or(self.names.len(), |next| to_index(next.first));
        Some(first..end)
    }

    fn name(&self, index: usize) -> Option<&[u8]> {
        let start = *self.names.get(index)?;
        let next = self.names.get(index.checked_add(1)?);
        let end = next.map_or(self.names_end, |start| *start);
        self.bytes.get(to_index(start)..to_index(end))
    }

    /// Number of names before a position that are the first of their inode.
    fn first_names_before(&self, index: usize) -> usize {
        let further = self.further_names.as_slice();
        index
            - further
                .partition_point(|at| to_index(*at) < index)
                .min(index)
    }

    /// The inode that the name at a position stands for.
    pub(crate) fn inode_of_name(&self, index: usize) -> u32 {
        let further = self
            .further_names
            .binary_search_by_key(&index, |at| to_index(*at));
        match further {
            Ok(at) => self.further_inodes.get(at).copied().unwrap_or_default(),
            // The root has no name.
            Err(before) => u32::try_from(index.saturating_sub(before) + 2).unwrap_or(u32::MAX),
        }
    }

    /// The directory that holds the first name of an inode; of the root, itself.
    pub(crate) fn parent(&self, ino: u64) -> u32 {
        let parent = || {
            let name = self.first_name(ino)?;
            let first = |directory: &Directory| to_index(directory.first);
            directory_of(&self.directories, name, first)
        };
        parent().map_or(1, |directory| directory.ino)
    }

    /// Number of directories in a directory.
    fn subdirectories(&self, names: &Range<usize>) -> usize {
        // Their numbers follow each other, as those of all first names of the directory.
        let before = |index: usize| {
            let ino = self.first_names_before(index) + 2;
            self.directories
                .partition_point(|directory| to_index(directory.ino) < ino)
        };
        before(names.end).saturating_sub(before(names.start))
    }

    /// Whether the inode is a directory.
    #[must_use]
    pub fn is_directory(&self, ino: u64) -> bool {
        self.directory(ino).is_some()
    }

    /// The inode that `name` stands for in directory `parent`. `.` and `..` are known.
    #[must_use]
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Option<u64> {
        let names = self.directory(parent)?;
        match name {
            b"." => return Some(parent),
            b".." => return Some(self.parent(parent).into()),
            _ => {}
        }
        let (mut low, mut high) = (names.start, names.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.inode_of_name(middle).into()),
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

    /// The directories that were made before an entry described them, without the root: number,
    /// metadata, and the number of the parent. Parents come before what is in them.
    pub(crate) fn implied(&self) -> impl Iterator<Item = (u32, Meta, u32)> {
        let any = self.metas.iter().any(Meta::is_implied);
        let inodes = self.inodes.iter().filter(move |_| any);
        let numbered = (1_u32..).zip(inodes);
        numbered.filter_map(|(ino, inode)| {
            let meta = self.meta(inode);
            let implied = meta.is_implied();
            implied.then(|| (ino, meta, self.parent(ino.into())))
        })
    }

    /// Attributes of an inode.
    #[must_use]
    pub fn attr(&self, ino: u64) -> Option<Attr> {
        let inode = self.inode(ino)?;
        let meta = self.meta(inode);
        let kind = meta.kind();
        let size = match kind {
            // What a directory's size means is up to the file system; one block is what others say.
            S_IFDIR => BLOCK,
            S_IFREG => self.file(ino).map_or(0, Extent::size),
            S_IFLNK => self.readlink(ino).map_or(0, |target| target.len() as u64),
            _ => 0,
        };
        let nlink = match kind {
            S_IFDIR => {
                let names = self.directory(ino).unwrap_or_default();
                u32::try_from(self.subdirectories(&names) + 2).unwrap_or(u32::MAX)
            }
            _ if inode.is_linked() => self.link_count(ino),
            _ => 1,
        };
        let rdev = match kind {
            S_IFCHR | S_IFBLK => inode.at,
            _ => 0,
        };
        let (mtime, mtime_nanos) = inode.time();
        Some(Attr {
            ino,
            size,
            blocks: size.div_ceil(BLOCK).saturating_mul(BLOCK / 512),
            mtime,
            mtime_nanos,
            mode: meta.mode(),
            nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev,
            blksize: 4096,
        })
    }

    /// Number of names of a file that has several.
    fn link_count(&self, ino: u64) -> u32 {
        let found = self
            .link_counts
            .binary_search_by_key(&ino, |(linked, _)| u64::from(*linked));
        let count = found.ok().and_then(|at| self.link_counts.get(at));
        count.map_or(1, |(_, count)| *count)
    }

    /// Attributes of the root directory: 0755 root, whatever entry the layer has for it.
    #[must_use]
    pub fn root_attr(&self) -> Attr {
        self.attr(soci_fuse::ROOT_ID).unwrap_or_default()
    }

    /// The target of a symbolic link.
    #[must_use]
    pub fn readlink(&self, ino: u64) -> Option<&[u8]> {
        let inode = self.of_kind(ino, S_IFLNK)?;
        let at = to_index(inode.at);
        let start = to_index(*self.links.get(at)?);
        let next = self.links.get(at.checked_add(1)?);
        let end = next.map_or(self.bytes.len(), |next| to_index(*next));
        self.bytes.get(start..end)
    }

    /// Where a regular file's content lies in the uncompressed tar: offset and length in bytes.
    #[must_use]
    pub fn extent(&self, ino: u64) -> Option<(u64, u64)> {
        let extent = self.file(ino)?;
        Some((extent.start(), extent.size()))
    }

    /// The entries of a directory from position `offset` (0 is the first, which is `.`) on.
    /// Positions are the same in every process. `None`: not a directory.
    #[must_use]
    pub fn readdir(&self, ino: u64, offset: u64) -> Option<impl Iterator<Item = DirEntry<'_>>> {
        let names = self.directory(ino)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = names.len().saturating_add(2);
        Some((from..end).filter_map(move |position| {
            let next = position as u64 + 1;
            let entry = |name, ino| DirEntry { name, ino, next };
            match position {
                0 => Some(entry(b".".as_slice(), ino)),
                1 => Some(entry(b"..".as_slice(), self.parent(ino).into())),
                _ => {
                    let index = names.start.checked_add(position - 2)?;
                    let ino = self.inode_of_name(index);
                    Some(entry(self.name(index)?, ino.into()))
                }
            }
        }))
    }

    /// Whether any inode has extended attributes (the opaque mark is one).
    #[must_use]
    pub const fn has_xattrs(&self) -> bool {
        self.xattrs.len() > 0
    }

    /// The names of all extended attributes, some several times.
    pub(crate) fn xattr_names(&self) -> impl Iterator<Item = &[u8]> {
        let sets = (1..).take(self.xattrs.len());
        sets.flat_map(|set| self.xattrs.get(set).map(|(name, _)| name))
    }

    fn xattr_set(&self, ino: u64) -> u32 {
        let inode = self.inode(ino);
        inode.map_or(0, |inode| self.meta(inode).xattrs)
    }

    /// The extended attributes of an inode, sorted by name; at most 64 KiB of names and values.
    pub fn xattrs(&self, ino: u64) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.get(self.xattr_set(ino))
    }

    /// One extended attribute of an inode.
    #[must_use]
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.value(self.xattr_set(ino), name)
    }

    /// The position of the first name of an inode other than the root. The inodes are numbered in the
    /// order in which the names are, so that all but the further names of a file count.
    fn first_name(&self, ino: u64) -> Option<usize> {
        let number = usize::try_from(ino.checked_sub(2)?).ok()?;
        let before = partition(self.further_names.len(), |at| {
            let further = self.further_names.get(at).copied().unwrap_or_default();
            to_index(further).saturating_sub(at) <= number
        });
        let name = number.checked_add(before)?;
        (name < self.names.len()).then_some(name)
    }

    /// The path of an inode's first name, for the log. Takes a search per part of the path.
    #[must_use]
    pub fn path(&self, ino: u64) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        while at != soci_fuse::ROOT_ID {
            let name = self.first_name(at).and_then(|name| self.name(name));
            let Some(name) = name else {
                break;
            };
            parts.push(name);
            // Parents have smaller numbers, so that this ends.
            at = u64::from(self.parent(at)).min(at.saturating_sub(1));
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

/// The directory that holds the name at a position: the last one whose `first` name is not behind it. A
/// request for a path or a parent takes a search per part, however many directories the layer has.
fn directory_of<T>(directories: &[T], name: usize, first: impl Fn(&T) -> usize) -> Option<&T> {
    let after = directories.partition_point(|directory| first(directory) <= name);
    directories.get(after.checked_sub(1)?)
}

/// The first of the numbers below `len` for which `is_before` is false, where it is true for all
/// before.
fn partition(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        match is_before(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_directory_of_a_name_is_found_by_a_search_among_all() {
        const COUNT: usize = 60_000;
        // Three names each, but for every tenth, which has none.
        let mut names = 0;
        let mut directories = Vec::new();
        for number in 0..COUNT {
            directories.push((names, number));
            names += if number % 10 == 0 { 0 } else { 3 };
        }
        for number in (0..COUNT).filter(|number| number % 10 != 0) {
            let looks = Cell::new(0);
            let first = |directory: &(usize, usize)| {
                looks.set(looks.get() + 1);
                directory.0
            };
            let name = directories[number].0 + number % 3;
            let found = directory_of(&directories, name, first).unwrap();
            assert_eq!(found.1, number);
            // 60,000 has 16 digits in base 2.
            assert!(looks.get() <= 17, "{}", looks.get());
        }
        assert_eq!(directory_of(&[(1, 0)], 0, |directory| directory.0), None);
    }
}
