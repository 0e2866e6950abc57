//! Which indexes are in use: by mounted layers, and by layers that are being mounted.
//!
//! A Prepare that finds an index in memory in the same instant in which the last layer of the image is
//! removed would mount a layer whose index is not stored any more: the next start would fetch it from
//! the registry. A use begins when the index is found, and an index is removed only if it has no
//! use.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use soci_oci::Digest;
use soci_task::KeyedLocks;
use tokio::sync::OwnedMutexGuard;

/// An index, and the namespace of its images if each has a content store of its own.
pub(crate) type IndexKey = (String, Digest);

/// The uses of indexes.
#[derive(Default)]
pub(crate) struct IndexUses {
    users: Mutex<HashMap<IndexKey, Users>>,
    /// Held while an index is removed from memory and disk, and when a use begins.
    removing: KeyedLocks<Digest>,
    /// Held while containerd looks an index up or releases it.
    in_containerd: KeyedLocks<IndexKey>,
    /// Number of removals that have begun.
    removals: AtomicU64,
}

#[derive(Default)]
struct Users {
    count: usize,
    /// Its removal was wanted while it was in use.
    unwanted: bool,
}

/// One use of an index. Dropping it ends the use.
pub(crate) struct IndexUse {
    uses: Arc<IndexUses>,
    key: IndexKey,
}

impl IndexUse {
    /// The index.
    pub(crate) const fn index(&self) -> Digest {
        self.key.1
    }
}

impl Drop for IndexUse {
    fn drop(&mut self) {
        let mut users = self.uses.users.lock();
        if let Some(of_index) = users.get_mut(&self.key) {
            of_index.count = of_index.count.saturating_sub(1);
            if of_index.count == 0 && !of_index.unwanted {
                users.remove(&self.key);
            }
        }
    }
}

impl IndexUses {
    /// Begins a use, after a removal of the index that is in progress.
    pub(crate) async fn begin(self: &Arc<Self>, namespace: &str, index: Digest) -> IndexUse {
        let key = (namespace.to_owned(), index);
        let _alone = self.removing.lock(index).await;
        self.users.lock().entry(key.clone()).or_default().count += 1;
        IndexUse {
            uses: self.clone(),
            key,
        }
    }

    /// Makes others that request an index from containerd wait until the guard is dropped. containerd may
    /// take long: a use of an index that is in memory or on disk begins without this lock. It is
    /// acquired before that of [`Self::begin_removal`].
    pub(crate) async fn lock_in_containerd(
        &self,
        namespace: &str,
        index: Digest,
    ) -> OwnedMutexGuard<()> {
        self.in_containerd.lock((namespace.to_owned(), index)).await
    }

    /// Keeps uses of an index from beginning until the guard is dropped.
    pub(crate) async fn begin_removal(&self, index: Digest) -> OwnedMutexGuard<()> {
        self.removing.lock(index).await
    }

    /// Whether an index is in use in this namespace, or in any. If it is, its removal is wanted when
    /// the use ends without another one.
    pub(crate) fn outlives_removal(&self, namespace: Option<&str>, index: Digest) -> bool {
        let mut users = self.users.lock();
        let mut in_use = false;
        users.retain(|(space, digest), of_index| {
            if *digest != index || namespace.is_some_and(|namespace| space != namespace) {
                return true;
            }
            of_index.unwanted = of_index.count > 0;
            in_use |= of_index.unwanted;
            of_index.unwanted
        });
        in_use
    }

    /// Counts a removal, before anything is removed.
    pub(crate) fn count_removal(&self) {
        self.removals.fetch_add(1, Ordering::AcqRel);
    }

    /// Number of removals that have begun.
    pub(crate) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Lists indexes whose removal was wanted while a layer was being mounted that never was.
    pub(crate) fn abandoned(&self) -> Vec<IndexKey> {
        let users = self.users.lock();
        let abandoned = users.iter().filter(|(_, of_index)| of_index.count == 0);
        abandoned.map(|(key, _)| key.clone()).collect()
    }
}
