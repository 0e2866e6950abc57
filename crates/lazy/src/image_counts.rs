//! The FUSE operations of an image in its first minute: logged and exported once per image, for
//! comparing how images start.

use std::collections::HashSet;

use parking_lot::Mutex;
use soci_layerfs::CounterSnapshot;
use soci_oci::Digest;
use soci_telemetry::Meters;
use soci_telemetry::metrics::image;

/// The mounted images, by the digest of their manifest.
#[derive(Debug, Default)]
pub(crate) struct ImageCounts(Mutex<HashSet<Digest>>);

impl ImageCounts {
    /// Notes that an image is mounted. Returns whether this is its first mount.
    pub(crate) fn begin(&self, manifest: Digest) -> bool {
        self.0.lock().insert(manifest)
    }

    /// Notes that the last mount of an image has ended.
    pub(crate) fn end(&self, manifest: &Digest) {
        self.0.lock().remove(manifest);
    }
}

/// Logs and exports the operations of an image, summed over its mounts.
pub(crate) fn report(meters: &Meters, manifest: &Digest, counts: &[CounterSnapshot]) {
    let digest = manifest.to_string();
    for (operation, number) in by_name(counts) {
        meters.image_operations(operation, &digest, number);
        tracing::info!("fuse operation count for image {digest}: {operation} = {number}");
    }
}

/// Returns the operations that v0.15 counts, in its order.
fn by_name(counts: &[CounterSnapshot]) -> [(&'static str, u64); 10] {
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
