//! Snapshots that are compared: their lazy parents are mounted once more, with answers to requests
//! for extended attributes.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::api::types::Mount;
use crate::error::SnapshotterError;
use crate::layer_mounts::{CONCURRENT_MOUNTS, LayerMounts};
use crate::lowerdirs::LowerDirs;
use crate::metadata::Link;
use crate::store::Creation;

/// Creates a view for a comparison, with the mounts of its parents. Creates nothing if it fails.
pub(crate) async fn create_view(
    mounts: &Arc<LayerMounts>,
    new: Creation,
    parents: &[Link],
) -> Result<Vec<Mount>, SnapshotterError> {
    let reservation = mounts.store.ids.reserve();
    let id = reservation.id;
    let lowerdirs = mount_parents(mounts, id, parents).await?;
    let created = mounts.store.blocking(move |store| {
        let parent = new.parent.clone();
        let mounts = store.create(new, &reservation, &lowerdirs)?;
        store.comparisons.begin(id, &parent);
        Ok(mounts)
    });
    let created = created.await;
    if created.is_err() {
        let lowerdirs = LowerDirs::Compared { snapshot: id };
        mounts.discard_own(&lowerdirs, parents).await;
    }
    created
}

/// Mounts the lazy parents of a snapshot for a comparison, unless that is done already. Leaves none
/// of these mounts if it fails.
pub(crate) async fn mount_parents(
    mounts: &Arc<LayerMounts>,
    id: u64,
    parents: &[Link],
) -> Result<LowerDirs, SnapshotterError> {
    let lowerdirs = LowerDirs::Compared { snapshot: id };
    let _one_at_a_time = mounts.locks.lock(format!("compared {id}")).await;
    let missing = {
        let all = lowerdirs.mounts(parents);
        let missing = mounts.store.blocking(move |store| {
            Ok(all
                .into_iter()
                .filter(|mount| !store.exists(mount.dir))
                .collect::<Vec<_>>())
        });
        missing.await?
    };
    let mounted = missing.into_iter().map(|mount| {
        let mounts = Arc::clone(mounts);
        async move { mounts.mount_second(mount).await }
    });
    // Collected: the compiler cannot follow borrowing futures across a spawn.
    let mounted = stream::iter(mounted.collect::<Vec<_>>())
        .buffer_unordered(CONCURRENT_MOUNTS)
        .try_collect::<()>()
        .await;
    match mounted {
        Ok(()) => Ok(lowerdirs),
        Err(error) => {
            mounts.discard_own(&lowerdirs, parents).await;
            Err(error)
        }
    }
}
