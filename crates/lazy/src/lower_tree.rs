//! A lazy layer seen from one that is unpacked on top of it: its tree is asked, not its mount, because
//! a daemon that reads its own mount may wait for itself.

use std::io;
use std::sync::Arc;

use layerfs::Tree;
use unpack::{DirectoryAttributes, Lower, LowerLayer};
use ztoc::tar_path::{parts, raw_parts};

/// Symbolic links followed, as in the kernel's path walk (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

pub(crate) struct LowerTree(pub(crate) Arc<Tree>);

impl LowerLayer for LowerTree {
    fn look(&self, path: &[u8]) -> io::Result<Lower> {
        let tree = &self.0;
        let mut at = fuse::ROOT_ID;
        let mut links = 0;
        // What is left to walk, next part last.
        let mut left: Vec<&[u8]> = parts(path).collect();
        left.reverse();
        while let Some(part) = left.pop() {
            let Some(next) = tree.lookup(at, part) else {
                return Ok(Lower::Nothing);
            };
            if tree.is_directory(next) {
                at = next;
                continue;
            }
            let Some(target) = tree.readlink(next) else {
                return Ok(Lower::Other);
            };
            links += 1;
            if links > MAX_LINKS {
                return Ok(Lower::Other);
            }
            if target.first() == Some(&b'/') {
                at = fuse::ROOT_ID;
            }
            let from = left.len();
            left.extend(raw_parts(target));
            if let Some(added) = left.get_mut(from..) {
                added.reverse();
            }
        }
        let Some(attributes) = tree.attr(at) else {
            return Ok(Lower::Nothing);
        };
        let xattrs = tree.xattrs(at).iter();
        Ok(Lower::Directory(DirectoryAttributes {
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            // The mark of opaque directories is the layer's own.
            xattrs: xattrs
                .filter(|(name, _)| {
                    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
                })
                .cloned()
                .collect(),
        }))
    }
}
