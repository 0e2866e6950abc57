//! The snapshot of a container in a user namespace: it shows its layers with the owners that they
//! have outside of the namespace.
//!
//! On lazy layers, each layer gets a directory `snapshots/<layer>_<snapshot>/fs`: a second mount of a
//! lazy layer with translated owners, or a copy of another one. Without any lazy layer the owners are
//! changed in the merged root, which copies everything into the upper directory.

mod attributes;
mod chown;
mod copy;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::directories::Owner;
use crate::error::SnapshotterError;
use crate::layer_mounts::{CONCURRENT_MOUNTS, LayerMounts};
use crate::lowerdirs::LowerDirs;
use crate::metadata::{Link, NewSnapshot};
use crate::snapshot_dir::SnapshotDir;
use crate::store::{Creation, SnapshotStore};
use soci_layer::IdMaps;

use chown::Overlay;

/// Creates the active snapshot of a container with these id maps. Creates nothing if it fails.
pub(crate) async fn create(
    mounts: &Arc<LayerMounts>,
    new: Creation,
    maps: IdMaps,
    parents: &[Link],
) -> Result<Vec<Mount>, SnapshotterError> {
    let reservation = mounts.store.ids.reserve();
    let id = reservation.id;
    let id_mapped = LowerDirs::IdMapped {
        snapshot: id,
        maps: maps.clone(),
    };
    let created = async {
        let any_lazy = parents.iter().any(|parent| parent.lazy.is_some());
        let lowerdirs = if any_lazy {
            map_layers(mounts, &id_mapped, parents, &maps).await?;
            id_mapped.clone()
        } else {
            LowerDirs::Shared
        };
        let parents = parents.to_vec();
        mounts
            .store
            .blocking(move |store| {
                make_directories(store, id, &lowerdirs, &parents, &maps)?;
                let new = NewSnapshot {
                    id,
                    name: &new.key,
                    kind: Kind::Active,
                    parent: &new.parent,
                    labels: new.labels,
                    fallback: None,
                    id_maps: any_lazy.then_some(maps),
                };
                store.insert(new, &lowerdirs)
            })
            .await
    };
    let created = created.await;
    if created.is_err() {
        mounts.discard_own(&id_mapped, parents).await;
        mounts.discard(SnapshotDir::Snapshot(id)).await;
    }
    created
}

/// Mounts or copies every layer with translated owners.
async fn map_layers(
    mounts: &Arc<LayerMounts>,
    lowerdirs: &LowerDirs,
    parents: &[Link],
    maps: &IdMaps,
) -> Result<(), SnapshotterError> {
    let layers = parents.iter().map(|parent| {
        let (mounts, layer, maps) = (Arc::clone(mounts), parent.id, maps.clone());
        let (dir, mount) = (lowerdirs.dir(parent), lowerdirs.mount(parent));
        async move {
            if let Some(mount) = mount {
                return mounts.mount_second(mount).await;
            }
            let copied = mounts.store.blocking(move |store| {
                store.directories.create(dir, false, None)?;
                let [from, to] = [store.directories.fs(layer), store.directories.fs(dir)];
                Ok(copy::copy(&from, &to, &maps)?)
            });
            copied.await
        }
    });
    // Collected: the compiler cannot follow borrowing futures across a spawn.
    stream::iter(layers.collect::<Vec<_>>())
        .buffer_unordered(CONCURRENT_MOUNTS)
        .try_collect::<()>()
        .await
}

/// Makes the directories of the snapshot itself. Blocking.
fn make_directories(
    store: &SnapshotStore,
    id: u64,
    lowerdirs: &LowerDirs,
    parents: &[Link],
    maps: &IdMaps,
) -> Result<(), SnapshotterError> {
    let inherited = store.directories.inherited_owner(parents)?;
    if *lowerdirs == LowerDirs::Shared && !parents.is_empty() {
        store.directories.create(id, true, inherited)?;
        return Ok(chown::chown(&overlay(store, id, parents), maps)?);
    }
    let root = inherited.unwrap_or(Owner { uid: 0, gid: 0 });
    let (uid, gid) = maps.map(root.uid, root.gid);
    Ok(store
        .directories
        .create(id, true, Some(Owner { uid, gid }))?)
}

fn overlay(store: &SnapshotStore, id: u64, parents: &[Link]) -> Overlay {
    Overlay {
        lower: parents
            .iter()
            .map(|parent| store.directories.fs(parent.id))
            .collect(),
        upper: store.directories.fs(id),
        work: store.directories.work(id),
        extra: store.overlay.extra.clone(),
        mountpoint: store.directories.snapshot(id).join("merged"),
    }
}
