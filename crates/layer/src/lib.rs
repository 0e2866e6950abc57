//! The port between the snapshotter and lazy layers.
//!
//! The snapshotter asks a [`LayerProvider`] to mount the file system of a layer, and learns from a
//! [`LayerRefusal`] why that is not possible. Neither side depends on the other.

#![forbid(unsafe_code)]

mod id_maps;
mod lower;
mod overlay;
mod provider;
mod refusal;
mod request;
mod use_refusal;

pub use id_maps::{IdMapError, IdMaps, IdRange};
pub use lower::{DirectoryAttributes, Lower, LowerLayer, attributes_below};
pub use overlay::OverlayXattr;
pub use provider::{LayerProvider, MountedInfo, ProviderError, Restoration, Restored};
pub use refusal::{Cause, LayerRefusal, UnpackFault};
pub use request::{
    Announcement, ChainUse, CommittedLayers, Interest, LayerRequest, LayerUses, ParentLayer,
    Purpose, UnpackOutcome, UnpackRequest, UnpackedSize, UsedLayer, View,
};
pub use use_refusal::UseRefusal;
