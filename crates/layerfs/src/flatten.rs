//! Conversion of the growing tree to the compact one: numbering, sorting, link counts, checksum.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;

use soci_meter::Meter;
use soci_oci::Hasher;

use crate::header_check::{Header, HeaderChecks};
use crate::inode::{Inode, Meta, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK};
use crate::name_table::{Slot, to_index};
use crate::options::TreeError;
use crate::tree::{NUMBERING_VERSION, Name, Tree};
use crate::xattr_sets::{Record, XattrSets};

/// The growing tree: nodes by number, the root first.
pub(crate) struct Grown<'a> {
    /// Symbolic links have the position of their target in `start`.
    pub(crate) nodes: Vec<Inode>,
    pub(crate) metas: Metas,
    pub(crate) targets: Vec<&'a [u8]>,
    pub(crate) names: Vec<Slot<'a>>,
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
        let number = u32::try_from(self.all.len()).map_err(|_| TreeError::TooLarge)?;
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
pub(crate) fn flatten(mut grown: Grown<'_>, meter: &mut Meter) -> Result<Tree, TreeError> {
    let names = &mut grown.names;
    names.retain(|slot| !slot.name.starts_with(b".wh."));
    let nodes = grown.nodes.len();
    // Two numbers and a place per node; a name and a place per name; their bytes; a bit per node.
    meter.charge_values::<(u32, u32, u32, Inode)>(nodes)?;
    meter.charge_values::<(u32, Name)>(names.len())?;
    let bytes = names.iter().map(|slot| slot.name.len()).sum::<usize>();
    meter.charge((bytes + nodes / 8) as u64)?;
    // Where each directory's entries start in `names`.
    let mut first_name = vec![0_u32; nodes + 1];
    for slot in names.iter() {
        if let Some(count) = first_name.get_mut(to_index(slot.directory) + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut first_name {
        sum += *start;
        *start = sum;
    }

    let mut tree = Flattening {
        numbers: vec![0; nodes],
        order: Vec::with_capacity(nodes),
        inodes: Vec::with_capacity(nodes),
        names: Vec::with_capacity(names.len()),
        bytes: Vec::with_capacity(bytes),
        further_names: Vec::new(),
        further_inodes: Vec::new(),
    };
    tree.number(0, &grown)?;
    let mut at = 0;
    while let Some(&node) = tree.order.get(at) {
        let index = to_index(node);
        let inode = tree.inodes.get(at);
        if inode.is_some_and(|inode| grown.metas.of(inode).kind() == S_IFDIR) {
            let start = |at: usize| first_name.get(at).map_or(0, |start| to_index(*start));
            let range = start(index)..start(index + 1);
            let entries = grown.names.get(range).unwrap_or_default();
            tree.fill_directory(at, entries, &grown)?;
        }
        at += 1;
    }
    drop(first_name);
    tree.finish(grown, meter)
}

struct Flattening {
    /// Inode number of each node; 0: not reached.
    numbers: Vec<u32>,
    /// The nodes in the order of their numbers.
    order: Vec<u32>,
    inodes: Vec<Inode>,
    names: Vec<Name>,
    bytes: Vec<u8>,
    further_names: Vec<u32>,
    /// The inode of each further name.
    further_inodes: Vec<u32>,
}

impl Flattening {
    /// The node's inode number, a new one on the first call, and whether it is new.
    fn number(&mut self, node: u32, grown: &Grown<'_>) -> Result<(u32, bool), TreeError> {
        let index = to_index(node);
        let (Some(number), Some(source)) = (self.numbers.get_mut(index), grown.nodes.get(index))
        else {
            return Err(TreeError::TooLarge);
        };
        let is_new = *number == 0;
        if is_new {
            self.order.push(node);
            self.inodes.push(*source);
            *number = u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooLarge)?;
        }
        Ok((*number, is_new))
    }

    fn fill_directory(
        &mut self,
        at: usize,
        entries: &[Slot<'_>],
        grown: &Grown<'_>,
    ) -> Result<(), TreeError> {
        let parent = u32::try_from(at + 1).map_err(|_| TreeError::TooLarge)?;
        let first = self.names.len() as u64;
        let mut subdirectories = 0_u64;
        for Slot { name, node, .. } in entries {
            let start = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooLarge)?;
            let position = u32::try_from(self.names.len()).map_err(|_| TreeError::TooLarge)?;
            self.bytes.extend_from_slice(name);
            let (ino, is_new) = self.number(*node, grown)?;
            self.names.push(Name { start, ino });
            let Some(inode) = self.inodes.get_mut(to_index(ino - 1)) else {
                continue;
            };
            if is_new {
                inode.parent = parent;
                subdirectories += u64::from(grown.metas.of(inode).kind() == S_IFDIR);
            } else {
                inode.set_linked();
                self.further_names.push(position);
                self.further_inodes.push(ino);
            }
        }
        if let Some(inode) = self.inodes.get_mut(at) {
            inode.start = first;
            inode.size = entries.len() as u64 | (subdirectories << 32);
            if at == 0 {
                inode.parent = parent;
            }
        }
        Ok(())
    }

    fn finish(mut self, grown: Grown<'_>, meter: &mut Meter) -> Result<Tree, TreeError> {
        let names_end = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooLarge)?;
        let Grown {
            nodes,
            mut metas,
            targets,
            names,
            records,
            tar_size,
            mut headers,
            link_headers,
        } = grown;
        drop((nodes, names));
        for inode in &mut self.inodes {
            if metas.of(inode).kind() == S_IFLNK {
                let target = usize::try_from(inode.start).ok();
                let target = target.and_then(|at| targets.get(at)).copied();
                let target = target.unwrap_or_default();
                meter.charge(target.len() as u64)?;
                inode.start = self.bytes.len() as u64;
                self.bytes.extend_from_slice(target);
            }
        }
        drop(targets);
        let checksum = checksum(&self, &metas, names_end);

        let of_node = |node: u32| self.numbers.get(to_index(node)).copied().unwrap_or(0);
        let inodes = &mut self.inodes;
        let sets = XattrSets::build(records, meter, |node, set, meter| {
            let inode = to_index(of_node(node)).checked_sub(1);
            if let Some(inode) = inode.and_then(|at| inodes.get_mut(at)) {
                let meta = metas.of(inode).with_xattrs(set);
                inode.set_meta(metas.number(meta, meter)?);
            }
            Ok(())
        })?;
        let (xattrs, too_large) = match sets {
            Ok(sets) => (sets, None),
            Err(too_large) => (XattrSets::default(), Some(of_node(too_large.node))),
        };

        headers.prepare(self.inodes.len());
        headers.of_links = link_headers
            .into_iter()
            .map(|(node, header)| (of_node(node), header))
            .filter(|(ino, _)| *ino != 0)
            .collect();
        headers.of_links.sort_by_key(|(ino, _)| *ino);
        self.further_inodes.sort_unstable();
        let link_counts = self.further_inodes.chunk_by(|a, b| a == b);
        let link_counts = link_counts.filter_map(|run| {
            let more = u32::try_from(run.len()).ok()?;
            Some((*run.first()?, more.saturating_add(1)))
        });
        let tree = Tree {
            link_counts: link_counts.collect(),
            inodes: shrunk(self.inodes),
            metas: shrunk(metas.all),
            names: shrunk(self.names),
            bytes: shrunk(self.bytes),
            names_end,
            further_names: shrunk(self.further_names),
            xattrs,
            checksum,
            tar_size,
            headers,
        };
        match too_large {
            None => Ok(tree),
            Some(ino) => Err(TreeError::TooManyXattrs {
                name: String::from_utf8_lossy(&tree.path(ino.into())).into_owned(),
                most: crate::xattr_sets::MOST_OF_A_FILE,
            }),
        }
    }
}

fn shrunk<T>(mut values: Vec<T>) -> Vec<T> {
    values.shrink_to_fit();
    values
}

/// Covers what request and answer refer to: numbers, names, positions and types.
fn checksum(tree: &Flattening, metas: &Metas, names_end: u32) -> soci_oci::Digest {
    let mut hasher = Hasher::new();
    hasher.update(&NUMBERING_VERSION.to_le_bytes());
    hasher.update(&(tree.inodes.len() as u64).to_le_bytes());
    let mut packed = Vec::with_capacity(4096 * 12);
    for inodes in tree.inodes.chunks(4096) {
        packed.clear();
        for inode in inodes {
            let kind = metas.of(inode).kind();
            // Device numbers are not covered.
            let start = match kind {
                S_IFCHR | S_IFBLK => 0,
                _ => inode.start,
            };
            packed.extend_from_slice(&kind.to_le_bytes());
            packed.extend_from_slice(&start.to_le_bytes());
        }
        hasher.update(&packed);
    }
    for names in tree.names.chunks(4096) {
        packed.clear();
        for name in names {
            packed.extend_from_slice(&name.start.to_le_bytes());
            packed.extend_from_slice(&name.ino.to_le_bytes());
        }
        hasher.update(&packed);
    }
    let end = to_index(names_end);
    hasher.update(tree.bytes.get(..end).unwrap_or_default());
    hasher.finish()
}
