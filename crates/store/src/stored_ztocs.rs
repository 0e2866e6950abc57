//! The zTOCs of the stored layers, as artifacts to read: a pulled image's zTOCs are stored there and nowhere
//! else.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use soci_oci::Digest;

use crate::{LayerKey, StoreError};

/// The file in a layer's folder that holds the zTOC blob.
const ZTOC: &str = "ztoc";

/// A view of a layer store that another process may be using.
#[derive(Debug, Clone)]
pub struct StoredZtocs {
    layers: PathBuf,
}

impl StoredZtocs {
    /// A view of the layer store below the root folder `root`, which need not exist.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            layers: root.join("soci/layers"),
        }
    }

    /// Returns the zTOCs and the files that hold them. One that several layers have is listed once.
    #[must_use]
    pub fn list(&self) -> Vec<(Digest, PathBuf)> {
        let mut found: Vec<(Digest, PathBuf)> = fs::read_dir(&self.layers)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let key = LayerKey::from_folder_name(entry.file_name().to_str()?)?;
                let file = entry.path().join(ZTOC);
                file.is_file().then_some((key.ztoc, file))
            })
            .collect();
        found.sort();
        found.dedup_by_key(|(digest, _)| *digest);
        found
    }

    /// Returns the file that holds a zTOC.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        let mut all = self.list().into_iter();
        all.find(|(found, _)| found == digest).map(|(_, path)| path)
    }

    /// Reads a zTOC, its digest checked. `None`: no stored layer has it.
    ///
    /// # Errors
    /// The file cannot be read, or holds other bytes.
    pub fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let Some(path) = self.path(digest) else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(|error| StoreError::io("read", &path, error))?;
        if Digest::of(&bytes) != *digest {
            let damaged = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "its bytes do not have the digest of its name",
            );
            return Err(StoreError::io("read", &path, damaged));
        }
        Ok(Some(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ztocs_of_stored_layers_are_found_once_and_damaged_ones_refused() {
        let root = tempfile::tempdir().unwrap();
        let stored = StoredZtocs::below(root.path());
        assert_eq!(stored.list(), []);
        let (good, bad) = (Digest::of(b"good"), Digest::of(b"bad"));
        for (layer, ztoc) in [(b"one", good), (b"two", good), (b"six", bad)] {
            let key = LayerKey {
                layer: Digest::of(layer),
                ztoc,
            };
            let folder = root.path().join("soci/layers").join(key.folder_name());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(ZTOC), b"good").unwrap();
        }
        fs::create_dir(root.path().join("soci/layers/other")).unwrap();
        assert_eq!(stored.list().len(), 2);
        assert_eq!(stored.get(&good).unwrap().unwrap(), &b"good"[..]);
        assert!(stored.get(&bad).is_err());
        assert!(stored.get(&Digest::of(b"none")).unwrap().is_none());
    }
}
