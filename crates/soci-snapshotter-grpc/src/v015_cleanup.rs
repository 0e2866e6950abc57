//! Removal of v0.15's other data below the root: it rebuilds that when missing, and we
//! have no use for it. Runs once the snapshots have been imported; the snapshotter's database stays.

use std::fs;
use std::io;
use std::path::Path;

/// Removes v0.15's layer metadata and span cache, if this root was v0.15's.
pub(crate) fn remove_caches(root: &Path) {
    if !root.join("snapshotter/metadata.db").exists() {
        return;
    }
    let single = root.join("metadata.db");
    log(&single, fs::remove_file(&single));
    let multiple = root.join("metadata");
    for entry in fs::read_dir(&multiple).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|end| end == "db") {
            log(&entry.path(), fs::remove_file(entry.path()));
        }
    }
    // Only if it is empty: other files are not v0.15's.
    let _ = fs::remove_dir(&multiple);
    let spans = root.join("soci/spancache");
    log(&spans, soci_dirtree::remove_path(&spans));
}

fn log(path: &Path, removed: io::Result<()>) {
    match removed {
        Ok(()) => {
            tracing::info!(path = %path.display(), "removed what soci-snapshotter v0.15 left")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot remove what soci-snapshotter v0.15 left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn left(root: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(root).unwrap();
                    left.push(name.display().to_string());
                }
            }
        }
        left.sort();
        left
    }

    #[test]
    fn layer_metadata_of_v0_15_is_removed_and_its_snapshots_and_artifacts_are_kept() {
        let kept = [
            "artifacts.db",
            "content/index.json",
            "snapshotter/metadata.db",
        ];
        let gone = ["metadata.db", "metadata/sha256:1.db", "soci/spancache/1/2"];
        let root = root(&[&kept[..], &gone[..]].concat());
        remove_caches(root.path());
        assert_eq!(left(root.path()), kept);
        assert!(!root.path().join("metadata").exists());
    }

    #[test]
    fn a_root_that_was_never_v0_15s_is_left_alone() {
        let files = ["metadata.db", "metadata/1.db", "soci/spancache/1"];
        let root = root(&files);
        remove_caches(root.path());
        assert_eq!(left(root.path()), files);
    }
}
