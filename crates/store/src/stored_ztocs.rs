//! The zTOCs of the stored layers, as artifacts to read: a pulled image's zTOCs are stored there and nowhere
//! else.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use soci_oci::Digest;
use soci_ztoc::EntryPoints;

use crate::layer_folder::look_at;
use crate::{LayerKey, StoreError};

/// The file in a layer's folder that holds the zTOC blob.
const ZTOC: &str = "ztoc";

/// Largest zTOC that is read for its checkpoints, in bytes: it is in memory while it is parsed.
const MOST_FOR_CHECKPOINTS: u64 = 32 << 20;

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

    /// Returns the checkpoints of a layer. The windows stay in the file. `None`: no stored layer has a
    /// zTOC for it that can be read, or only a very large one.
    #[must_use]
    pub fn entry_points(&self, layer: &Digest) -> Option<EntryPoints> {
        let folders = fs::read_dir(&self.layers).ok()?;
        let mut keys = folders.filter_map(|entry| {
            let key = LayerKey::from_folder_name(entry.ok()?.file_name().to_str()?)?;
            (key.layer == *layer).then_some(key)
        });
        keys.find_map(|key| {
            let folder = self.layers.join(key.folder_name());
            let file = File::open(folder.join(ZTOC)).ok()?;
            if file.metadata().ok()?.len() > MOST_FOR_CHECKPOINTS {
                return None;
            }
            let spans = look_at(&folder, key).ok()?.spans;
            Some(EntryPoints::new(spans, move |range| {
                let length = range.end.checked_sub(range.start)?;
                let mut bytes = vec![0; usize::try_from(length).ok()?];
                file.read_exact_at(&mut bytes, range.start).ok()?;
                Some(bytes)
            }))
        })
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

    #[test]
    fn the_checkpoints_of_a_layer_are_found_by_its_digest_and_never_taken_from_a_damaged_ztoc() {
        let root = tempfile::tempdir().unwrap();
        let stored = StoredZtocs::below(root.path());
        let packed = {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            tar.append_data(&mut header, "file", &b"bytes"[..]).unwrap();
            let tar = tar.into_inner().unwrap();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, &tar).unwrap();
            gzip.finish().unwrap()
        };
        let options = soci_ztoc::BuildOptions::default();
        let built = soci_ztoc::build(&packed[..], soci_ztoc::Compression::Gzip, options).unwrap();
        let blob = built.ztoc.encode();
        let layer = Digest::of(&packed);
        assert!(stored.entry_points(&layer).is_none());
        let store = |ztoc: Digest, blob: &[u8]| {
            let key = LayerKey { layer, ztoc };
            let folder = root.path().join("soci/layers").join(key.folder_name());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(ZTOC), blob).unwrap();
        };
        store(Digest::of(b"another"), &blob);
        assert!(stored.entry_points(&layer).is_none());
        store(Digest::of(&blob), &blob);
        assert!(stored.entry_points(&layer).is_some());
        assert!(stored.entry_points(&Digest::of(b"other")).is_none());
    }
}
