//! Names of stored layers.

use soci_oci::Digest;

/// The name of a stored layer: the layer, and the zTOC through which it is read. A zTOC is only as
/// trustworthy as the index that named it, so two images that use one layer through different zTOCs
/// do not share data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerKey {
    /// The digest of the compressed layer.
    pub layer: Digest,
    /// The digest of the zTOC.
    pub ztoc: Digest,
}

impl LayerKey {
    pub(crate) fn folder_name(&self) -> String {
        format!("{}-{}", self.layer.hex(), self.ztoc.hex())
    }

    pub(crate) fn from_folder_name(name: &str) -> Option<Self> {
        let (layer, ztoc) = name.split_once('-')?;
        let digest = |hex: &str| format!("sha256:{hex}").parse().ok();
        Some(Self {
            layer: digest(layer)?,
            ztoc: digest(ztoc)?,
        })
    }
}
