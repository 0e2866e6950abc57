//! The artifact database of `soci`: which SOCI indexes, zTOCs and prefetch artifacts were made on this machine,
//! of what and when. The artifacts themselves are in a content store; this is what `soci index list`
//! and `soci ztoc list` print, and where `create` finds the zTOCs that it can use again.
//!
//! One file, `<root>/artifacts.redb`, whose keys are the digests of the artifacts. It is opened for
//! each operation and closed after it, so that several `soci` processes can work at once, however long
//! each of them runs; an operation that finds the file in use waits for at most [`PATIENCE`]. All
//! operations block on the disk: asynchronous callers use `spawn_blocking`. Each is one
//! transaction: after a crash it is done or not done.
//!
//! v0.15 has `<root>/artifacts.db`, a bbolt file. The first operation that finds one takes its
//! entries over, in the transaction that makes the new database; the old file is only read, and kept.

mod database;
mod entry;
mod old;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{ReadableDatabase as _, ReadableTable as _};
use soci_oci::Digest;

use crate::StoreError;

pub use entry::{Artifact, ArtifactKind, IndexedImage};

/// How long an operation waits for another process that uses the database.
pub const PATIENCE: Duration = Duration::from_secs(10);

const FILE_NAME: &str = "artifacts.redb";
const OLD_FILE_NAME: &str = "artifacts.db";

/// The artifact database below a root folder. Holds nothing open.
#[derive(Debug, Clone)]
pub struct ArtifactDb {
    path: PathBuf,
    old: PathBuf,
    patience: Duration,
}

impl ArtifactDb {
    /// The database of this root folder (`soci --root`), which need not exist yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            path: root.join(FILE_NAME),
            old: root.join(OLD_FILE_NAME),
            patience: PATIENCE,
        }
    }

    /// Adds entries; one with a digest that is known replaces what was known.
    ///
    /// # Errors
    /// The database cannot be written, or is in use for too long.
    pub fn add(&self, artifacts: &[Artifact]) -> Result<(), StoreError> {
        self.write(|table| {
            for artifact in artifacts {
                let digest = artifact.digest.to_string();
                table.insert(digest.as_str(), entry::encode(artifact).as_slice())?;
            }
            Ok(())
        })
    }

    /// Returns the entry of a digest, if there is one.
    ///
    /// # Errors
    /// The database cannot be read, or is in use for too long.
    pub fn get(&self, digest: &Digest) -> Result<Option<Artifact>, StoreError> {
        if self.is_absent() {
            return Ok(None);
        }
        let database = self.open()?;
        let attempt = || -> Result<_, redb::Error> {
            let table = database.begin_read()?.open_table(database::ARTIFACTS)?;
            let entry = table.get(digest.to_string().as_str())?;
            Ok(entry.map(|bytes| bytes.value().to_vec()))
        };
        match attempt().map_err(|error| self.failed(error))? {
            Some(bytes) => self.decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Lists all entries, in the order of their digests.
    ///
    /// # Errors
    /// The database cannot be read, or is in use for too long.
    pub fn list(&self) -> Result<Vec<Artifact>, StoreError> {
        if self.is_absent() {
            return Ok(Vec::new());
        }
        let database = self.open()?;
        let attempt = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(database::ARTIFACTS)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                all.push(entry?.1.value().to_vec());
            }
            Ok(all)
        };
        let entries = attempt().map_err(|error| self.failed(error))?;
        entries.iter().map(|bytes| self.decode(bytes)).collect()
    }

    /// Returns a zTOC of this layer with this span size in bytes, to be used again; the newest of several.
    ///
    /// # Errors
    /// As [`ArtifactDb::list`].
    pub fn ztoc_of(&self, layer: &Digest, span_size: u64) -> Result<Option<Artifact>, StoreError> {
        let mut all = self.list()?;
        all.retain(|artifact| {
            artifact.kind == ArtifactKind::Ztoc
                && artifact.original_digest == *layer
                && artifact.span_size == span_size
        });
        Ok(all.into_iter().max_by_key(|artifact| artifact.created_at))
    }

    /// Removes entries, and returns those that existed.
    ///
    /// # Errors
    /// The database cannot be written, or is in use for too long.
    pub fn remove(&self, digests: &[Digest]) -> Result<Vec<Artifact>, StoreError> {
        if self.is_absent() {
            return Ok(Vec::new());
        }
        let removed = self.write(|table| {
            let mut removed = Vec::new();
            for digest in digests {
                if let Some(bytes) = table.remove(digest.to_string().as_str())? {
                    removed.push(bytes.value().to_vec());
                }
            }
            Ok(removed)
        })?;
        removed.iter().map(|bytes| self.decode(bytes)).collect()
    }

    /// Replaces all entries with the content of a store (`soci rebuild-db`). One
    /// whose digest was known keeps its time of creation. Works although an old or damaged entry, or
    /// v0.15's database, cannot be read. Returns the numbers of removed and new entries.
    ///
    /// # Errors
    /// The database cannot be written, or is in use for too long.
    pub fn rebuild(&self, found: &[Artifact]) -> Result<Rebuilt, StoreError> {
        let database = match self.open() {
            Err(error @ StoreError::OldArtifacts { .. }) => {
                tracing::warn!(%error, "rebuilding the artifact database without it");
                self.open_without_old()?
            }
            opened => opened?,
        };
        self.change(&database, |table| {
            let mut known = BTreeMap::new();
            for entry in table.iter()? {
                let (digest, bytes) = entry?;
                let created = entry::decode(bytes.value()).map(|artifact| artifact.created_at);
                known.insert(digest.value().to_owned(), created.ok());
            }
            table.retain(|_, _| false)?;
            let mut rebuilt = Rebuilt::default();
            for artifact in found {
                let digest = artifact.digest.to_string();
                let mut artifact = artifact.clone();
                match known.remove(&digest) {
                    Some(Some(created)) => artifact.created_at = created,
                    Some(None) => {}
                    None => rebuilt.added = rebuilt.added.saturating_add(1),
                }
                table.insert(digest.as_str(), entry::encode(&artifact).as_slice())?;
            }
            // Entries of `found` that name one digest twice were new only once.
            rebuilt.removed = known.len();
            Ok(rebuilt)
        })
    }

    /// Neither a database nor one to be taken over: nothing is made to read nothing.
    fn is_absent(&self) -> bool {
        !self.path.exists() && !self.old.exists()
    }

    fn decode(&self, bytes: &[u8]) -> Result<Artifact, StoreError> {
        entry::decode(bytes).map_err(|error| StoreError::ArtifactEntry {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }
}

/// The changes that [`ArtifactDb::rebuild`] made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Entries whose artifact is not in the content store any more.
    pub removed: usize,
    /// Artifacts that had no entry.
    pub added: usize,
}

#[cfg(test)]
mod tests;
