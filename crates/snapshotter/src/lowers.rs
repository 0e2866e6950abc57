//! Which directories a snapshot sees its parents in: their own, or ones that are made for it alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::calls::Creation;
use crate::error::SnapshotterError;
use crate::metadata::{Link, Record, Snapshot};
use crate::place::Place;
use crate::restore::LazyMount;
use crate::snapshotter::{CONCURRENT_MOUNTS, Inner};
use soci_layer::{IdMaps, LayerRefusal, ProviderError, Purpose, View};

/// Where the parents of a snapshot are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lowers {
    /// In their own directories.
    Shared,
    /// Each in a directory of this snapshot, with translated owners.
    Remapped {
        snapshot: u64,
        /// The translation.
        maps: IdMaps,
    },
    /// The lazy ones in directories of this snapshot, where they answer requests for extended
    /// attributes. Their own mounts do not, if the layer has none: the kernel need not ask then, which
    /// every look-up by overlayfs would be slowed down by. But who compares snapshots (containerd's
    /// walking differ before 2.2) takes "not supported" for a failure.
    Compared { snapshot: u64 },
}

impl Lowers {
    /// The directory of a parent.
    pub(crate) fn place(&self, parent: &Link) -> Place {
        let layer = parent.id;
        match *self {
            Self::Remapped { snapshot, .. } => Place::Remapped { layer, snapshot },
            Self::Compared { snapshot } if parent.lazy.is_some() => {
                Place::Compared { layer, snapshot }
            }
            Self::Shared | Self::Compared { .. } => Place::Snapshot(layer),
        }
    }

    /// The mount of a parent, if it is lazy.
    pub(crate) fn mount(&self, parent: &Link) -> Option<LazyMount> {
        Some(LazyMount {
            place: self.place(parent),
            name: parent.name.clone(),
            lazy: parent.lazy.clone()?,
            view: View {
                id_maps: match self {
                    Self::Remapped { maps, .. } => Some(maps.clone()),
                    Self::Shared | Self::Compared { .. } => None,
                },
                answer_xattrs: matches!(self, Self::Compared { .. }),
            },
        })
    }
}

/// The views that exist for a comparison: their ids, and the names of their parents.
#[derive(Debug, Default)]
pub(crate) struct Comparisons(Mutex<BTreeMap<u64, String>>);

impl Comparisons {
    /// Whether a view is for a comparison, by its name: `<parent>-parent-view-<random>` and
    /// `<snapshot>-view-<random>` (containerd's rootfs/diff.go). Others are mounts of images.
    pub(crate) fn is_one(name: &str) -> bool {
        name.contains("-view-")
    }

    /// One was made on this parent, or is there since an earlier start.
    pub(crate) fn begin(&self, view: u64, parent: &str) {
        self.0.lock().insert(view, parent.to_owned());
    }

    /// A snapshot was removed.
    pub(crate) fn end(&self, snapshot: u64) {
        self.0.lock().remove(&snapshot);
    }

    /// Whether something on this parent is being compared with it.
    fn involve(&self, parent: &str) -> bool {
        self.0.lock().values().any(|other| other == parent)
    }
}

impl Inner {
    /// Where a snapshot finds its parents now. Blocking.
    pub(crate) fn lowers(&self, snapshot: &Snapshot) -> Result<Lowers, SnapshotterError> {
        let Snapshot { record, parents } = snapshot;
        let own = Lowers::Compared {
            snapshot: record.id,
        };
        if let Some(maps) = record.id_maps()? {
            return Ok(Lowers::Remapped {
                snapshot: record.id,
                maps,
            });
        }
        // Once it was compared it keeps them: it may be mounted.
        let compared = parents
            .iter()
            .any(|parent| parent.lazy.is_some() && self.is_made(own.place(parent)));
        Ok(if compared { own } else { Lowers::Shared })
    }

    /// Whether a place is there. Its `fs` is not looked at: that may be a mount of ours which nobody
    /// serves yet.
    fn is_made(&self, place: Place) -> bool {
        self.directories.snapshot(place).exists()
    }

    /// Whether an active snapshot is about to be compared with its parent: containerd asks for the view
    /// of the parent first, then for the mounts of the snapshot.
    pub(crate) fn is_compared(&self, record: &Record) -> bool {
        record.kind() == Kind::Active && self.comparisons.involve(&record.info.parent)
    }

    /// Makes a view that something is compared with, or nothing.
    pub(crate) async fn create_compared(
        self: &Arc<Self>,
        new: Creation,
        parents: Vec<Link>,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let reservation = self.reserve();
        let id = reservation.id;
        let lowers = self.make_comparable(id, &parents).await?;
        let made = self.blocking(move |inner| {
            let parent = new.parent.clone();
            let mounts = inner.create_on(new, &reservation, &lowers)?;
            inner.comparisons.begin(id, &parent);
            Ok(mounts)
        });
        let made = made.await;
        if made.is_err() {
            self.discard_apart(&Lowers::Compared { snapshot: id }, &parents)
                .await;
        }
        made
    }

    /// Mounts the lazy parents of a snapshot once more, to be compared, unless they are there. After a
    /// failure nothing of it is left.
    pub(crate) async fn make_comparable(
        self: &Arc<Self>,
        id: u64,
        parents: &[Link],
    ) -> Result<Lowers, SnapshotterError> {
        let lowers = Lowers::Compared { snapshot: id };
        let _one_at_a_time = self.repairs.lock(&format!("compared {id}")).await;
        let mounts = parents.iter().filter_map(|parent| lowers.mount(parent));
        let made = mounts.map(|mount| {
            let inner = Arc::clone(self);
            async move {
                if inner.is_made(mount.place) {
                    return Ok(());
                }
                inner.mount_apart(mount).await
            }
        });
        // Collected: the compiler cannot follow borrowing futures across a spawn.
        let made = stream::iter(made.collect::<Vec<_>>())
            .buffer_unordered(CONCURRENT_MOUNTS)
            .try_collect::<()>()
            .await;
        match made {
            Ok(()) => Ok(lowers),
            Err(error) => {
                self.discard_apart(&lowers, parents).await;
                Err(error)
            }
        }
    }

    /// Mounts a layer in a directory of its own that does not exist yet.
    pub(crate) async fn mount_apart(
        self: &Arc<Self>,
        mount: LazyMount,
    ) -> Result<(), SnapshotterError> {
        let place = mount.place;
        self.blocking(move |inner| inner.directories.create(place, false, None))
            .await?;
        let provider = Arc::clone(&self.provider);
        let request = mount.request(Purpose::SecondView, &self.directories);
        tokio::spawn(async move { provider.mount(request).await })
            .await
            .unwrap_or_else(|error| Err(LayerRefusal::failed(error)))
            .map_err(|refusal| SnapshotterError::LayerUnavailable {
                name: mount.name,
                source: ProviderError::new(self.directories.fs(place), refusal),
            })?;
        Ok(())
    }

    /// Unmounts and deletes what was made of these parents for a snapshot alone.
    pub(crate) async fn discard_apart(self: &Arc<Self>, lowers: &Lowers, parents: &[Link]) {
        for place in parents.iter().map(|parent| lowers.place(parent)) {
            if !matches!(place, Place::Snapshot(_)) {
                self.discard(place).await;
            }
        }
    }

    /// Unmounts and deletes a directory that is not needed after all.
    pub(crate) async fn discard(self: &Arc<Self>, place: Place) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_for_comparisons_are_told_by_the_names_that_containerd_gives_them() {
        for (name, is_one) in [
            ("default/7/sha256:ab-parent-view-123456-AbC_", true),
            ("default/7/sha256:ab-view-123456-AbC_", true),
            ("default/7/app", false),
            ("default/8//tmp/nerdctl-volumes-81", false),
        ] {
            assert_eq!(Comparisons::is_one(name), is_one, "{name}");
        }
        let comparisons = Comparisons::default();
        comparisons.begin(3, "base");
        assert!(comparisons.involve("base") && !comparisons.involve("other"));
        comparisons.end(3);
        assert!(!comparisons.involve("base"));
    }
}
