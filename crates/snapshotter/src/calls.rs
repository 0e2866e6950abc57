//! The calls that do what containerd's overlayfs snapshotter does: View, Mounts, Commit, Remove,
//! Stat, Update, Usage, Cleanup, and Prepare of anything but an image layer.

use std::sync::Arc;

use futures::future::try_join_all;

use crate::api::types::Mount;
use crate::api::v1::{Info, Kind};
use crate::disk_usage;
use crate::error::SnapshotterError;
use crate::labels::{self, Labels};
use crate::lowers::{Comparisons, Lowers};
use crate::metadata::{Commit, Link, NewSnapshot, Usage};
use crate::mounts::mounts;
use crate::remap::Remapped;
use crate::restore::LazyMount;
use crate::snapshotter::{Inner, Reservation, Snapshotter};

/// A snapshot to be, as a client asks for it.
pub(crate) struct Creation {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) labels: Labels,
}

/// Longer names are refused, as by containerd's database.
const MAX_NAME: usize = 32 << 10;

/// Refuses what no snapshot can be called. Everything else may: names are not paths.
pub(crate) fn check_name(name: &str) -> Result<(), SnapshotterError> {
    let reason = match name.len() {
        0 => "the name is empty",
        1..=MAX_NAME => return Ok(()),
        _ => "the name is longer than 32 KiB",
    };
    Err(SnapshotterError::InvalidName { reason })
}

impl Snapshotter {
    /// Makes a read-only snapshot of `parent`, or of nothing if that is empty.
    pub(crate) async fn view(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        self.inner.create(Kind::View, key, parent, labels).await
    }

    /// The mounts of an active snapshot or a view.
    pub(crate) async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotterError> {
        let _call = self.inner.enter()?;
        let name = key.clone();
        let (snapshot, mut lowers) = self
            .inner
            .blocking(move |inner| {
                let snapshot = inner.metadata.snapshot(&key)?;
                let lowers = inner.lowers(&snapshot)?;
                Ok((snapshot, lowers))
            })
            .await?;
        let kind = snapshot.record.kind();
        if !matches!(kind, Kind::Active | Kind::View) {
            return Err(SnapshotterError::NotMountable { name });
        }
        let id = snapshot.record.id;
        if lowers == Lowers::Shared && self.inner.is_compared(&snapshot.record) {
            let inner = Arc::clone(&self.inner);
            let parents = snapshot.parents.clone();
            let made = async move { inner.make_comparable(id, &parents).await };
            lowers = tokio::spawn(made).await.map_err(SnapshotterError::task)??;
        }
        self.inner.check_layers(&lowers, &snapshot.parents).await?;
        // Whoever asks is about to start the container, on the mounts of today.
        self.inner.severed.clear(id);
        Ok(self.inner.mounts(kind, id, &snapshot.parents, &lowers))
    }

    /// Turns the active snapshot `key` into the committed one `name`.
    pub(crate) async fn commit(
        &self,
        name: String,
        key: String,
        labels: Labels,
    ) -> Result<(), SnapshotterError> {
        let call = self.inner.enter()?;
        check_name(&name)?;
        let labels = labels::check(labels)?;
        self.inner
            .blocking(move |inner| {
                let _call = call;
                let record = inner.metadata.get(&key)?;
                let usage = match record.kind() {
                    Kind::Active => disk_usage::measure(&inner.directories.fs(record.id))?,
                    // Refused below, with the errors in containerd's order.
                    _ => Usage::default(),
                };
                soci_faults::point("commit-measured");
                inner.metadata.commit(Commit {
                    id: record.id,
                    key: &key,
                    name: &name,
                    labels,
                    usage,
                })?;
                soci_faults::point("commit-committed");
                Ok(())
            })
            .await
    }

    /// Forgets a snapshot at once; its directory goes at the next sweep.
    pub(crate) async fn remove(&self, key: String) -> Result<(), SnapshotterError> {
        let call = self.inner.enter()?;
        self.inner
            .blocking(move |inner| {
                let _call = call;
                let (record, _) = inner.metadata.remove(&key)?;
                inner.comparisons.end(record.id);
                soci_faults::point("remove-forgotten");
                inner.removed.notify_one();
                Ok(())
            })
            .await
    }

    /// What is known of a snapshot.
    pub(crate) async fn stat(&self, key: String) -> Result<Info, SnapshotterError> {
        let _call = self.inner.enter()?;
        self.inner
            .blocking(move |inner| Ok(inner.metadata.get(&key)?.info))
            .await
    }

    /// Changes the labels that `mask` names, or all.
    pub(crate) async fn update(
        &self,
        info: Info,
        mask: Vec<String>,
    ) -> Result<Info, SnapshotterError> {
        let call = self.inner.enter()?;
        let labels = labels::check(info.labels)?;
        self.inner
            .blocking(move |inner| {
                let _call = call;
                inner.metadata.update(&info.name, &labels, &mask)
            })
            .await
    }

    /// Disk space of one snapshot without its parents.
    pub(crate) async fn usage(&self, key: String) -> Result<Usage, SnapshotterError> {
        let _call = self.inner.enter()?;
        self.inner
            .blocking(move |inner| {
                let record = inner.metadata.get(&key)?;
                match record.kind() {
                    Kind::Active => disk_usage::measure(&inner.directories.fs(record.id)),
                    // Of a lazy snapshot: zero, and its mount is not walked.
                    _ => Ok(record.usage),
                }
            })
            .await
    }

    /// Deletes the directories of removed snapshots now.
    pub(crate) async fn cleanup(&self) -> Result<(), SnapshotterError> {
        let call = self.inner.enter()?;
        let inner = Arc::clone(&self.inner);
        let sweep = tokio::spawn(async move {
            let _call = call;
            inner.sweep().await
        });
        sweep.await.map_err(SnapshotterError::task)?
    }
}

impl Inner {
    /// Makes an active snapshot or a view that is no image layer.
    pub(crate) async fn create(
        self: &Arc<Self>,
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let call = self.enter()?;
        check_name(&key)?;
        let labels = labels::check(labels)?;
        let maps = match kind {
            Kind::Active => labels::id_maps(&labels)?,
            _ => None,
        };
        let (key, parent, parents) = self
            .blocking(move |inner| {
                let parents = inner.metadata.before_insert(&key, &parent)?;
                Ok((key, parent, parents))
            })
            .await?;
        // Before anything is made: a container must not be left on a layer that is not there.
        self.check_layers(&Lowers::Shared, &parents).await?;
        if let Some(maps) = maps {
            let new = Remapped {
                key,
                parent,
                labels,
                maps,
            };
            let inner = Arc::clone(self);
            // A task of its own: if the client goes away, this comes to a consistent end.
            let made = tokio::spawn(async move {
                let _call = call;
                inner.create_remapped(new, parents).await
            });
            return made.await.map_err(SnapshotterError::task)?;
        }
        let new = Creation {
            kind,
            key,
            parent,
            labels,
        };
        if kind == Kind::View && Comparisons::is_one(&new.key) {
            let inner = Arc::clone(self);
            let made = tokio::spawn(async move {
                let _call = call;
                inner.create_compared(new, parents).await
            });
            return made.await.map_err(SnapshotterError::task)?;
        }
        self.blocking(move |inner| {
            let _call = call;
            inner.create_on(new, &inner.reserve(), &Lowers::Shared)
        })
        .await
    }

    /// Adds a snapshot, and gives its mounts. Blocking.
    pub(crate) fn create_on(
        &self,
        new: Creation,
        reservation: &Reservation,
        lowers: &Lowers,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let Creation {
            kind,
            key,
            parent,
            labels,
        } = new;
        let new = NewSnapshot {
            id: reservation.id,
            name: &key,
            kind,
            parent: &parent,
            labels,
            fallback: None,
            id_maps: None,
        };
        let parents = self.insert(new, reservation)?;
        soci_faults::point("create-committed");
        Ok(self.mounts(kind, reservation.id, &parents, lowers))
    }

    /// Adds a snapshot and makes its directories, or neither. Blocking.
    fn insert(
        &self,
        new: NewSnapshot<'_>,
        reservation: &Reservation,
    ) -> Result<Vec<Link>, SnapshotterError> {
        let id = reservation.id;
        let with_work = new.kind == Kind::Active;
        let mut made = false;
        let inserted = self.metadata.insert(new, |parents| {
            let owner = self.directories.inherited_owner(parents)?;
            self.directories.create(id, with_work, owner)?;
            made = true;
            soci_faults::point("create-directory-made");
            Ok(())
        });
        if inserted.is_err() && made {
            self.discard_directory(id);
        }
        inserted
    }

    /// Adds a snapshot whose directories exist already. Blocking.
    pub(crate) fn insert_made(&self, new: NewSnapshot<'_>) -> Result<Vec<Link>, SnapshotterError> {
        self.metadata.insert(new, |_| Ok(()))
    }

    /// Deletes the directory of a snapshot that was not made after all. Blocking.
    pub(crate) fn discard_directory(&self, id: u64) {
        if let Err(error) = self.directories.remove(id) {
            // The sweep will try again.
            tracing::warn!(%error, "cannot remove the directory of a failed snapshot");
        }
    }

    /// The mounts of a snapshot with these parents.
    pub(crate) fn mounts(
        &self,
        kind: Kind,
        id: u64,
        parents: &[Link],
        lowers: &Lowers,
    ) -> Vec<Mount> {
        mounts(&self.directories, &self.overlay, kind, id, parents, lowers)
    }

    /// Asks the provider whether the lazy ones among the parents of a snapshot can be served.
    pub(crate) async fn check_layers(
        self: &Arc<Self>,
        lowers: &Lowers,
        parents: &[Link],
    ) -> Result<(), SnapshotterError> {
        let mounts: Vec<LazyMount> = parents
            .iter()
            .filter_map(|link| lowers.mount(link))
            .collect();
        let checks = mounts.iter().map(|mount| async move {
            let mountpoint = self.directories.fs(mount.place);
            let check = async {
                self.repair(mount).await?;
                self.provider.check(&mountpoint, &mount.lazy.labels).await
            };
            check
                .await
                .map_err(|source| SnapshotterError::LayerUnavailable {
                    name: mount.name.clone(),
                    source,
                })
        });
        try_join_all(checks).await?;
        Ok(())
    }
}
