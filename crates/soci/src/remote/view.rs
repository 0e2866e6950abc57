//! The files of an image as a container sees them: layers over each other, whiteouts applied.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use soci_fuse::Attr;
use soci_layer::OverlayXattr;
use soci_layerfs::Tree;
use soci_ztoc::path_walk::PathWalk;
use soci_ztoc::tar_path::raw_parts;

use super::RemoteLayer;
use super::node::{At, Node};

const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// The merged view.
pub(crate) struct View<'a> {
    layers: &'a [RemoteLayer],
}

impl<'a> View<'a> {
    /// The view of these layers, lowest first.
    pub(crate) fn new(layers: &'a [RemoteLayer]) -> Self {
        Self { layers }
    }

    /// The layer of an inode.
    pub(crate) fn layer(&self, at: At) -> anyhow::Result<&'a RemoteLayer> {
        self.layers.get(at.layer).context("no such layer")
    }

    /// Attributes of an inode.
    pub(crate) fn attr(&self, at: At) -> Option<Attr> {
        self.layers.get(at.layer)?.tree.attr(at.ino)
    }

    /// The target of a symbolic link.
    pub(crate) fn link_target(&self, at: At) -> Option<&'a [u8]> {
        self.layers.get(at.layer)?.tree.readlink(at.ino)
    }

    fn root(&self) -> Vec<At> {
        let tops = (0..self.layers.len()).rev();
        let all = tops.map(|layer| At {
            layer,
            ino: soci_fuse::ROOT_ID,
        });
        self.until_opaque(all)
    }

    /// Directories down to the first that hides what is below it.
    fn until_opaque(&self, all: impl Iterator<Item = At>) -> Vec<At> {
        let mut merged = Vec::new();
        for at in all {
            merged.push(at);
            if self.is_opaque(at) {
                break;
            }
        }
        merged
    }

    fn is_opaque(&self, at: At) -> bool {
        let tree = self.layers.get(at.layer).map(|layer| &layer.tree);
        tree.is_some_and(|tree| {
            tree.xattr(at.ino, OverlayXattr::Trusted.opaque().as_bytes())
                .is_some()
        })
    }

    /// What a name stands for in a merged directory.
    fn child(&self, directory: &[At], name: &[u8]) -> Option<Node> {
        let mut directories = Vec::new();
        for at in directory {
            let tree = &self.layers.get(at.layer)?.tree;
            let Some(ino) = tree.lookup(at.ino, name) else {
                continue;
            };
            let found = At {
                layer: at.layer,
                ino,
            };
            if tree.is_directory(ino) {
                directories.push(found);
                continue;
            }
            if directories.is_empty() && !is_whiteout(tree, ino) {
                return Some(Node::File(found));
            }
            // A deleted name, or a file under a directory, hides whatever is below.
            break;
        }
        let merged = self.until_opaque(directories.into_iter());
        (!merged.is_empty()).then_some(Node::Directory(merged))
    }

    /// The names in a directory, sorted.
    pub(crate) fn children(&self, directory: &[At]) -> BTreeMap<Vec<u8>, Node> {
        let mut names = BTreeSet::new();
        for at in directory {
            let tree = self.layers.get(at.layer).map(|layer| &layer.tree);
            let entries = tree.and_then(|tree| tree.readdir(at.ino, 2));
            names.extend(entries.into_iter().flatten().map(|entry| entry.name));
        }
        names
            .into_iter()
            .filter_map(|name| Some((name.to_vec(), self.child(directory, name)?)))
            .collect()
    }

    /// What a path leads to. Symbolic links on the way are followed within the image, one at the
    /// path's end if `follow`.
    pub(crate) fn find(&self, path: &[u8], follow: bool) -> anyhow::Result<Node> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let mut walk = PathWalk::<&[u8], Vec<At>>::new(self.root(), raw_parts(path));
        while let Some(name) = walk.next_name() {
            let child = self
                .child(walk.directory(), name)
                .with_context(|| format!("{}: no such file in the image", shown()))?;
            let at = match child {
                Node::Directory(next) => {
                    walk.enter(next);
                    continue;
                }
                Node::File(at) => at,
            };
            match self.link_target(at) {
                Some(target) if follow || !walk.is_at_end() => {
                    walk.follow(target).with_context(shown)?
                }
                _ if walk.is_at_end() => return Ok(Node::File(at)),
                _ => bail!("{}: a part of the path is not a directory", shown()),
            }
        }
        Ok(Node::Directory(walk.into_directory()))
    }
}

fn is_whiteout(tree: &Tree, ino: u64) -> bool {
    tree.attr(ino)
        .is_some_and(|attr| attr.mode & KIND == CHARACTER && attr.rdev == 0)
}

/// The letter and the mode bits as `ls -l` shows them.
pub(crate) fn mode_text(mode: u32) -> String {
    let kind = match mode & KIND {
        DIRECTORY => 'd',
        SYMLINK => 'l',
        CHARACTER => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in [
        (6, 0o4000, ('s', 'S')),
        (3, 0o2000, ('s', 'S')),
        (0, 0o1000, ('t', 'T')),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letters.0,
            (false, true) => letters.1,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The word for the kind of a file.
pub(crate) fn kind_word(mode: u32) -> &'static str {
    match mode & KIND {
        DIRECTORY => "dir",
        SYMLINK => "symlink",
        CHARACTER => "char",
        0o060_000 => "block",
        0o010_000 => "fifo",
        _ => "reg",
    }
}

#[cfg(test)]
mod tests {
    use super::mode_text;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o104_755, "-rwsr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o102_644, "-rw-r-Sr--"),
            (0o120_777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }
}
