//! Containers whose layers were lost: holder and server died, the layers were mounted again, but a
//! running container keeps the dead mounts of its start. They are recorded in a small file until the
//! container is started again (its mounts are requested) or removed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::metadata::{Metadata, MetadataError};
use crate::snapshot_dir::SnapshotDir;

const FILE: &str = "severed.json";

/// An active snapshot or view whose lower layers were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Severed {
    /// The snapshot's name (its key).
    pub name: String,
    /// Time of the loss, in seconds since 1970.
    pub since: u64,
}

/// All snapshots whose lower layers were lost, by id.
pub(crate) struct LostMounts {
    path: PathBuf,
    by_id: Mutex<BTreeMap<u64, Severed>>,
}

impl LostMounts {
    /// Reads the file in the snapshotter's directory. A malformed file counts as empty. Blocking.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let by_id = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "ignoring a malformed list of severed containers");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self {
            path,
            by_id: Mutex::new(by_id),
        }
    }

    /// Whether the layers of this snapshot were lost. Blocking: the file may be being written.
    pub(crate) fn contains(&self, id: u64) -> bool {
        self.by_id.lock().contains_key(&id)
    }

    /// Removes a snapshot: its container was started again. Blocking.
    pub(crate) fn clear(&self, id: u64) {
        let mut by_id = self.by_id.lock();
        if by_id.remove(&id).is_some() {
            self.save(&by_id);
        }
    }

    /// Returns the snapshots that still exist. Blocking.
    pub(crate) fn existing(
        &self,
        metadata: &Metadata,
    ) -> Result<Vec<(u64, Severed)>, MetadataError> {
        let mut by_id = self.by_id.lock().clone();
        if !by_id.is_empty() {
            let known = metadata.ids()?;
            by_id.retain(|id, _| known.contains(id));
        }
        Ok(by_id.into_iter().collect())
    }

    /// Records the snapshots on top of layers whose connections were lost. Blocking.
    pub(crate) fn record(
        &self,
        metadata: &Metadata,
        layers: &HashSet<SnapshotDir>,
    ) -> Result<(), MetadataError> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut severed = Vec::new();
        for (record, parents) in metadata.mountable()? {
            let lost = |&layer: &u64| {
                let snapshot = record.id;
                layers.contains(&SnapshotDir::Snapshot(layer))
                    || layers.contains(&SnapshotDir::IdMapped { layer, snapshot })
                    || layers.contains(&SnapshotDir::Compared { layer, snapshot })
            };
            if parents.iter().any(lost) {
                severed.push((record.id, record.info.name));
            }
        }
        tracing::error!(
            layers = layers.len(),
            containers = severed.len(),
            "the connections of lazy layers were lost, because the holder and the daemon both ended: \
             containers that ran on them get errors and must be restarted; `soci status` lists them"
        );
        for (_, name) in &severed {
            tracing::warn!(name, "the layers of a container were lost: restart it");
        }
        self.add(severed);
        Ok(())
    }

    fn add(&self, snapshots: Vec<(u64, String)>) {
        let since = std::time::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs();
        let mut by_id = self.by_id.lock();
        for (id, name) in snapshots {
            by_id.entry(id).or_insert(Severed { name, since });
        }
        self.save(&by_id);
    }

    fn save(&self, by_id: &BTreeMap<u64, Severed>) {
        if let Err(error) = self.try_save(by_id) {
            tracing::warn!(path = %self.path.display(), %error, "cannot record severed containers");
        }
    }

    fn try_save(&self, by_id: &BTreeMap<u64, Severed>) -> io::Result<()> {
        if by_id.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let unfinished = self.path.with_extension("json.new");
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(by_id)?)?;
        file.sync_all()?;
        fs::rename(unfinished, &self.path)
    }
}
