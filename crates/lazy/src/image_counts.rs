//! The FUSE operations of an image in its first minute: logged and shown once per image, for
//! comparing how images start.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_layerfs::CounterSnapshot;
use soci_oci::Digest;
use soci_telemetry::metrics::image;

use crate::provider::Shared;

/// Images that are mounted and being, or done being, watched; by the digest of their manifest.
#[derive(Debug, Default)]
pub(crate) struct ImageCounts(Mutex<HashSet<Digest>>);

impl Shared {
    /// Begins to watch an image unless it is watched already.
    pub(crate) fn watch_image(self: &Arc<Self>, manifest: Digest) {
        if self.image_counts.0.lock().insert(manifest) {
            let wait = self.config.operation_count_wait;
            tokio::spawn(tell_later(Arc::downgrade(self), manifest, wait));
        }
    }

    /// The image's last mount is gone.
    pub(crate) fn forget_image(&self, manifest: &Digest) {
        self.image_counts.0.lock().remove(manifest);
        self.metering.meters.forget_image(&manifest.to_string());
    }
}

async fn tell_later(shared: Weak<Shared>, manifest: Digest, wait: std::time::Duration) {
    tokio::time::sleep(wait).await;
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let Some(counts) = shared.image_operations(&manifest) else {
        return;
    };
    let digest = manifest.to_string();
    for (operation, number) in by_name(&counts) {
        shared
            .metering
            .meters
            .image_operations(operation, &digest, number);
        tracing::info!("fuse operation count for image {digest}: {operation} = {number}");
    }
}

/// The operations that v0.15 counts, in the order of the contract.
pub(crate) fn by_name(counts: &[CounterSnapshot]) -> [(&'static str, u64); 10] {
    let sum = |of: fn(&CounterSnapshot) -> u64| counts.iter().map(of).sum();
    [
        (image::NODE_GETATTR, sum(|c| c.node_getattr)),
        (image::NODE_GETXATTR, sum(|c| c.getxattr)),
        (image::NODE_LISTXATTR, sum(|c| c.listxattr)),
        (image::NODE_LOOKUP, sum(|c| c.lookup)),
        (image::NODE_OPEN, sum(|c| c.open)),
        (image::NODE_READDIR, sum(|c| c.readdir)),
        (image::NODE_READLINK, sum(|c| c.readlink)),
        (image::FILE_READ, sum(|c| c.read)),
        (image::FILE_GETATTR, sum(|c| c.file_getattr)),
        (image::WHITEOUT_GETATTR, sum(|c| c.whiteout_getattr)),
    ]
}
