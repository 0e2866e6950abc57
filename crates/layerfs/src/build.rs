//! The application of a zTOC's entries in the order of the tar, by the rules with which containerd
//! unpacks a layer into an empty upper directory (containerd pkg/archive, `applyNaive` and
//! `OverlayConvertWhiteout`).

use soci_fuse::encode_device;
use soci_meter::{Limits, Meter};
use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::{parts, split};
use soci_ztoc::{Entry, FileMetadata, FileType, LayerIndex};

use crate::flatten::{Grown, Metas, NO_ENTRIES, flatten};
use crate::header_check::{Header, HeaderChecks};
use crate::inode::{
    DIRECTORY_MODE, Extent, Inode, Meta, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG,
    nanoseconds,
};
use crate::name_table::{NameTable, to_index};
use crate::options::{TreeError, TreeOptions};
use crate::tar_path::{check_name, printable};
use crate::tree::Tree;
use crate::xattr_sets::Record;

/// Longest name of an extended attribute (XATTR_NAME_MAX in linux/limits.h).
const XATTR_NAME_MAX: usize = 255;
/// Longest path and link target (PATH_MAX in linux/limits.h, less the zero byte).
const TARGET_MAX: usize = 4095;
/// Limit of implied directories (without an entry of their own) per entry, on average. Each takes two
/// bytes in a name and a hundred times as many in the tree.
const IMPLIED_PER_ENTRY: usize = 8;
/// Implied directories beyond that limit, for small layers; more than any path has.
const IMPLIED_MORE: usize = 4096;
/// Steps of following paths and links that a layer may take per entry; they may take one more per byte of
/// its name and link target. Builders of images write paths of some ten parts.
const STEPS_PER_ENTRY: u64 = 100;
/// Steps beyond that limit, for small layers.
const STEPS_MORE: u64 = 1_000_000;
/// Size of a tar block, in bytes.
const BLOCK: u64 = 512;
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const ROOT: u32 = 0;

/// Directory and name, the key of an entry.
type Key<'a> = (u32, &'a [u8]);

struct Whiteout<'a> {
    key: Key<'a>,
    uid: u32,
    gid: u32,
}

struct Builder<'a> {
    options: &'a TreeOptions,
    tar_size: u64,
    meter: Meter,
    nodes: Vec<Inode>,
    metas: Metas,
    /// Where the content of files is.
    extents: Vec<Extent>,
    /// Targets of symbolic links.
    targets: Vec<&'a [u8]>,
    names: NameTable,
    records: Vec<Record<'a>>,
    whiteouts: Vec<Whiteout<'a>>,
    headers: HeaderChecks,
    link_headers: Vec<(u32, Header)>,
    /// Number of entries of the layer, and of those applied so far.
    entries: usize,
    applied: usize,
    /// Steps that the entries so far may have taken.
    steps: u64,
    /// Directories without an entry of their own, so far.
    implied: usize,
    /// Where the content of the last entry ends in the tar, with what fills up its block.
    content_end: u64,
    /// The parent directory of the last entry, by its path in the tar: neighbours share it.
    last_parent: Option<(&'a [u8], u32)>,
    /// The last time that was parsed: neighbours share it too.
    last_time: Option<(&'a str, Option<(i64, u32)>)>,
    /// The latest time of an entry, in nanoseconds.
    latest: u64,
}

impl Tree {
    /// The tree of a layer, from its zTOC's entries and the length of its tar in bytes.
    ///
    /// Names are cleaned (`./`, leading `/`, `..`), the last of several entries with one name
    /// wins, missing parents are 0755 root (unless `ImpliedDirectories` says otherwise), hard links
    /// share an inode and the last one's metadata holds, a parent that is a symbolic link of the same layer is followed within the layer. A
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
        let entries = toc.iter().map(FileMetadata::as_entry);
        Self::of_entries(entries, toc.len(), tar_size, &options)
    }

    /// The tree of a layer, as [`Tree::build`], from a zTOC whose entries are not copied.
    ///
    /// # Errors
    /// As [`Tree::build`].
    pub fn of_index(index: &LayerIndex, options: TreeOptions) -> Result<Self, TreeError> {
        let count = usize::try_from(index.len()).map_err(|_| TreeError::TooLarge)?;
        let tar_size = index.spans.uncompressed_size();
        Self::of_entries(index.entries(), count, tar_size, &options)
    }

    fn of_entries<'a>(
        entries: impl Iterator<Item = Entry<'a>>,
        count: usize,
        tar_size: u64,
        options: &'a TreeOptions,
    ) -> Result<Self, TreeError> {
        let mut builder = Builder::new(options, tar_size, count)?;
        for entry in entries {
            builder.apply(&entry)?;
        }
        builder.finish()
    }
}

impl<'a> Builder<'a> {
    fn new(options: &'a TreeOptions, tar_size: u64, entries: usize) -> Result<Self, TreeError> {
        let limits = Limits {
            bytes: options.memory,
            steps: 0,
        };
        let mut meter = Meter::new("the file tree", limits);
        if let Some(key) = options.memory_key {
            meter = meter.memory_set_by(key);
        }
        let steps = (entries as u64)
            .saturating_mul(STEPS_PER_ENTRY)
            .saturating_add(STEPS_MORE);
        meter.limit_steps(steps);
        meter.charge_values::<Inode>(entries + 1)?;
        let mut names = NameTable::default();
        names.reserve(entries, &mut meter)?;
        let mut builder = Self {
            options,
            tar_size,
            meter,
            nodes: Vec::with_capacity(entries + 1),
            metas: Metas::default(),
            extents: Vec::new(),
            targets: Vec::new(),
            names,
            records: Vec::new(),
            whiteouts: Vec::new(),
            headers: HeaderChecks::default(),
            link_headers: Vec::new(),
            entries,
            applied: 0,
            steps,
            implied: 0,
            content_end: 0,
            last_parent: None,
            last_time: None,
            latest: 0,
        };
        // The root keeps what it is mounted with: containerd passes over its entries.
        let root = Meta::new(DIRECTORY_MODE, 0, 0);
        let root = builder.metas.number(root, &mut builder.meter)?;
        builder.add_node(Inode::new(root, NO_ENTRIES))?;
        Ok(builder)
    }

    fn finish(mut self) -> Result<Tree, TreeError> {
        self.add_whiteouts()?;
        // What no entry describes is as old as the newest entry: unpacking would make it then.
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if at == to_index(ROOT) || self.metas.of(node).is_only_implied() {
                node.mtime = self.latest;
            }
        }
        let grown = Grown {
            nodes: self.nodes,
            metas: self.metas,
            extents: self.extents,
            targets: self.targets,
            names: self.names.into_sorted(),
            records: self.records,
            tar_size: self.tar_size,
            headers: self.headers,
            link_headers: self.link_headers,
        };
        flatten(grown, &mut self.meter)
    }

    /// Adds a directory without an entry of its own.
    fn add_implied_directory(&mut self, parent: u32) -> Result<u32, TreeError> {
        let parent = self.node(parent).map(|parent| self.metas.of(parent));
        let meta = Meta::implied_in(parent.unwrap_or_default());
        let meta = self.metas.number(meta, &mut self.meter)?;
        self.add_node(Inode::new(meta, NO_ENTRIES))
    }

    /// Looks whether the tree is still wanted, every so often.
    fn check_wanted(&mut self) -> Result<(), TreeError> {
        self.applied += 1;
        match self.applied.is_multiple_of(64) && self.options.cancelled.is_set() {
            true => Err(TreeError::Cancelled),
            false => Ok(()),
        }
    }

    fn apply(&mut self, entry: &Entry<'a>) -> Result<(), TreeError> {
        self.check_wanted()?;
        let text = (entry.name.len() + entry.linkname.len()) as u64;
        self.steps = self.steps.saturating_add(text);
        self.meter.limit_steps(self.steps);
        self.meter.step(1)?;
        let header_from = self.content_end;
        let content_end = entry
            .uncompressed_offset
            .saturating_add(entry.content_len());
        self.content_end = content_end.div_ceil(BLOCK).saturating_mul(BLOCK);
        let path = entry.name;
        if path.len() > TARGET_MAX || entry.linkname.len() > TARGET_MAX {
            return Err(TreeError::BadName {
                name: printable(path.get(..64).unwrap_or(path)),
            });
        }
        let Some((parent_path, base)) = split(path) else {
            // containerd passes over an entry for the root.
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
        // Whatever its type, as containerd takes it.
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            self.apply_whiteout(key, hidden, entry)?;
            // A file of AUFS (`.wh..wh.`) may be the target of hard links; it is left out at the end.
            if !base.starts_with(WHITEOUT_META) || base == OPAQUE {
                return Ok(());
            }
        }
        let (inode, meta) = self.inode(entry, header_from)?;
        let existing = self.names.get(key.0, key.1);
        match (entry.file_type, existing) {
            (FileType::Hardlink, _) => self.link(key, entry, &inode, meta, header_from),
            (FileType::Dir, Some(node)) if self.kind(node) == S_IFDIR => {
                self.set_metadata(node, &inode, meta)?;
                self.add_xattrs(node, entry)
            }
            _ => {
                let node = self.add_node(inode)?;
                self.add_xattrs(node, entry)?;
                self.put(key, node)
            }
        }
    }

    /// The inode that an entry describes, and its metadata.
    fn inode(&mut self, entry: &Entry<'a>, from: u64) -> Result<(Inode, Meta), TreeError> {
        let name = || printable(entry.name);
        let mut mode = (entry.mode & 0o7777) | kind_bits(entry.file_type);
        let mut inode = Inode::default();
        let time = self.time(entry);
        inode.mtime = nanoseconds(time);
        self.latest = self.latest.max(inode.mtime);
        match entry.file_type {
            FileType::Reg => {
                let (start, size) = (entry.uncompressed_offset, entry.uncompressed_size);
                let end = start.checked_add(size);
                if end.is_none_or(|end| end > self.tar_size) {
                    return Err(TreeError::BadExtent { name: name() });
                }
                let header = self.headers.header(entry, from, time);
                let check = header.packed();
                let check = check.ok_or_else(|| TreeError::LongHeader { name: name() })?;
                let extent = Extent::new(start, size, check).ok_or(TreeError::TooLarge)?;
                inode.at = position(self.extents.len())?;
                push(&mut self.extents, extent, &mut self.meter)?;
            }
            FileType::Symlink => {
                mode = S_IFLNK | 0o777;
                let target = entry.linkname;
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(TreeError::BadName { name: name() });
                }
                inode.at = position(self.targets.len())?;
                push(&mut self.targets, target, &mut self.meter)?;
            }
            FileType::Char | FileType::Block => {
                let number = |part: i64| u32::try_from(part).ok();
                inode.at = number(entry.devmajor)
                    .zip(number(entry.devminor))
                    .and_then(|(major, minor)| encode_device(major, minor))
                    .ok_or_else(|| TreeError::BadDevice {
                        name: name(),
                        major: entry.devmajor,
                        minor: entry.devminor,
                    })?;
            }
            FileType::Dir => inode.at = NO_ENTRIES,
            FileType::Fifo | FileType::Hardlink => {}
        }
        let meta = Meta::new(mode, entry.uid, entry.gid);
        inode.set_meta(self.metas.number(meta, &mut self.meter)?);
        Ok((inode, meta))
    }

    /// The entry's time as it is written.
    fn time(&mut self, entry: &Entry<'a>) -> Option<(i64, u32)> {
        match self.last_time {
            Some((known, time)) if known == entry.mod_time => time,
            _ => {
                let time = entry.mtime();
                self.last_time = Some((entry.mod_time, time));
                time
            }
        }
    }

    /// Adds the entry's extended attributes to those that a node has.
    fn add_xattrs(&mut self, node: u32, entry: &Entry<'a>) -> Result<(), TreeError> {
        if self.options.disable_xattrs || entry.record_count() == 0 {
            return Ok(());
        }
        let overlay = self.options.overlay_xattr;
        let attributes = entry
            .posix_xattrs()
            .filter(|(name, _)| {
                !name.is_empty() && name.len() <= XATTR_NAME_MAX && !name.contains(&0)
            })
            .filter(|(name, _)| !overlay.is_forged(name));
        for (name, value) in attributes {
            self.add_xattr(node, name, value)?;
        }
        Ok(())
    }

    fn add_xattr(&mut self, node: u32, name: &'a [u8], value: &'a [u8]) -> Result<(), TreeError> {
        let record = Record {
            node,
            order: position(self.records.len())?,
            name,
            value,
        };
        push(&mut self.records, record, &mut self.meter)
    }

    /// Sets owner, permissions and time of a node that exists.
    fn set_metadata(&mut self, node: u32, from: &Inode, meta: Meta) -> Result<(), TreeError> {
        let Some(known) = self.node(node).map(|node| self.metas.of(node)) else {
            return Ok(());
        };
        // Links have no permissions of their own.
        let mode = match known.kind() {
            S_IFLNK => known.mode(),
            kind => kind | (meta.mode() & 0o7777),
        };
        let meta = known.described(mode, meta.uid, meta.gid);
        let number = self.metas.number(meta, &mut self.meter)?;
        if let Some(node) = self.nodes.get_mut(to_index(node)) {
            node.set_meta(number);
            node.mtime = from.mtime;
        }
        Ok(())
    }

    fn link(
        &mut self,
        key: Key<'a>,
        entry: &Entry<'a>,
        inode: &Inode,
        meta: Meta,
        header_from: u64,
    ) -> Result<(), TreeError> {
        let missing = || TreeError::LinkTarget {
            name: printable(entry.name),
            target: printable(entry.linkname),
        };
        // An existing file of the link's name is removed first, even if the link then names itself.
        if self.names.remove(key.0, key.1) {
            self.last_parent = None;
        }
        let (parent_path, base) = split(entry.linkname).ok_or_else(missing)?;
        let parent = self
            .walk(parent_path, entry.name, false)?
            .ok_or_else(missing)?;
        let node = self.names.get(parent, base).ok_or_else(missing)?;
        if self.kind(node) == S_IFDIR {
            return Err(TreeError::LinkToDirectory {
                name: printable(entry.name),
                target: printable(entry.linkname),
            });
        }
        let before = self.node(node).copied();
        self.set_metadata(node, inode, meta)?;
        self.add_xattrs(node, entry)?;
        let after = self.node(node).copied();
        let same = before.zip(after).is_some_and(|(before, after)| {
            before.meta() == after.meta() && before.mtime == after.mtime
        });
        let changed = !same || entry.posix_xattrs().next().is_some();
        if changed && self.kind(node) == S_IFREG {
            // The file's own header says nothing about what this one changed.
            let time = self.time(entry);
            let header = self.headers.header(entry, header_from, time);
            if header.packed().is_none() {
                let name = printable(entry.name);
                return Err(TreeError::LongHeader { name });
            }
            self.meter.charge_values::<(u32, Header)>(2)?;
            self.link_headers.push((node, header));
        }
        self.put(key, node)
    }

    fn apply_whiteout(
        &mut self,
        key: Key<'a>,
        hidden: &'a [u8],
        entry: &Entry<'a>,
    ) -> Result<(), TreeError> {
        let (parent, base) = key;
        if base == OPAQUE {
            let name = self.options.overlay_xattr.opaque().as_bytes();
            self.add_xattr(parent, name, b"y")?;
        } else if !base.starts_with(WHITEOUT_META) && !matches!(hidden, b"" | b"." | b"..") {
            self.meter.charge_values::<Whiteout<'_>>(2)?;
            self.whiteouts.push(Whiteout {
                key: (parent, hidden),
                uid: entry.uid,
                gid: entry.gid,
            });
        }
        Ok(())
    }

    /// Whiteouts become character devices 0/0, unless the layer has the name itself.
    fn add_whiteouts(&mut self) -> Result<(), TreeError> {
        for Whiteout { key, uid, gid } in std::mem::take(&mut self.whiteouts) {
            if self.names.get(key.0, key.1).is_some() {
                continue;
            }
            let meta = Meta::new(S_IFCHR, uid, gid);
            let meta = self.metas.number(meta, &mut self.meter)?;
            // Device number 0/0.
            let node = self.add_node(Inode::new(meta, 0))?;
            self.put(key, node)?;
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
            self.meter.step(1)?;
            let directory = *walk.directory();
            let Some(node) = self.names.get(directory, name) else {
                if !make {
                    return Ok(None);
                }
                self.count_implied()?;
                let node = self.add_implied_directory(directory)?;
                self.put((directory, name), node)?;
                walk.enter(node);
                continue;
            };
            match self.kind(node) {
                S_IFDIR => walk.enter(node),
                S_IFLNK => {
                    let target = self.target(node);
                    self.meter.step(target.len() as u64 / 8 + 1)?;
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

    fn add_node(&mut self, node: Inode) -> Result<u32, TreeError> {
        // Inode numbers are one higher, and the state file takes two more.
        let index = u32::try_from(self.nodes.len()).ok();
        let index = index.filter(|index| *index < u32::MAX - 8);
        push(&mut self.nodes, node, &mut self.meter)?;
        index.ok_or(TreeError::TooLarge)
    }

    /// Names a node. A node that had the name before is unreachable then, with all below it.
    fn put(&mut self, key: Key<'a>, node: u32) -> Result<(), TreeError> {
        if self.names.put(key.0, key.1, node, &mut self.meter)? {
            self.last_parent = None;
        }
        Ok(())
    }

    fn kind(&self, node: u32) -> u32 {
        let node = self.node(node);
        node.map_or(0, |node| self.metas.of(node).kind())
    }

    /// The target of a symbolic link.
    fn target(&self, node: u32) -> &'a [u8] {
        let at = self.node(node).map(|node| to_index(node.at));
        let target = at.and_then(|at| self.targets.get(at)).copied();
        target.unwrap_or_default()
    }

    fn node(&self, node: u32) -> Option<&Inode> {
        self.nodes.get(to_index(node))
    }
}

/// Adds a value; the memory of the vector is charged before it grows.
fn push<T>(values: &mut Vec<T>, value: T, meter: &mut Meter) -> Result<(), TreeError> {
    if values.len() == values.capacity() {
        let more = values.len() / 2 + 16;
        meter.charge_values::<T>(more)?;
        values.reserve_exact(more);
    }
    values.push(value);
    Ok(())
}

fn position(index: usize) -> Result<u32, TreeError> {
    u32::try_from(index).map_err(|_| TreeError::TooLarge)
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
