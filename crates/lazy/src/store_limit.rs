//! Keeps the layer store within its limits: which layers are in use, and whether what is stored of
//! them can be fetched again, which their sources confirm before they are removed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::{LayerUses, UnpackedSize};
use soci_registry::{BlobSource as _, Deadline};
use soci_store::{LayerKey, StoredLayer, Trimmed};
use tokio::time::Instant;

use crate::mount_table::MountTable;
use crate::open_layer::OpenLayer;
use crate::store_work::store_work;

/// Time between two looks whether too much is stored.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a source that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Time limit for the answer of a source.
const ANSWER: Duration = Duration::from_secs(10);

/// What the limits of the store need to know.
#[derive(Default)]
pub(crate) struct StoreLimit {
    /// It is known which layers are in use.
    known: AtomicBool,
    /// When sources were asked last.
    asked: Mutex<HashMap<LayerKey, Instant>>,
}

impl MountTable {
    /// Notes which layers clients use.
    pub(crate) fn note_uses(&self, uses: &LayerUses) {
        let mut layers = HashMap::<LayerKey, (Arc<StoredLayer>, bool)>::new();
        for (mountpoint, mount) in self.mounts.lock().iter() {
            let stored = mount.layer.lease.layer().data.stored();
            let (_, in_use) = layers
                .entry(mount.key())
                .or_insert_with(|| (stored.clone(), false));
            *in_use |= uses.in_use.contains(mountpoint);
        }
        for (stored, in_use) in layers.into_values() {
            stored.standing().set_in_use(in_use);
        }
        self.sweeper.store.set_elsewhere(uses.unpacked_bytes);
        self.store_limit.known.store(true, Ordering::Relaxed);
    }

    /// Notes that a client is about to use the layer mounted at `mountpoint`.
    pub(crate) fn note_use(&self, mountpoint: &Path) {
        if let Some(mount) = self.mounts.lock().get(mountpoint) {
            let stored = mount.layer.lease.layer().data.stored();
            stored.standing().set_in_use(true);
        }
    }

    /// Returns what is stored for the layer at `mountpoint`; nothing if another mount of the same
    /// data has it. `None`: no layer is mounted there.
    pub(crate) fn disk_usage(&self, mountpoint: &Path) -> Option<UnpackedSize> {
        let stored = {
            let mounts = self.mounts.lock();
            let mount = mounts.get(mountpoint)?;
            let same = mounts
                .iter()
                .filter(|(_, other)| other.key() == mount.key());
            // Of `snapshots/9/fs` and `snapshots/10/fs` the older one.
            let first = same
                .map(|(path, _)| path.as_os_str())
                .min_by_key(|path| (path.len(), *path));
            if first != Some(mountpoint.as_os_str()) {
                return Some(UnpackedSize {
                    inodes: 0,
                    bytes: 0,
                });
            }
            mount.layer.lease.layer().data.stored().clone()
        };
        match stored.disk_usage() {
            Ok((bytes, inodes)) => Some(UnpackedSize { inodes, bytes }),
            Err(error) => {
                tracing::warn!(layer = %stored.digest(), error = %error, "cannot measure a stored layer");
                None
            }
        }
    }

    /// Evicts what is stored of an unmounted layer that still has readers, if its source can bring
    /// back what they read: the space must not wait for them. Returns when to try again.
    pub(crate) async fn release(&self, key: LayerKey, layer: &OpenLayer) -> Option<Duration> {
        if self.mounts.lock().values().any(|mount| mount.key() == key) {
            return None;
        }
        if !ask(layer).await {
            tracing::info!(
                layer = %key.layer,
                "a removed layer has readers, and its registry does not answer: its data stays"
            );
            return Some(ASK_AGAIN);
        }
        let stored = layer.data.stored().clone();
        stored.standing().set_in_use(false);
        match store_work(move || stored.release()).await {
            Ok(bytes) => {
                tracing::info!(layer = %key.layer, bytes, "freed the data of a removed layer that has readers");
            }
            Err(error) => {
                let error = soci_errors::chain(&error);
                tracing::warn!(layer = %key.layer, error, "cannot free the data of a removed layer");
            }
        }
        None
    }
}

/// Asks the source of a layer for a byte.
async fn ask(layer: &OpenLayer) -> bool {
    // Boxed: a request to a registry is a large future.
    let read = Box::pin(layer.sources.read_range(0..1, Deadline::after(ANSWER)));
    let answered = tokio::time::timeout(ANSWER, read).await;
    let answered = matches!(answered, Ok(Ok(_)));
    layer.data.stored().standing().note_source(answered);
    answered
}

/// Looks from time to time whether too much is stored. Returns with the table.
pub(crate) async fn run(table: Weak<MountTable>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(table) = table.upgrade() else { return };
        if !table.store_limit.known.load(Ordering::Relaxed) {
            continue;
        }
        let trimmed = trim(&table).await;
        if trimmed.excess > 0 && prove(&table, &trimmed).await {
            let _ = trim(&table).await;
        }
    }
}

async fn trim(table: &MountTable) -> Trimmed {
    let store = table.sweeper.store.clone();
    let trimmed = soci_task::run(move || store.trim()).await;
    let trimmed = trimmed.unwrap_or_default();
    if trimmed.freed > 0 {
        tracing::info!(
            bytes = trimmed.freed,
            excess = trimmed.excess,
            "evicted layer data to keep the limits of the store"
        );
    }
    trimmed
}

/// Asks the sources of layers whether what is stored of them could be fetched again. Returns whether
/// any answered.
async fn prove(table: &MountTable, trimmed: &Trimmed) -> bool {
    let keys: Vec<_> = trimmed.unproven.iter().map(|layer| layer.key()).collect();
    let mut answered = false;
    for layer in table.open_layers() {
        let key = layer.data.stored().key();
        let due = {
            let mut asked = table.store_limit.asked.lock();
            asked.retain(|_, at| at.elapsed() < ASK_AGAIN);
            keys.contains(&key) && !asked.contains_key(&key)
        };
        if due {
            table.store_limit.asked.lock().insert(key, Instant::now());
            answered |= ask(&layer).await;
        }
    }
    answered
}
