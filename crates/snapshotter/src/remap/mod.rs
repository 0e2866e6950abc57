//! The snapshot of a container in a user namespace: its layers are seen with the owners that they have
//! outside of it.
//!
//! On lazy layers, each layer gets a directory `snapshots/<layer>_<snapshot>/fs`: lazy ones are mounted
//! there once more, with translated owners; of the others it holds a copy. Without any lazy
//! layer the owners are changed in the merged root, which copies everything into the upper
//! directory.

mod attributes;
mod chown;
mod copy;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::directories::Owner;
use crate::error::SnapshotterError;
use crate::id_maps::IdMaps;
use crate::labels::Labels;
use crate::metadata::{Link, NewSnapshot};
use crate::place::Place;
use crate::provider::{LayerRefusal, ProviderError};
use crate::restore::LazyMount;
use crate::snapshotter::{CONCURRENT_MOUNTS, Inner};

use chown::Overlay;

/// A container's snapshot to be.
pub(crate) struct Remapped {
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) labels: Labels,
    pub(crate) maps: IdMaps,
}

impl Inner {
    /// Makes the snapshot with all that belongs to it, or nothing.
    pub(crate) async fn create_remapped(
        self: &Arc<Self>,
        new: Remapped,
        parents: Vec<Link>,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let reservation = self.reserve();
        let id = reservation.id;
        let made = self.make_remapped(id, &new, &parents).await;
        let inserted = match made {
            Ok(separate) => {
                self.blocking(move |inner| {
                    let parents = inner.insert_made(NewSnapshot {
                        id,
                        name: &new.key,
                        kind: Kind::Active,
                        parent: &new.parent,
                        labels: new.labels,
                        fallback: None,
                        id_maps: separate.then_some(new.maps),
                    })?;
                    Ok(inner.mounts(Kind::Active, id, &parents, separate))
                })
                .await
            }
            Err(error) => Err(error),
        };
        if inserted.is_err() {
            self.discard_remapped(id, &parents).await;
        }
        inserted
    }

    /// Makes directories and mounts. Tells whether the layers have directories of their own.
    async fn make_remapped(
        self: &Arc<Self>,
        id: u64,
        new: &Remapped,
        parents: &[Link],
    ) -> Result<bool, SnapshotterError> {
        let separate = parents.iter().any(|parent| parent.lazy.is_some());
        if separate {
            let layers = parents.iter().map(|parent| {
                let (inner, parent, maps) = (Arc::clone(self), parent.clone(), new.maps.clone());
                async move { inner.remap_layer(id, &parent, &maps).await }
            });
            // Collected: the compiler cannot follow borrowing futures across a spawn.
            stream::iter(layers.collect::<Vec<_>>())
                .buffer_unordered(CONCURRENT_MOUNTS)
                .try_collect::<()>()
                .await?;
        }
        let (maps, parents) = (new.maps.clone(), parents.to_vec());
        self.blocking(move |inner| {
            let inherited = inner.directories.inherited_owner(&parents)?;
            let root = inherited.unwrap_or(Owner { uid: 0, gid: 0 });
            let (uid, gid) = maps.map(root.uid, root.gid);
            if separate || parents.is_empty() {
                let owner = Some(Owner { uid, gid });
                inner.directories.create(id, true, owner)?;
            } else {
                inner.directories.create(id, true, inherited)?;
                chown::chown(&inner.overlay_of(id, &parents), &maps)?;
            }
            Ok(())
        })
        .await?;
        Ok(separate)
    }

    async fn remap_layer(
        self: &Arc<Self>,
        id: u64,
        parent: &Link,
        maps: &IdMaps,
    ) -> Result<(), SnapshotterError> {
        let place = Place::Remapped {
            layer: parent.id,
            snapshot: id,
        };
        self.blocking(move |inner| inner.directories.create(place, false, None))
            .await?;
        let Some(mount) = LazyMount::remapped(parent, id, maps) else {
            let (layer, maps) = (parent.id, maps.clone());
            return self
                .blocking(move |inner| {
                    let [from, to] = [inner.directories.fs(layer), inner.directories.fs(place)];
                    copy::copy(&from, &to, &maps)
                })
                .await;
        };
        let provider = Arc::clone(&self.provider);
        let request = mount.request(&self.directories);
        tokio::spawn(async move { provider.mount(request).await })
            .await
            .unwrap_or_else(|error| Err(LayerRefusal::failed(error)))
            .map_err(|refusal| SnapshotterError::LayerUnavailable {
                name: mount.name,
                source: ProviderError::new(self.directories.fs(place), refusal),
            })?;
        Ok(())
    }

    fn overlay_of(&self, id: u64, parents: &[Link]) -> Overlay {
        Overlay {
            lower: parents
                .iter()
                .map(|parent| self.directories.fs(parent.id))
                .collect(),
            upper: self.directories.fs(id),
            work: self.directories.work(id),
            extra: self.overlay.extra.clone(),
            mountpoint: self.directories.snapshot(id).join("merged"),
        }
    }

    /// Unmounts and deletes what was made for a snapshot that is not to be.
    async fn discard_remapped(self: &Arc<Self>, id: u64, parents: &[Link]) {
        let separate = parents.iter().map(|parent| Place::Remapped {
            layer: parent.id,
            snapshot: id,
        });
        for place in separate.chain([Place::Snapshot(id)]) {
            let mountpoint = self.directories.fs(place);
            if let Err(error) = self.provider.unmount(&mountpoint).await {
                tracing::warn!(%error, "cannot unmount a layer that is not needed");
            }
            let removed = self
                .blocking(move |inner| {
                    if inner.mounted_now(place)? {
                        // Left to the sweep: deleting would go into the mount.
                        inner.removed.notify_one();
                        return Ok(());
                    }
                    inner.directories.remove(place)
                })
                .await;
            if let Err(error) = removed {
                tracing::warn!(%error, "cannot remove a directory that is not needed");
            }
        }
    }
}
