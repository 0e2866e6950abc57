//! A layer that is not lazy: the provider fetches and unpacks it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::disk_usage;
use crate::image_layer::{ImageLayer, Provided};
use crate::layer_mounts::LayerMounts;
use crate::lowerdirs::LowerDirs;
use crate::metadata::{Link, Usage};
use soci_layer::{Interest, LayerRefusal, UnpackRequest};

/// Unpacks a layer into the directory of a new snapshot and measures it. The interest in its image is to
/// be dropped when the layer is committed.
///
/// `cancel` ends the work early. After a failure the directory holds anything, and nothing is written
/// to it any more.
pub(crate) async fn unpack(
    mounts: &LayerMounts,
    layer: &ImageLayer,
    id: u64,
    parents: &[Link],
    how: Provided,
    cancel: CancellationToken,
) -> Result<(Usage, Option<Interest>), LayerRefusal> {
    let failed = LayerRefusal::unpack_failed;
    mounts.reset(id, parents).await.map_err(failed)?;
    mounts
        .check(&LowerDirs::Shared, parents)
        .await
        .map_err(failed)?;
    let request = UnpackRequest {
        layer: layer.request(&mounts.store.directories, id, parents),
        eager: (how == Provided::Eager).then(|| Arc::clone(&mounts.store) as _),
    };
    let unpacked = mounts.unpack(request, cancel).await?;
    if let Some(size) = unpacked.size {
        return Ok((disk_usage::of(size.bytes, size.inodes), unpacked.interest));
    }
    let measured = mounts
        .store
        .blocking(move |store| Ok(disk_usage::measure(&store.directories.fs(id))?));
    Ok((measured.await.map_err(failed)?, unpacked.interest))
}
