//! How one mount shows a layer that others may show otherwise.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use soci_layer::{IdMaps, IdRange, OverlayXattr};
use soci_layerfs::Tree;

/// What differs between mounts of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The image's index says that nobody asks for extended attributes.
    pub(crate) disable_xattrs: bool,
    /// Where overlayfs looks for the mark of opaque directories.
    pub(crate) mark: OverlayXattr,
    /// Translated owners.
    pub(crate) id_maps: Option<IdMaps>,
    /// Requests for extended attributes are answered, even if there are none.
    pub(crate) answer_xattrs: bool,
}

impl Look {
    /// The layer's files as this mount shows them.
    pub(crate) fn at(&self, tree: &Arc<Tree>) -> Arc<Tree> {
        let bare = match self.disable_xattrs {
            true => tree.without_xattrs(self.mark).map(Arc::new),
            false => None,
        };
        let tree = bare.unwrap_or_else(|| tree.clone());
        match &self.id_maps {
            None => tree,
            Some(maps) => Arc::new(tree.remapped(maps)),
        }
    }
}

/// A look as it is noted with the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotedLook {
    disable_xattrs: bool,
    userxattr: bool,
    /// First id inside, first id outside, length; of users and of groups.
    id_maps: Option<[Vec<(u32, u32, u32)>; 2]>,
    #[serde(default)]
    answer_xattrs: bool,
}

impl From<&Look> for NotedLook {
    fn from(look: &Look) -> Self {
        let noted = |ranges: &[IdRange]| {
            let ranges = ranges.iter().map(|r| (r.container, r.host, r.length));
            ranges.collect()
        };
        let maps = look.id_maps.as_ref();
        Self {
            disable_xattrs: look.disable_xattrs,
            userxattr: look.mark == OverlayXattr::User,
            id_maps: maps.map(|maps| [noted(&maps.uid), noted(&maps.gid)]),
            answer_xattrs: look.answer_xattrs,
        }
    }
}

impl From<&NotedLook> for Look {
    fn from(noted: &NotedLook) -> Self {
        let ranges = |noted: &[(u32, u32, u32)]| {
            let ranges = noted.iter().map(|&(container, host, length)| IdRange {
                container,
                host,
                length,
            });
            ranges.collect()
        };
        Self {
            disable_xattrs: noted.disable_xattrs,
            mark: match noted.userxattr {
                true => OverlayXattr::User,
                false => OverlayXattr::Trusted,
            },
            id_maps: noted.id_maps.as_ref().map(|[uid, gid]| IdMaps {
                uid: ranges(uid),
                gid: ranges(gid),
            }),
            answer_xattrs: noted.answer_xattrs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_the_same_after_it_was_noted() {
        let range = |container, host, length| IdRange {
            container,
            host,
            length,
        };
        for look in [
            Look {
                disable_xattrs: false,
                mark: OverlayXattr::Trusted,
                id_maps: None,
                answer_xattrs: false,
            },
            Look {
                disable_xattrs: true,
                mark: OverlayXattr::User,
                id_maps: Some(IdMaps {
                    uid: vec![range(0, 1000, 10), range(10, 5000, 1)],
                    gid: vec![range(0, 7, 9)],
                }),
                answer_xattrs: true,
            },
        ] {
            let text = serde_json::to_string(&NotedLook::from(&look)).unwrap();
            let noted: NotedLook = serde_json::from_str(&text).unwrap();
            assert_eq!(Look::from(&noted), look);
        }
    }
}
