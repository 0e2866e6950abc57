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
use crate::labels::Labels;
use crate::lowers::Lowers;
use crate::metadata::{Link, NewSnapshot};
use crate::place::Place;
use crate::snapshotter::{CONCURRENT_MOUNTS, Inner};
use soci_layer::IdMaps;

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
        let unmade = Lowers::Remapped {
            snapshot: id,
            maps: new.maps.clone(),
        };
        let made = self.make_remapped(id, &new, &parents).await;
        let inserted = match made {
            Ok(lowers) => {
                let separate = lowers != Lowers::Shared;
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
                    Ok(inner.mounts(Kind::Active, id, &parents, &lowers))
                })
                .await
            }
            Err(error) => Err(error),
        };
        if inserted.is_err() {
            self.discard_apart(&unmade, &parents).await;
            self.discard(Place::Snapshot(id)).await;
        }
        inserted
    }

    /// Makes directories and mounts. Tells where the layers are then.
    async fn make_remapped(
        self: &Arc<Self>,
        id: u64,
        new: &Remapped,
        parents: &[Link],
    ) -> Result<Lowers, SnapshotterError> {
        let separate = parents.iter().any(|parent| parent.lazy.is_some());
        let lowers = match separate {
            true => Lowers::Remapped {
                snapshot: id,
                maps: new.maps.clone(),
            },
            false => Lowers::Shared,
        };
        if separate {
            let layers = parents.iter().map(|parent| {
                let (inner, parent, lowers) = (Arc::clone(self), parent.clone(), lowers.clone());
                let maps = new.maps.clone();
                async move { inner.remap_layer(&lowers, &parent, maps).await }
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
        Ok(lowers)
    }

    async fn remap_layer(
        self: &Arc<Self>,
        lowers: &Lowers,
        parent: &Link,
        maps: IdMaps,
    ) -> Result<(), SnapshotterError> {
        if let Some(mount) = lowers.mount(parent) {
            return self.mount_apart(mount).await;
        }
        let (layer, place) = (parent.id, lowers.place(parent));
        self.blocking(move |inner| {
            inner.directories.create(place, false, None)?;
            let [from, to] = [inner.directories.fs(layer), inner.directories.fs(place)];
            copy::copy(&from, &to, &maps)
        })
        .await
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
}
