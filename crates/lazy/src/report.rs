//! The mounted layers, for metrics and `soci status`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use soci_fetch::{Fill, LayerData as _};
use soci_oci::{Digest, Reference};

use crate::mount_table::MountTable;
use crate::verdict::Verdict;

/// One mounted layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountReport {
    /// The mount point.
    pub mountpoint: PathBuf,
    /// The image that the layer was mounted for.
    pub image: Reference,
    /// The digest of that image's manifest.
    pub manifest: Digest,
    /// The SOCI index that lists the layer.
    pub index: Digest,
    /// Why that index is not stored on disk, if it is not: the next start would look it up.
    pub index_error: Option<String>,
    /// The digest of the layer.
    pub layer: Digest,
    /// The digest of its zTOC.
    pub ztoc: Digest,
    /// Compressed size in bytes.
    pub size: u64,
    /// Compressed bytes that are stored.
    pub fetched: u64,
    /// What filling it does or waits for, and the rate at which it arrives.
    pub fill: Fill,
    /// The last failure, until the next success.
    pub error: Option<String>,
    /// Why it is forged, if it is.
    pub forged: Option<String>,
    /// Whether it was verified as a whole.
    pub verified: bool,
    /// Whether it is served: not after its FUSE connection was aborted.
    pub is_served: bool,
}

impl MountTable {
    /// Lists the mounted layers by mount point.
    pub(crate) fn report(&self) -> Vec<MountReport> {
        let unsaved = self.indexes.files.errors();
        let mounts = self.mounts.lock();
        let mut reports: Vec<_> = mounts
            .iter()
            .map(|(mountpoint, mount)| {
                let (key, layer) = (mount.key(), &mount.layer);
                let status = layer.lease.layer().data.status();
                let fill = layer.lease.layer().data.fill();
                let verdict = layer.lease.layer().verification.verdict();
                MountReport {
                    mountpoint: mountpoint.clone(),
                    image: layer.image.reference.clone(),
                    manifest: layer.image.manifest,
                    index: layer.index.index(),
                    index_error: unsaved.get(&layer.index.index()).cloned(),
                    layer: key.layer,
                    ztoc: key.ztoc,
                    size: status.size,
                    fetched: status.fetched_size,
                    fill,
                    error: status.error.map(|failure| failure.detail),
                    verified: verdict.is_some(),
                    forged: match verdict {
                        Some(Verdict::Forged { reason }) => Some(reason),
                        _ => None,
                    },
                    is_served: mount.mounted.is_served(),
                }
            })
            .collect();
        drop(mounts);
        reports.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        reports
    }

    /// Puts layers before all others in filling for some time: a client waits for them.
    pub(crate) fn request_fill(&self, mountpoints: &HashSet<PathBuf>, time: Duration) {
        let mounts = self.mounts.lock();
        let wanted = mounts.iter().filter(|(at, _)| mountpoints.contains(*at));
        for (_, mount) in wanted {
            mount.layer.lease.layer().data.request_fill(time);
        }
    }

    /// Adds what has been counted since the last call to the metrics.
    pub(crate) fn update_metrics(&self) {
        for mount in self.mounts.lock().values() {
            self.count(mount);
        }
    }
}
