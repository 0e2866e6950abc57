//! Conversion of the growing tree to the compact one: numbering, sorting, link counts, checksum.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;

use soci_meter::Meter;
use soci_oci::Hasher;

use crate::header_check::{Header, HeaderChecks};
use crate::inode::{Directory, Extent, Inode, Meta, S_IFDIR, S_IFLNK, S_IFREG};
use crate::name_table::{SortedNames, to_index};
use crate::options::TreeError;
use crate::tree::{NUMBERING_VERSION, Tree};
use crate::xattr_sets::{Record, XattrSets};

/// A growing directory's position of entries: it has none.
pub(crate) const NO_ENTRIES: u32 = u32::MAX;
/// Metadata of a node that has an inode number, which is in its position.
const NUMBERED: u32 = u32::MAX >> 1;

/// The growing tree: nodes by number, the root first.
pub(crate) struct Grown<'a> {
    /// Symbolic links have the position of their target, directories [`NO_ENTRIES`].
    pub(crate) nodes: Vec<Inode>,
    pub(crate) metas: Metas,
    pub(crate) extents: Vec<Extent>,
    pub(crate) targets: Vec<&'a [u8]>,
    pub(crate) names: SortedNames,
    pub(crate) records: Vec<Record<'a>>,
    pub(crate) tar_size: u64,
    pub(crate) headers: HeaderChecks,
    /// Headers of hard links that changed the metadata of a node.
    pub(crate) link_headers: Vec<(u32, Header)>,
}

/// The metadata that inodes share, each once.
#[derive(Default)]
pub(crate) struct Metas {
    all: Vec<Meta>,
    known: HashMap<Meta, u32, RandomState>,
}

impl Metas {
    pub(crate) fn number(&mut self, meta: Meta, meter: &mut Meter) -> Result<u32, TreeError> {
        if let Some(&number) = self.known.get(&meta) {
            return Ok(number);
        }
        // The value, and about two slots of a table.
        meter.charge(4 * size_of::<Meta>() as u64)?;
        let number = u32::try_from(self.all.len()).ok();
        let number = number.filter(|number| *number < NUMBERED);
        let number = number.ok_or(TreeError::TooLarge)?;
        self.all.push(meta);
        self.known.insert(meta, number);
        Ok(number)
    }

    pub(crate) fn of(&self, inode: &Inode) -> Meta {
        let meta = self.all.get(to_index(inode.meta()));
        meta.copied().unwrap_or_default()
    }
}

/// Numbers what can be reached from the root, breadth first, each directory's entries by name.
/// Names that begin with `.wh.` are left out: by now they are only AUFS's own files.
pub(crate) fn flatten(grown: Grown<'_>, meter: &mut Meter) -> Result<Tree, TreeError> {
    let (mut metas, mut records) = (grown.metas, grown.records);
    let (mut headers, mut link_headers) = (grown.headers, grown.link_headers);
    let mut tree = Flattening::begin(grown.nodes, &metas, &grown.names, meter)?;
    let names = without_aufs(grown.names);
    tree.number_all(&metas, &names)?;
    drop(names);
    for record in &mut records {
        record.node = tree.number_of(record.node);
    }
    for (node, _) in &mut link_headers {
        *node = tree.number_of(*node);
    }
    drop(tree.nodes);

    let (mut inodes, mut bytes) = (tree.inodes, tree.bytes);
    let names_end = u32::try_from(bytes.len()).map_err(|_| TreeError::TooLarge)?;
    let links = add_targets(&mut inodes, &metas, &grown.targets, &mut bytes, meter)?;
    drop(grown.targets);
    // What no name leads to has no number.
    records.retain(|record| record.node != 0);
    let sets = XattrSets::build(records, meter, |ino, set, meter| {
        let inode = to_index(ino).checked_sub(1);
        if let Some(inode) = inode.and_then(|at| inodes.get_mut(at)) {
            let meta = metas.of(inode).with_xattrs(set);
            inode.set_meta(metas.number(meta, meter)?);
        }
        Ok(())
    })?;
    let (xattrs, too_large) = match sets {
        Ok(sets) => (sets, None),
        Err(too_large) => (XattrSets::default(), Some(too_large.node)),
    };

    headers.prepare(inodes.len());
    link_headers.retain(|(ino, _)| *ino != 0);
    link_headers.sort_by_key(|(ino, _)| *ino);
    headers.of_links = shrunk(link_headers);
    let mut tree = Tree {
        inodes: shrunk(inodes),
        metas: shrunk(metas.all),
        directories: shrunk(tree.directories),
        extents: shrunk(grown.extents),
        links,
        names: shrunk(tree.names),
        bytes: shrunk(bytes),
        names_end,
        further_names: shrunk(tree.further_names),
        link_counts: link_counts(tree.further_inodes.clone()),
        further_inodes: shrunk(tree.further_inodes),
        xattrs,
        checksum: soci_oci::Digest::of(b""),
        tar_size: grown.tar_size,
        headers,
    };
    tree.checksum = checksum(&tree);
    match too_large {
        None => Ok(tree),
        Some(ino) => Err(TreeError::TooManyXattrs {
            name: String::from_utf8_lossy(&tree.path(ino.into())).into_owned(),
            most: crate::xattr_sets::MOST_OF_A_FILE,
        }),
    }
}

fn without_aufs(mut names: SortedNames) -> SortedNames {
    let SortedNames { slots, text } = &mut names;
    slots.retain(|slot| !text.name(slot).starts_with(b".wh."));
    names
}

/// Counts the names of each inode that has further ones.
fn link_counts(mut further_inodes: Vec<u32>) -> Vec<(u32, u32)> {
    further_inodes.sort_unstable();
    let counts = further_inodes.chunk_by(|a, b| a == b);
    let counts = counts.filter_map(|run| {
        let more = u32::try_from(run.len()).ok()?;
        Some((*run.first()?, more.saturating_add(1)))
    });
    counts.collect()
}

/// Notes of each directory where its entries start among the names.
fn find_entries(nodes: &mut [Inode], names: &SortedNames) {
    let mut known = None;
    for (position, slot) in (0_u32..).zip(&names.slots) {
        if known != Some(slot.directory) {
            known = Some(slot.directory);
            if let Some(node) = nodes.get_mut(to_index(slot.directory)) {
                node.at = position;
            }
        }
    }
}

/// Adds the targets of symbolic links to the bytes; returns where each starts.
fn add_targets(
    inodes: &mut [Inode],
    metas: &Metas,
    targets: &[&[u8]],
    bytes: &mut Vec<u8>,
    meter: &mut Meter,
) -> Result<Vec<u32>, TreeError> {
    let target = |inode: &Inode| targets.get(to_index(inode.at)).copied().unwrap_or_default();
    let is_link = |inode: &&mut Inode| metas.of(inode).kind() == S_IFLNK;
    let (mut count, mut length) = (0, 0);
    for inode in inodes.iter_mut().filter(is_link) {
        count += 1;
        length += target(inode).len();
    }
    meter.charge(length as u64)?;
    meter.charge_values::<u32>(count)?;
    bytes.reserve_exact(length);
    let mut links = Vec::with_capacity(count);
    for inode in inodes.iter_mut().filter(is_link) {
        let target = target(inode);
        inode.at = u32::try_from(links.len()).map_err(|_| TreeError::TooLarge)?;
        links.push(u32::try_from(bytes.len()).map_err(|_| TreeError::TooLarge)?);
        bytes.extend_from_slice(target);
    }
    Ok(links)
}

struct Flattening {
    /// Nodes by number. One that has an inode number has [`NUMBERED`] and that number.
    nodes: Vec<Inode>,
    /// Directories have the position of their entries among the sorted names until they are filled.
    inodes: Vec<Inode>,
    directories: Vec<Directory>,
    names: Vec<u32>,
    bytes: Vec<u8>,
    further_names: Vec<u32>,
    /// The inode of each further name.
    further_inodes: Vec<u32>,
}

impl Flattening {
    /// Charges for what is made, and makes room for it: an inode per node, a number per name and
    /// their bytes, a bit per inode.
    fn begin(
        nodes: Vec<Inode>,
        metas: &Metas,
        names: &SortedNames,
        meter: &mut Meter,
    ) -> Result<Self, TreeError> {
        let (inodes, slots) = (nodes.len(), names.slots.len());
        let directories = nodes.iter();
        let directories = directories.filter(|node| metas.of(node).kind() == S_IFDIR);
        let directories = directories.count();
        let bytes = names.slots.iter().map(|slot| names.text.name(slot).len());
        let bytes = bytes.sum::<usize>();
        meter.charge_values::<Inode>(inodes)?;
        meter.charge_values::<Directory>(directories)?;
        meter.charge_values::<u32>(slots)?;
        meter.charge((bytes + inodes / 8) as u64)?;
        Ok(Self {
            nodes,
            inodes: Vec::with_capacity(inodes),
            directories: Vec::with_capacity(directories),
            names: Vec::with_capacity(slots),
            bytes: Vec::with_capacity(bytes),
            further_names: Vec::new(),
            further_inodes: Vec::new(),
        })
    }

    /// Numbers what can be reached from the root.
    fn number_all(&mut self, metas: &Metas, names: &SortedNames) -> Result<(), TreeError> {
        find_entries(&mut self.nodes, names);
        self.number(0)?;
        let mut at = 0;
        while let Some(inode) = self.inodes.get(at) {
            if metas.of(inode).kind() == S_IFDIR {
                self.fill_directory(at, names)?;
            }
            at += 1;
        }
        Ok(())
    }

    /// The node's inode number; 0: not reached.
    fn number_of(&self, node: u32) -> u32 {
        let node = self.nodes.get(to_index(node));
        let node = node.filter(|node| node.meta() == NUMBERED);
        node.map_or(0, |node| node.at)
    }

    /// The node's inode number, a new one on the first call, and whether it is new.
    fn number(&mut self, node: u32) -> Result<(u32, bool), TreeError> {
        let node = self.nodes.get_mut(to_index(node));
        let node = node.ok_or(TreeError::TooLarge)?;
        if node.meta() == NUMBERED {
            return Ok((node.at, false));
        }
        self.inodes.push(*node);
        let number = u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooLarge)?;
        *node = Inode::new(NUMBERED, number);
        Ok((number, true))
    }

    fn fill_directory(&mut self, at: usize, names: &SortedNames) -> Result<(), TreeError> {
        let position = |index: usize| u32::try_from(index).map_err(|_| TreeError::TooLarge);
        let directory = Directory {
            first: position(self.names.len())?,
            ino: position(at + 1)?,
        };
        let Some(inode) = self.inodes.get_mut(at) else {
            return Ok(());
        };
        let from = inode.at;
        inode.at = position(self.directories.len())?;
        self.directories.push(directory);
        let entries = names.slots.get(to_index(from)..).unwrap_or_default();
        let mut entries = entries.chunk_by(|a, b| a.directory == b.directory);
        for slot in entries.next().unwrap_or_default() {
            let start = position(self.bytes.len())?;
            let name = position(self.names.len())?;
            self.bytes.extend_from_slice(names.text.name(slot));
            self.names.push(start);
            let (ino, is_new) = self.number(slot.node)?;
            if is_new {
                continue;
            }
            self.further_names.push(name);
            self.further_inodes.push(ino);
            if let Some(inode) = self.inodes.get_mut(to_index(ino - 1)) {
                inode.set_linked();
            }
        }
        Ok(())
    }
}

fn shrunk<T>(mut values: Vec<T>) -> Vec<T> {
    values.shrink_to_fit();
    values
}

/// Covers what request and answer refer to: numbers, names, positions and types.
fn checksum(tree: &Tree) -> soci_oci::Digest {
    let mut hasher = Hasher::new();
    hasher.update(&NUMBERING_VERSION.to_le_bytes());
    hasher.update(&(tree.inodes.len() as u64).to_le_bytes());
    let mut packed = Vec::with_capacity(4096 * 12);
    for inodes in tree.inodes.chunks(4096) {
        packed.clear();
        for inode in inodes {
            let kind = tree.meta(inode).kind();
            let at = to_index(inode.at);
            // Device numbers are not covered.
            let start = match kind {
                S_IFDIR => tree.directories.get(at).map(|of| of.first.into()),
                S_IFREG => tree.extents.get(at).map(Extent::start),
                S_IFLNK => tree.links.get(at).map(|start| (*start).into()),
                _ => None,
            };
            packed.extend_from_slice(&kind.to_le_bytes());
            packed.extend_from_slice(&start.unwrap_or_default().to_le_bytes());
        }
        hasher.update(&packed);
    }
    for (chunk, starts) in tree.names.chunks(4096).enumerate() {
        packed.clear();
        for (at, start) in starts.iter().enumerate() {
            packed.extend_from_slice(&start.to_le_bytes());
            packed.extend_from_slice(&tree.inode_of_name(chunk * 4096 + at).to_le_bytes());
        }
        hasher.update(&packed);
    }
    let end = to_index(tree.names_end);
    hasher.update(tree.bytes.get(..end).unwrap_or_default());
    hasher.finish()
}
