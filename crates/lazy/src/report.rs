//! What is mounted, for metrics and `soci status`.

use std::path::PathBuf;

use soci_fetch::LayerData as _;
use soci_layerfs::CounterSnapshot;
use soci_oci::{Digest, Reference};

use crate::LazyLayers;
use crate::provider::Shared;

/// One mounted layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountReport {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The image that it was mounted for.
    pub image: Reference,
    /// The digest of that image's manifest.
    pub manifest: Digest,
    /// The SOCI index through which it is read.
    pub index: Digest,
    /// The digest of the layer.
    pub layer: Digest,
    /// The digest of its zTOC.
    pub ztoc: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// How many of them are here.
    pub fetched: u64,
    /// What went wrong last, until something succeeds.
    pub error: Option<String>,
    /// Whether it is served: not after its FUSE connection was aborted.
    pub is_served: bool,
}

impl LazyLayers {
    /// All mounted layers, by mount point.
    #[must_use]
    pub fn mounts(&self) -> Vec<MountReport> {
        let mounts = self.shared.mounts.lock();
        let mut reports: Vec<_> = mounts
            .iter()
            .map(|(mountpoint, mount)| {
                let (key, status) = (mount.lease.key(), mount.lease.layer().data.status());
                MountReport {
                    mountpoint: mountpoint.clone(),
                    image: mount.image.reference.clone(),
                    manifest: mount.image.manifest,
                    index: mount.index,
                    layer: key.layer,
                    ztoc: key.ztoc,
                    size: status.size,
                    fetched: status.fetched_size,
                    error: status.error,
                    is_served: mount.mounted.is_served(),
                }
            })
            .collect();
        drop(mounts);
        reports.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        reports
    }

    /// Takes what has been counted since the last time over into the metrics.
    pub fn update_metrics(&self) {
        for mount in self.shared.mounts.lock().values_mut() {
            let (key, layer) = (mount.lease.key(), mount.lease.layer());
            self.shared.metering.layer(&key.layer, layer);
            let now = mount.mounted.counters();
            self.shared
                .metering
                .mount(&key.layer, now, &mut mount.counted);
        }
    }
}

impl Shared {
    /// The counts of an image's mounts; `None` if there is none.
    pub(crate) fn image_operations(&self, manifest: &Digest) -> Option<Vec<CounterSnapshot>> {
        let mounts = self.mounts.lock();
        let of_image = mounts
            .values()
            .filter(|mount| mount.image.manifest == *manifest);
        let counts: Vec<_> = of_image.map(|mount| mount.mounted.counters()).collect();
        (!counts.is_empty()).then_some(counts)
    }
}
