//! Containers whose layers were lost under them: holder and server died, the layers were mounted anew, but
//! a container that ran meanwhile keeps the dead mounts of its start. Kept in a small file until the
//! container is started again (it asks for its mounts) or removed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotterError;
use crate::place::Place;
use crate::snapshotter::{Inner, Snapshotter};

const FILE: &str = "severed.json";

/// An active snapshot or view whose lower layers were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Severed {
    /// The snapshot's name (its key).
    pub name: String,
    /// When it was noticed, in seconds since 1970.
    pub since: u64,
}

/// All of them, by id.
pub(crate) struct SeveredSnapshots {
    path: PathBuf,
    by_id: Mutex<BTreeMap<u64, Severed>>,
}

impl SeveredSnapshots {
    /// Reads the file in the snapshotter's folder. One that cannot be read counts as empty.
    pub(crate) fn open(folder: &std::path::Path) -> Self {
        let path = folder.join(FILE);
        let by_id = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), error = %error, "a list of severed containers is lost");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self {
            path,
            by_id: Mutex::new(by_id),
        }
    }

    /// The container was started again, or its snapshot is gone.
    pub(crate) fn clear(&self, id: u64) {
        let mut by_id = self.by_id.lock();
        if by_id.remove(&id).is_some() {
            self.save(&by_id);
        }
    }

    fn add(&self, ids: Vec<(u64, String)>) {
        let since = std::time::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs();
        let mut by_id = self.by_id.lock();
        for (id, name) in ids {
            by_id.entry(id).or_insert(Severed { name, since });
        }
        self.save(&by_id);
    }

    fn save(&self, by_id: &BTreeMap<u64, Severed>) {
        if let Err(error) = self.try_save(by_id) {
            tracing::warn!(path = %self.path.display(), error = %error, "cannot note severed containers");
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

impl Snapshotter {
    /// The containers that have to be restarted because their layers were lost, by the id of their
    /// snapshot.
    ///
    /// # Errors
    /// If the metadata cannot be read, or the snapshotter is closed.
    pub async fn severed(&self) -> Result<Vec<(u64, Severed)>, SnapshotterError> {
        let _call = self.inner.enter()?;
        self.inner
            .blocking(|inner| {
                let mut by_id = inner.severed.by_id.lock().clone();
                if !by_id.is_empty() {
                    let known = inner.metadata.ids()?;
                    by_id.retain(|id, _| known.contains(id));
                }
                Ok(by_id.into_iter().collect())
            })
            .await
    }
}

impl Inner {
    /// Notes the containers on layers whose connections were lost.
    pub(crate) fn sever(&self, layers: &HashSet<Place>) -> Result<(), SnapshotterError> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut severed = Vec::new();
        for (record, parents) in self.metadata.mountable()? {
            let lost = |&layer: &u64| {
                let snapshot = record.id;
                layers.contains(&Place::Snapshot(layer))
                    || layers.contains(&Place::Remapped { layer, snapshot })
                    || layers.contains(&Place::Compared { layer, snapshot })
            };
            if parents.iter().any(lost) {
                severed.push((record.id, record.info.name));
            }
        }
        tracing::error!(
            layers = layers.len(),
            containers = severed.len(),
            "the connections of lazy layers were lost, because the holder and the daemon both ended: \
             containers that ran on them get errors and have to be restarted; `soci status` lists them"
        );
        for (_, name) in &severed {
            tracing::warn!(
                name,
                "the layers of a container were lost: it has to be restarted"
            );
        }
        self.severed.add(severed);
        Ok(())
    }
}
