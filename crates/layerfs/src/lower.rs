//! A lazy layer below another: read through its tree, not its mount, because a daemon that reads its
//! own mount may wait for itself.

use std::io;

use soci_layer::{DirectoryAttributes, Lower, LowerLayer};

use crate::resolve::ResolveError;
use crate::tree_view::TreeView;

impl LowerLayer for TreeView {
    fn look(&self, path: &[u8]) -> io::Result<Lower> {
        let tree = self.tree();
        let at = match tree.resolve(path, true) {
            Ok(at) if tree.is_directory(at) => at,
            Ok(_) | Err(ResolveError::NotADirectory | ResolveError::TooManyLinks(_)) => {
                return Ok(Lower::Other);
            }
            Err(ResolveError::NotFound) => return Ok(Lower::Nothing),
        };
        let Some(attributes) = self.attr(at) else {
            return Ok(Lower::Nothing);
        };
        let xattrs = self.xattrs(at);
        Ok(Lower::Directory(DirectoryAttributes {
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            // The mark of opaque directories is the layer's own.
            xattrs: xattrs
                .filter(|(name, _)| {
                    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
                })
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use soci_ztoc::{FileMetadata, FileType};

    use super::*;
    use crate::{Tree, TreeOptions};

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
        let lower = TreeView::from(Arc::new(tree));
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
