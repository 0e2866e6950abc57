//! A lazy layer seen from one that is unpacked on top of it: its tree is asked, not its mount, because
//! a daemon that reads its own mount may wait for itself.

use std::io;
use std::sync::Arc;

use soci_layerfs::Tree;
use soci_unpack::{DirectoryAttributes, Lower, LowerLayer};
use soci_ztoc::tar_path::{parts, raw_parts};

/// Symbolic links followed, as in the kernel's path walk (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

pub(crate) struct LowerTree(pub(crate) Arc<Tree>);

impl LowerLayer for LowerTree {
    fn look(&self, path: &[u8]) -> io::Result<Lower> {
        let tree = &self.0;
        let mut at = soci_fuse::ROOT_ID;
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
                at = soci_fuse::ROOT_ID;
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

#[cfg(test)]
mod tests {
    use soci_layerfs::TreeOptions;
    use soci_ztoc::{FileMetadata, FileType};

    use super::*;

    fn entry(name: &str, file_type: FileType, linkname: &str, mode: u32) -> FileMetadata {
        FileMetadata {
            name: name.into(),
            file_type,
            uncompressed_offset: 512,
            uncompressed_size: 0,
            linkname: linkname.into(),
            mode,
            uid: 11,
            gid: 12,
            uname: Vec::new(),
            gname: Vec::new(),
            mod_time: String::new(),
            devmajor: 0,
            devminor: 0,
            xattrs: vec![(b"SCHILY.xattr.user.note".to_vec(), b"n".to_vec())],
        }
    }

    #[test]
    fn a_tree_answers_as_an_unpacked_layer_would() {
        let toc = [
            entry("srv/deep", FileType::Dir, "", 0o2770),
            entry("srv/deep/.wh..wh..opq", FileType::Reg, "", 0),
            entry("link", FileType::Symlink, "srv/../srv", 0o777),
            entry("absolute", FileType::Symlink, "/srv/deep", 0o777),
            entry("circle", FileType::Symlink, "circle", 0o777),
            entry("file", FileType::Reg, "", 0o644),
            entry(".wh.gone", FileType::Reg, "", 0),
        ];
        let tree = Tree::build(&toc, 10_000, TreeOptions::default()).unwrap();
        let lower = LowerTree(Arc::new(tree));
        let look = |path: &str| lower.look(path.as_bytes()).unwrap();
        let described = Lower::Directory(DirectoryAttributes {
            mode: 0o2770,
            uid: 11,
            gid: 12,
            xattrs: vec![(b"user.note".to_vec(), b"n".to_vec())],
        });
        for path in ["srv/deep", "link/deep", "absolute"] {
            assert_eq!(look(path), described, "{path}");
        }
        for path in ["file", "file/below", "gone", "circle", "circle/below"] {
            assert_eq!(look(path), Lower::Other, "{path}");
        }
        assert_eq!(look("srv/nothing"), Lower::Nothing);
        assert!(matches!(look(""), Lower::Directory(_)));
    }
}
