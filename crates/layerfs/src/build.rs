//! The application of a zTOC's entries in the order of the tar, by the rules with which containerd
//! unpacks a layer into an empty upper directory (containerd pkg/archive, `applyNaive` and
//! `OverlayConvertWhiteout`).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use soci_fuse::encode_device;
use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::{parts, split};
use soci_ztoc::{FileMetadata, FileType};

use crate::flatten::flatten;
use crate::options::{TreeError, TreeOptions};
use crate::tar_path::{check_name, printable};
use crate::tree::{
    Inode, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, Tree, XattrSet,
};

/// Longest name of an extended attribute (XATTR_NAME_MAX in linux/limits.h).
const XATTR_NAME_MAX: usize = 255;
/// Longest path and link target (PATH_MAX in linux/limits.h, less the zero byte).
const TARGET_MAX: usize = 4095;
/// Limit of implied directories (without an entry of their own) per entry, on average. Each takes two
/// bytes in a name and a hundred times as many in the tree.
const IMPLIED_PER_ENTRY: usize = 8;
/// Implied directories beyond that limit, for small layers; more than any path has.
const IMPLIED_MORE: usize = 4096;
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const ROOT: u32 = 0;

/// A file of the growing tree. Names are kept apart, because a file may have several.
pub(crate) struct Node<'a> {
    pub(crate) inode: Inode,
    /// Target of a symbolic link.
    pub(crate) target: &'a [u8],
    pub(crate) xattrs: XattrSet,
}

/// Directory and name, the key of an entry.
pub(crate) type Key<'a> = (u32, &'a [u8]);

/// All entries by directory and name. The hasher has fixed keys: a hostile layer can make its own
/// mount slow, nothing else.
type Names<'a> = HashMap<Key<'a>, u32, BuildHasherDefault<DefaultHasher>>;

struct Whiteout<'a> {
    key: Key<'a>,
    uid: u32,
    gid: u32,
}

struct Builder<'a> {
    options: &'a TreeOptions,
    tar_size: u64,
    nodes: Vec<Node<'a>>,
    names: Names<'a>,
    whiteouts: Vec<Whiteout<'a>>,
    entries: usize,
    /// Directories without an entry of their own, so far.
    implied: usize,
    /// The parent directory of the last entry, by its path in the tar: neighbours share it.
    last_parent: Option<(&'a [u8], u32)>,
    /// The last time that was parsed: neighbours share it too.
    last_time: Option<(&'a str, (i64, u32))>,
}

impl Tree {
    /// The tree of a layer, from its zTOC's entries and the length of its tar in bytes.
    ///
    /// Names are cleaned (`./`, leading `/`, `..`), the last of several entries with one name
    /// wins, missing parents are 0755 root, hard links share an inode and the last one's metadata
    /// holds, a parent that is a symbolic link of the same layer is followed within the layer. A
    /// hard link whose target is not in the layer makes containerd's unpacking fail, so it is an
    /// error: the layer falls back to unpacking, which reports it.
    ///
    /// # Errors
    /// The layer cannot be shown as containerd would unpack it.
    pub fn build(
        toc: &[FileMetadata],
        tar_size: u64,
        options: TreeOptions,
    ) -> Result<Self, TreeError> {
        let mut builder = Builder::new(&options, tar_size, toc.len());
        for entry in toc {
            builder.apply(entry)?;
        }
        builder.add_whiteouts()?;
        flatten(builder.nodes, builder.names, tar_size)
    }
}

impl<'a> Builder<'a> {
    fn new(options: &'a TreeOptions, tar_size: u64, entries: usize) -> Self {
        let mut builder = Self {
            options,
            tar_size,
            nodes: Vec::with_capacity(entries + 1),
            names: Names::with_capacity_and_hasher(entries, BuildHasherDefault::default()),
            whiteouts: Vec::new(),
            entries,
            implied: 0,
            last_parent: None,
            last_time: None,
        };
        builder.nodes.push(builder.implied_directory());
        builder
    }

    /// A directory without an entry of its own. Its time is 1970: it has none in the tar.
    fn implied_directory(&self) -> Node<'a> {
        let (uid, gid) = self.options.owner(0, 0);
        Node {
            inode: Inode {
                mode: S_IFDIR | 0o755,
                uid,
                gid,
                ..Inode::default()
            },
            target: &[],
            xattrs: Vec::new(),
        }
    }

    fn apply(&mut self, entry: &'a FileMetadata) -> Result<(), TreeError> {
        let path = &entry.name;
        if path.len() > TARGET_MAX || entry.linkname.len() > TARGET_MAX {
            return Err(TreeError::BadName {
                name: printable(path.get(..64).unwrap_or(path)),
            });
        }
        let Some((parent_path, base)) = split(path) else {
            // The root's own entry.
            if entry.file_type == FileType::Dir {
                let inode = self.inode(entry)?;
                self.set_metadata(ROOT, &inode, entry);
            }
            return Ok(());
        };
        check_name(base, path)?;
        let parent = match self.last_parent {
            Some((known, parent)) if known == parent_path => parent,
            _ => {
                let parent = self.make_parents(parent_path, path)?;
                self.last_parent = Some((parent_path, parent));
                parent
            }
        };
        let key = (parent, base);
        if let Some(hidden) = base.strip_prefix(WHITEOUT)
            && entry.file_type != FileType::Dir
        {
            self.apply_whiteout(key, hidden, entry);
            // A file of AUFS (`.wh..wh.`) may be the target of hard links; it is left out at the end.
            if !base.starts_with(WHITEOUT_META) || base == OPAQUE {
                return Ok(());
            }
        }
        match entry.file_type {
            FileType::Hardlink => self.link(key, entry),
            FileType::Dir if self.is_directory(key) => {
                let inode = self.inode(entry)?;
                if let Some(&node) = self.names.get(&key) {
                    self.set_metadata(node, &inode, entry);
                }
                Ok(())
            }
            _ => {
                let inode = self.inode(entry)?;
                let target = match entry.file_type {
                    FileType::Symlink => entry.linkname.as_slice(),
                    _ => &[],
                };
                let node = self.add_node(Node {
                    inode,
                    target,
                    xattrs: self.xattrs(entry),
                })?;
                self.put(key, node);
                Ok(())
            }
        }
    }

    /// The inode that an entry describes.
    fn inode(&mut self, entry: &'a FileMetadata) -> Result<Inode, TreeError> {
        let (uid, gid) = self.options.owner(entry.uid, entry.gid);
        let mut inode = Inode {
            mode: (entry.mode & 0o7777) | kind_bits(entry.file_type),
            uid,
            gid,
            ..Inode::default()
        };
        (inode.mtime, inode.mtime_nanos) = self.time(entry);
        match entry.file_type {
            FileType::Reg => {
                inode.start = entry.uncompressed_offset;
                inode.size = entry.uncompressed_size;
                let end = inode.start.checked_add(inode.size);
                if end.is_none_or(|end| end > self.tar_size) {
                    return Err(TreeError::BadExtent {
                        name: printable(&entry.name),
                    });
                }
            }
            FileType::Symlink => {
                inode.mode = S_IFLNK | 0o777;
                let target = &entry.linkname;
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(TreeError::BadName {
                        name: printable(&entry.name),
                    });
                }
                inode.size = target.len() as u64;
            }
            FileType::Char | FileType::Block => {
                let number = |part: i64| u32::try_from(part).ok();
                inode.aux = number(entry.devmajor)
                    .zip(number(entry.devminor))
                    .and_then(|(major, minor)| encode_device(major, minor))
                    .ok_or_else(|| TreeError::BadDevice {
                        name: printable(&entry.name),
                        major: entry.devmajor,
                        minor: entry.devminor,
                    })?;
            }
            FileType::Dir | FileType::Fifo | FileType::Hardlink => {}
        }
        Ok(inode)
    }

    /// containerd sets times before 1970, and those that do not fit 64 bits of nanoseconds, to
    /// 1970 (`boundTime`).
    fn time(&mut self, entry: &'a FileMetadata) -> (i64, u32) {
        const LATEST: (i64, u32) = (9_223_372_036, 854_775_807);
        let text = entry.mod_time.as_str();
        match self.last_time {
            Some((known, time)) if known == text => time,
            _ => {
                let in_bounds = |time: &(i64, u32)| (0, 0) <= *time && *time <= LATEST;
                let time = entry.mtime().filter(in_bounds).unwrap_or_default();
                self.last_time = Some((text, time));
                time
            }
        }
    }

    fn xattrs(&self, entry: &FileMetadata) -> XattrSet {
        if self.options.disable_xattrs || entry.xattrs.is_empty() {
            return Vec::new();
        }
        let overlay = self.options.overlay_xattr;
        entry
            .posix_xattrs()
            .filter(|(name, _)| {
                !name.is_empty() && name.len() <= XATTR_NAME_MAX && !name.contains(&0)
            })
            .filter(|(name, _)| !overlay.is_forged(name))
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect()
    }

    /// Owner, permissions, time and extended attributes of a node that exists.
    fn set_metadata(&mut self, node: u32, from: &Inode, entry: &FileMetadata) {
        let xattrs = self.xattrs(entry);
        let Some(node) = self.node_mut(node) else {
            return;
        };
        let inode = &mut node.inode;
        (inode.uid, inode.gid) = (from.uid, from.gid);
        (inode.mtime, inode.mtime_nanos) = (from.mtime, from.mtime_nanos);
        // Links have no permissions of their own.
        if inode.kind() != S_IFLNK {
            inode.mode = inode.kind() | (from.mode & !S_IFMT);
        }
        for (name, value) in xattrs {
            node.xattrs.retain(|(known, _)| *known != name);
            node.xattrs.push((name, value));
        }
    }

    fn link(&mut self, key: Key<'a>, entry: &'a FileMetadata) -> Result<(), TreeError> {
        let missing = || TreeError::LinkTarget {
            name: printable(&entry.name),
            target: printable(&entry.linkname),
        };
        // An existing file of the link's name is removed first, even if the link then names itself.
        if self.names.remove(&key).is_some() {
            self.last_parent = None;
        }
        let (parent_path, base) = split(&entry.linkname).ok_or_else(missing)?;
        let parent = self
            .walk(parent_path, &entry.name, false)?
            .ok_or_else(missing)?;
        let node = *self.names.get(&(parent, base)).ok_or_else(missing)?;
        if self.kind(node) == S_IFDIR {
            return Err(TreeError::LinkToDirectory {
                name: printable(&entry.name),
                target: printable(&entry.linkname),
            });
        }
        let inode = self.inode(entry)?;
        self.set_metadata(node, &inode, entry);
        self.put(key, node);
        Ok(())
    }

    fn apply_whiteout(&mut self, key: Key<'a>, hidden: &'a [u8], entry: &FileMetadata) {
        let (parent, base) = key;
        if base == OPAQUE {
            let name = self.options.overlay_xattr.opaque().as_bytes();
            if let Some(node) = self.node_mut(parent) {
                node.xattrs.retain(|(known, _)| known != name);
                node.xattrs.push((name.to_vec(), b"y".to_vec()));
            }
        } else if !base.starts_with(WHITEOUT_META) && !matches!(hidden, b"" | b"." | b"..") {
            let (uid, gid) = self.options.owner(entry.uid, entry.gid);
            self.whiteouts.push(Whiteout {
                key: (parent, hidden),
                uid,
                gid,
            });
        }
    }

    /// Whiteouts become character devices 0/0, unless the layer has the name itself.
    fn add_whiteouts(&mut self) -> Result<(), TreeError> {
        for Whiteout { key, uid, gid } in std::mem::take(&mut self.whiteouts) {
            if self.names.contains_key(&key) {
                continue;
            }
            let inode = Inode {
                mode: S_IFCHR,
                uid,
                gid,
                ..Inode::default()
            };
            let node = self.add_node(Node {
                inode,
                target: &[],
                xattrs: Vec::new(),
            })?;
            self.names.insert(key, node);
        }
        Ok(())
    }

    fn make_parents(&mut self, path: &'a [u8], entry: &[u8]) -> Result<u32, TreeError> {
        let found = self.walk(path, entry, true)?;
        found.ok_or_else(|| TreeError::NotADirectory {
            name: printable(entry),
        })
    }

    /// The directory that a path leads to, symbolic links followed within the layer. Missing
    /// directories are made, or the answer is `None`.
    fn walk(&mut self, path: &'a [u8], entry: &[u8], make: bool) -> Result<Option<u32>, TreeError> {
        let mut walk = PathWalk::<&'a [u8], u32>::new(ROOT, parts(path));
        while let Some(name) = walk.next_name() {
            check_name(name, entry)?;
            let key = (*walk.directory(), name);
            let Some(&node) = self.names.get(&key) else {
                if !make {
                    return Ok(None);
                }
                self.count_implied()?;
                let node = self.add_node(self.implied_directory())?;
                self.names.insert(key, node);
                walk.enter(node);
                continue;
            };
            match self.kind(node) {
                S_IFDIR => walk.enter(node),
                S_IFLNK => {
                    let target = self.node(node).map_or(&[][..], |node| node.target);
                    walk.follow(target)
                        .map_err(|TooManyLinks| TreeError::TooManyLinks {
                            name: printable(entry),
                        })?;
                }
                _ => {
                    return Err(TreeError::NotADirectory {
                        name: printable(entry),
                    });
                }
            }
        }
        Ok(Some(walk.into_directory()))
    }

    fn count_implied(&mut self) -> Result<(), TreeError> {
        let entries = self.entries;
        let most = entries
            .saturating_mul(IMPLIED_PER_ENTRY)
            .saturating_add(IMPLIED_MORE);
        self.implied += 1;
        if self.implied > most {
            return Err(TreeError::TooManyDirectories { entries, most });
        }
        Ok(())
    }

    fn add_node(&mut self, node: Node<'a>) -> Result<u32, TreeError> {
        // Inode numbers are one higher, and the state file takes two more.
        let index = u32::try_from(self.nodes.len()).ok();
        let index = index.filter(|index| *index < u32::MAX - 8);
        self.nodes.push(node);
        index.ok_or(TreeError::TooLarge)
    }

    /// Names a node. A node that had the name before is unreachable then, with all below it.
    fn put(&mut self, key: Key<'a>, node: u32) {
        if self.names.insert(key, node).is_some() {
            self.last_parent = None;
        }
    }

    fn is_directory(&self, key: Key<'a>) -> bool {
        self.names
            .get(&key)
            .is_some_and(|&node| self.kind(node) == S_IFDIR)
    }

    fn kind(&self, node: u32) -> u32 {
        self.node(node).map_or(0, |node| node.inode.kind())
    }

    fn node(&self, node: u32) -> Option<&Node<'a>> {
        self.nodes.get(usize::try_from(node).ok()?)
    }

    fn node_mut(&mut self, node: u32) -> Option<&mut Node<'a>> {
        self.nodes.get_mut(usize::try_from(node).ok()?)
    }
}

const fn kind_bits(kind: FileType) -> u32 {
    match kind {
        // A link's inode lends only its metadata.
        FileType::Reg | FileType::Hardlink => S_IFREG,
        FileType::Dir => S_IFDIR,
        FileType::Symlink => S_IFLNK,
        FileType::Char => S_IFCHR,
        FileType::Block => S_IFBLK,
        FileType::Fifo => S_IFIFO,
    }
}
