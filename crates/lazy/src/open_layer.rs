//! A layer that can be mounted.

use std::sync::Arc;

use parking_lot::Mutex;
use soci_fetch::{BackgroundCounts, LazyLayer};
use soci_layerfs::{FileWatch, Tree};

use crate::sources::Sources;
use crate::tree_memory::TreePermit;
use crate::verdict::Verification;

/// A layer that can be mounted. Dropping it ends its fetches.
pub(crate) struct OpenLayer {
    /// The file tree with all extended attributes: the index of each image decides whether its
    /// mounts show them.
    pub(crate) tree: Arc<Tree>,
    pub(crate) data: Arc<LazyLayer>,
    pub(crate) sources: Sources,
    /// The watchers of its files.
    pub(crate) watch: Arc<FileWatch>,
    /// Whether the layer is what its digests say.
    pub(crate) verification: Verification,
    /// The memory of the tree.
    pub(crate) _memory: TreePermit,
    /// The part of the background fetcher's counts that is in the metrics.
    pub(crate) counted: Mutex<BackgroundCounts>,
}

impl Drop for OpenLayer {
    fn drop(&mut self) {
        self.data.close();
    }
}
