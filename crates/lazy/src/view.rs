//! How one mount shows a layer; mounts of one layer may differ.

use serde::{Deserialize, Serialize};
use soci_layer::{IdMaps, IdRange, OverlayXattr};
use soci_layerfs::TreeView;

/// The options in which mounts of one layer may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ViewOptions {
    /// The image's index says that no program needs extended attributes: none are shown.
    pub(crate) disable_xattrs: bool,
    /// The attributes in which overlayfs looks for its marks.
    pub(crate) mark: OverlayXattr,
    /// Maps owners to those of a user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Answers requests for extended attributes even if the layer has none.
    pub(crate) answer_xattrs: bool,
}

impl ViewOptions {
    /// Returns the layer's files as this mount shows them.
    pub(crate) fn apply(&self, view: TreeView) -> TreeView {
        let view = view.with_id_maps(self.id_maps.clone());
        match self.disable_xattrs {
            true => view.without_xattrs(self.mark),
            false => view,
        }
    }
}

/// View options as they are stored with the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotedView {
    disable_xattrs: bool,
    userxattr: bool,
    /// First id inside, first id outside, and length of each range; of users and of groups.
    id_maps: Option<[Vec<(u32, u32, u32)>; 2]>,
    #[serde(default)]
    answer_xattrs: bool,
}

impl From<&ViewOptions> for NotedView {
    fn from(view: &ViewOptions) -> Self {
        let noted = |ranges: &[IdRange]| {
            let ranges = ranges.iter().map(|r| (r.container, r.host, r.length));
            ranges.collect()
        };
        let maps = view.id_maps.as_ref();
        Self {
            disable_xattrs: view.disable_xattrs,
            userxattr: view.mark == OverlayXattr::User,
            id_maps: maps.map(|maps| [noted(&maps.uid), noted(&maps.gid)]),
            answer_xattrs: view.answer_xattrs,
        }
    }
}

impl From<&NotedView> for ViewOptions {
    fn from(noted: &NotedView) -> Self {
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
    fn view_options_are_the_same_after_they_were_stored() {
        let range = |container, host, length| IdRange {
            container,
            host,
            length,
        };
        for view in [
            ViewOptions {
                disable_xattrs: false,
                mark: OverlayXattr::Trusted,
                id_maps: None,
                answer_xattrs: false,
            },
            ViewOptions {
                disable_xattrs: true,
                mark: OverlayXattr::User,
                id_maps: Some(IdMaps {
                    uid: vec![range(0, 1000, 10), range(10, 5000, 1)],
                    gid: vec![range(0, 7, 9)],
                }),
                answer_xattrs: true,
            },
        ] {
            let text = serde_json::to_string(&NotedView::from(&view)).unwrap();
            let noted: NotedView = serde_json::from_str(&text).unwrap();
            assert_eq!(ViewOptions::from(&noted), view);
        }
    }
}
