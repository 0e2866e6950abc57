//! The start of a container whose image stayed on the node and has lost a part of what was stored.

use std::sync::{Arc, Weak};

use soci_layer::ChainUse;
use soci_store::LayerKey;
use soci_ztoc::SpanId;

use crate::image_layer::ImageKey;
use crate::mount_table::{Mount, MountTable};
use crate::start_up::StartUps;

/// A container that is about to start on lazy layers of which not everything is stored.
pub(crate) struct ContainerStart {
    /// The image that its uppermost lazy layer was mounted for.
    image: ImageKey,
    /// Not kept: a layer that is removed must go.
    mounts: Vec<(LayerKey, Weak<Mount>)>,
}

impl ContainerStart {
    /// `None`: there is nothing to be fetched.
    pub(crate) fn of(table: &MountTable, use_of: &ChainUse) -> Option<Self> {
        let mounts: Vec<Arc<Mount>> = {
            let mounted = table.mounts.lock();
            let layers = use_of.layers.iter();
            let mountpoints = layers.filter_map(|layer| layer.mountpoint.as_ref());
            mountpoints
                .filter_map(|mountpoint| mounted.get(mountpoint).cloned())
                .collect()
        };
        let image = mounts.first()?.layer.image.clone();
        let is_complete = |mount: &Arc<Mount>| {
            let data = &mount.layer.lease.layer().data;
            data.stored().is_complete()
        };
        if mounts.iter().all(is_complete) {
            return None;
        }
        let mounts = mounts.iter();
        Some(Self {
            image,
            mounts: mounts
                .map(|mount| (mount.key(), Arc::downgrade(mount)))
                .collect(),
        })
    }

    /// Plays the image's profile, if one is stored that lists what is missing.
    pub(crate) async fn begin(self, start_ups: Arc<StartUps>) {
        let is_missing = |key: &LayerKey, span: u32| {
            let (_, mount) = self.mounts.iter().find(|(known, _)| known == key)?;
            let mount = mount.upgrade()?;
            let stored = mount.layer.lease.layer().data.stored();
            stored.spans().get(SpanId(span))?;
            Some(!stored.has(SpanId(span)))
        };
        if !start_ups.begin_evicted(&self.image, is_missing).await {
            return;
        }
        let manifest = &self.image.manifest;
        for (key, mount) in &self.mounts {
            if let Some(mount) = mount.upgrade() {
                start_ups.opened(manifest, *key, mount.layer.lease.layer());
                start_ups.mounted(manifest, *key, &mount.mounted);
            }
        }
    }
}
