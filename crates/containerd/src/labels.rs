//! The labels that containerd, its clients and the snapshotter exchange.

mod chain;
pub mod gc;
mod prepare;

use soci_oci::Reference;

pub use chain::{ChainPosition, PositionError, chain_id};
pub use prepare::{ImageLabels, LabelError, LayerAbove, LayerLabels};

/// On Prepare: name of the committed snapshot to make; its presence marks an image layer.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// On Prepare: reference of the image that is being pulled.
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// On Prepare: digest of the image's manifest.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// On Prepare: digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// On Prepare: digests of this layer and of those above it, separated by commas.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// On Prepare: compressed sizes of the layers in [`IMAGE_LAYERS`], in bytes.
pub const IMAGE_LAYER_SIZES: &str = "containerd.io/snapshot/remote/image.layers.size";
/// On Prepare: compressed size of the layer, in bytes.
pub const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// On Prepare: digest of the SOCI index to use, whatever the image names.
pub const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// On Prepare: the client has all layers of the image pulled in parallel if no index is found. The
/// value is `true`.
pub const EAGER: &str = "containerd.io/snapshot/remote/soci.eager";
/// On Prepare of an image layer by containerd 2.3 and later: digest of the uncompressed layer.
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// On Prepare of an image layer by containerd 2.3 and later: chain ID of the layer below. The lowest
/// has none.
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";
/// On a container's own snapshot: user id map of its user namespace, `container:host:length[,…]`.
pub const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
/// On a container's own snapshot: group id map of its user namespace, as in [`UID_MAP`].
pub const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

/// On a committed snapshot: the layer is mounted lazily. The value is [`REMOTE_VALUE`].
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`].
pub const REMOTE_VALUE: &str = "remote snapshot";
/// On a committed snapshot: the image has a SOCI index. The value is `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// On a committed snapshot: the client made it as a copy with other owners. The value is `true`.
pub const CLIENT_COPY: &str = "containerd.io/snapshot/remote/soci.client-copy";
/// On a committed snapshot: namespace of the client whose Prepare the snapshotter committed.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";

/// On a layer blob: digest of its uncompressed content (the diff ID).
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Beginning of the labels that name the repositories a blob came from, one per registry host.
pub const SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

/// Greatest length of key and value of one label together that containerd accepts, in bytes.
pub const MAX_LENGTH: usize = 4096;

/// Returns the label that records the repository a blob came from, so that a push can mount it.
#[must_use]
pub fn source(reference: &Reference) -> (String, String) {
    (
        format!("{SOURCE_PREFIX}{}", reference.registry()),
        reference.repository().to_owned(),
    )
}
