//! Conversion of the growing tree to the compact one: numbering, sorting, link counts, checksum.

use std::collections::HashMap;

use soci_oci::Hasher;

use crate::build::{Key, Node};
use crate::options::TreeError;
use crate::tree::{Inode, NUMBERING_VERSION, Name, S_IFDIR, S_IFLNK, Tree, XattrSet};

/// Numbers what can be reached from the root, breadth first, each directory's entries by name.
/// Names that begin with `.wh.` are left out: by now they are only AUFS's own files.
pub(crate) fn flatten<'a>(
    nodes: Vec<Node<'a>>,
    names: impl IntoIterator<Item = (Key<'a>, u32)>,
    tar_size: u64,
) -> Result<Tree, TreeError> {
    let mut entries: Vec<(Key<'a>, u32)> = names
        .into_iter()
        .filter(|((_, name), _)| !name.starts_with(b".wh."))
        .collect();
    entries.sort_unstable();
    // Where each directory's entries start in `entries`.
    let mut first_entry = vec![0_usize; nodes.len() + 1];
    for ((parent, _), _) in &entries {
        if let Some(count) = first_entry.get_mut(to_index(*parent) + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut first_entry {
        sum += *start;
        *start = sum;
    }

    let mut tree = Flattening {
        numbers: vec![0; nodes.len()],
        order: Vec::with_capacity(nodes.len()),
        inodes: Vec::with_capacity(nodes.len()),
        names: Vec::with_capacity(entries.len()),
        bytes: Vec::with_capacity(entries.iter().map(|((_, name), _)| name.len()).sum()),
    };
    tree.number(0, &nodes)?;
    let mut at = 0;
    while let Some(&node) = tree.order.get(at) {
        let index = to_index(node);
        let is_directory = tree.inodes.get(at).is_some_and(|i| i.kind() == S_IFDIR);
        if is_directory {
            let range = first_entry.get(index).copied().unwrap_or_default()
                ..first_entry.get(index + 1).copied().unwrap_or_default();
            tree.fill_directory(at, entries.get(range).unwrap_or_default(), &nodes)?;
        }
        at += 1;
    }
    tree.finish(nodes, tar_size)
}

struct Flattening {
    /// Inode number of each node; 0: not reached.
    numbers: Vec<u32>,
    /// The nodes in the order of their numbers.
    order: Vec<u32>,
    inodes: Vec<Inode>,
    names: Vec<Name>,
    bytes: Vec<u8>,
}

impl Flattening {
    /// The node's inode number, a new one on the first call.
    fn number(&mut self, node: u32, nodes: &[Node<'_>]) -> Result<u32, TreeError> {
        let index = to_index(node);
        let (Some(number), Some(source)) = (self.numbers.get_mut(index), nodes.get(index)) else {
            return Err(TreeError::TooLarge);
        };
        if *number == 0 {
            self.order.push(node);
            self.inodes.push(source.inode);
            *number = u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooLarge)?;
        }
        Ok(*number)
    }

    fn fill_directory(
        &mut self,
        at: usize,
        entries: &[(Key<'_>, u32)],
        nodes: &[Node<'_>],
    ) -> Result<(), TreeError> {
        let parent = u32::try_from(at + 1).map_err(|_| TreeError::TooLarge)?;
        let first = self.names.len() as u64;
        let mut subdirectories = 0_u32;
        for ((_, name), node) in entries {
            let start = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooLarge)?;
            self.bytes.extend_from_slice(name);
            let ino = self.number(*node, nodes)?;
            self.names.push(Name { start, ino });
            if let Some(inode) = self.inodes.get_mut(to_index(ino - 1)) {
                if inode.kind() == S_IFDIR {
                    subdirectories += 1;
                    inode.aux = parent;
                } else {
                    inode.nlink += 1;
                }
            }
        }
        if let Some(inode) = self.inodes.get_mut(at) {
            inode.start = first;
            inode.size = entries.len() as u64;
            inode.nlink = subdirectories.saturating_add(2);
            if at == 0 {
                inode.aux = parent;
            }
        }
        Ok(())
    }

    fn finish(mut self, mut nodes: Vec<Node<'_>>, tar_size: u64) -> Result<Tree, TreeError> {
        let names_end = u32::try_from(self.bytes.len()).map_err(|_| TreeError::TooLarge)?;
        let mut sets: Vec<XattrSet> = Vec::new();
        let mut known: HashMap<XattrSet, u32> = HashMap::new();
        for (inode, node) in self.inodes.iter_mut().zip(&self.order) {
            let Some(node) = nodes.get_mut(to_index(*node)) else {
                continue;
            };
            if inode.kind() == S_IFLNK {
                inode.start = self.bytes.len() as u64;
                self.bytes.extend_from_slice(node.target);
            }
            if node.xattrs.is_empty() {
                continue;
            }
            let mut set = std::mem::take(&mut node.xattrs);
            set.sort_unstable();
            inode.xattrs = match known.get(&set) {
                Some(&number) => number,
                None => {
                    sets.push(set.clone());
                    let number = u32::try_from(sets.len()).map_err(|_| TreeError::TooLarge)?;
                    known.insert(set, number);
                    number
                }
            };
        }
        self.bytes.shrink_to_fit();
        self.inodes.shrink_to_fit();
        let checksum = self.checksum(names_end);
        Ok(Tree {
            inodes: self.inodes,
            names: self.names,
            bytes: self.bytes,
            names_end,
            xattr_sets: sets,
            checksum,
            tar_size,
        })
    }

    /// Covers what request and answer refer to: numbers, names, positions and types.
    fn checksum(&self, names_end: u32) -> soci_oci::Digest {
        let mut packed = Vec::with_capacity(self.inodes.len() * 12 + self.names.len() * 8 + 16);
        packed.extend_from_slice(&NUMBERING_VERSION.to_le_bytes());
        packed.extend_from_slice(&(self.inodes.len() as u64).to_le_bytes());
        for inode in &self.inodes {
            packed.extend_from_slice(&inode.kind().to_le_bytes());
            packed.extend_from_slice(&inode.start.to_le_bytes());
        }
        for name in &self.names {
            packed.extend_from_slice(&name.start.to_le_bytes());
            packed.extend_from_slice(&name.ino.to_le_bytes());
        }
        let mut hasher = Hasher::new();
        hasher.update(&packed);
        let end = to_index(names_end);
        hasher.update(self.bytes.get(..end).unwrap_or_default());
        hasher.finish()
    }
}

fn to_index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
