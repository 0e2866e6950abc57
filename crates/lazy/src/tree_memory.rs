//! Limits the memory of file trees: of one layer, of the layers of one image, and of all layers in use.

use std::collections::HashMap;

use parking_lot::Mutex;
use soci_layer::OverlayXattr;
use soci_layerfs::{Cancelled, TreeOptions};
use soci_meter::{MeterPool, OverLimit, Permit};
use soci_oci::Digest;

const LAYER: &str = "limits.tree_bytes";
const IMAGE: &str = "limits.image_tree_bytes";
const ALL: &str = "limits.total_tree_bytes";

/// Most bytes of memory that hostile or huge images may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Size of the largest zTOC that is used.
    pub ztoc: u64,
    /// Memory in which the file tree of one layer is built.
    pub tree: u64,
    /// Memory of the file trees that were opened for one image.
    pub image_trees: u64,
    /// Memory of all file trees.
    pub total_trees: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            ztoc: 128 << 20,
            tree: 256 << 20,
            image_trees: 512 << 20,
            total_trees: 1 << 30,
        }
    }
}

/// What the trees in use take.
pub(crate) struct TreeMemory {
    limits: MemoryLimits,
    total: MeterPool,
    /// The trees that were opened for an image, by its manifest.
    images: Mutex<HashMap<Digest, MeterPool>>,
}

/// The memory of one tree. Dropping it returns the memory.
#[derive(Debug)]
pub(crate) struct TreePermit {
    _image: Permit,
    _total: Permit,
}

impl TreeMemory {
    pub(crate) fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            total: MeterPool::new(
                "keeping the file trees of all layers",
                limits.total_trees,
                Some(ALL),
            ),
            images: Mutex::default(),
        }
    }

    /// Options of building a tree within the limit of one layer.
    pub(crate) fn options(&self, overlay_xattr: OverlayXattr, cancelled: Cancelled) -> TreeOptions {
        TreeOptions {
            overlay_xattr,
            memory: self.limits.tree,
            memory_key: Some(LAYER),
            cancelled,
            ..TreeOptions::default()
        }
    }

    /// Takes the memory of a tree that is opened for an image.
    pub(crate) fn take(&self, image: Digest, bytes: usize) -> Result<TreePermit, OverLimit> {
        let bytes = bytes as u64;
        let pool = {
            let mut images = self.images.lock();
            images.retain(|_, pool| pool.held() > 0);
            let limit = self.limits.image_trees;
            let new = || MeterPool::new("keeping the file trees of the image", limit, Some(IMAGE));
            images.entry(image).or_insert_with(new).clone()
        };
        Ok(TreePermit {
            _image: pool.take(bytes)?,
            _total: self.total.take(bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_count_against_their_image_and_against_all_as_long_as_they_live() {
        let limits = MemoryLimits {
            image_trees: 100,
            total_trees: 150,
            ..MemoryLimits::default()
        };
        let memory = TreeMemory::new(limits);
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let first = memory.take(a, 80).unwrap();
        let refused = memory.take(a, 21).unwrap_err();
        assert_eq!(refused.key, Some(IMAGE));
        let second = memory.take(b, 70).unwrap();
        let refused = memory.take(b, 1).unwrap_err().to_string();
        assert!(
            refused.contains("150 bytes") && refused.contains(ALL),
            "{refused}"
        );
        drop(first);
        let third = memory.take(a, 80).unwrap();
        drop((second, third));
        let _all = memory.take(b, 100).unwrap();
        assert_eq!(memory.images.lock().len(), 1);
    }
}
