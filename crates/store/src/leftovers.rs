//! What an interrupted past may have left in the layer store and beside it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::LayerKey;
use crate::atomic_file::UNFINISHED;
use crate::layer_store::REMOVED;

/// A file or folder below the root that may be unused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its path.
    pub path: PathBuf,
    /// Its kind.
    pub kind: LeftoverKind,
}

/// The kind of a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A stored layer. Whether anything uses it, the caller knows.
    Layer(LayerKey),
    /// A stored layer that was being deleted.
    Removed,
    /// A file that was being written.
    Unfinished,
    /// Something with a name that this program does not give.
    Unknown,
    /// A layer that was being unpacked.
    Unpacking,
    /// A cache of soci-snapshotter v0.15.
    V015,
}

impl LeftoverKind {
    /// Returns its stable name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Layer(_) => "layer",
            Self::Removed => "removed-layer",
            Self::Unfinished => "unfinished-file",
            Self::Unknown => "unknown",
            Self::Unpacking => "unpacking",
            Self::V015 => "v0.15-cache",
        }
    }
}

/// Lists what may be left below the root. While a daemon serves, what is being written now is not
/// listed.
///
/// # Errors
/// A folder cannot be read.
pub fn find(root: &Path, serving: bool) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    let mut add = |path: PathBuf, kind| found.push(Leftover { path, kind });
    let layers = root.join("soci/layers");
    for (name, path) in entries(&layers)? {
        match LayerKey::from_folder_name(&name) {
            Some(key) => add(path, LeftoverKind::Layer(key)),
            None if name == REMOVED => {
                for (_, path) in entries(&path)? {
                    add(path, LeftoverKind::Removed);
                }
            }
            None => add(path, LeftoverKind::Unknown),
        }
    }
    let v015 = root.join("soci/spancache");
    if v015.is_dir() {
        add(v015, LeftoverKind::V015);
    }
    if serving {
        return Ok(found);
    }
    for (_, path) in entries(&root.join("unpack"))? {
        add(path, LeftoverKind::Unpacking);
    }
    for folder in ["soci/images", "soci/profiles"] {
        for (name, path) in entries(&root.join(folder))? {
            if name.starts_with(UNFINISHED) {
                add(path, LeftoverKind::Unfinished);
            }
        }
    }
    for (name, folder) in entries(&layers)? {
        if LayerKey::from_folder_name(&name).is_some() {
            for (name, path) in entries(&folder)? {
                if name.starts_with(UNFINISHED) {
                    add(path, LeftoverKind::Unfinished);
                }
            }
        }
    }
    Ok(found)
}

/// The entries of a folder by name; none if it does not exist.
fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_left_is_listed_with_what_it_is() {
        let root = tempfile::tempdir().unwrap();
        let key = format!("{}-{}", "1".repeat(64), "2".repeat(64));
        for path in [
            format!("soci/layers/{key}/.unfinished-1-1"),
            "soci/layers/.removed/7/data".to_owned(),
            "soci/layers/junk/data".to_owned(),
            "soci/spancache/x".to_owned(),
            "soci/images/.unfinished-1-2".to_owned(),
            "soci/images/kept".to_owned(),
            "unpack/5/x".to_owned(),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let words = |serving| {
            let found = find(root.path(), serving).unwrap().into_iter();
            let mut words: Vec<_> = found.map(|left| left.kind.word()).collect();
            words.sort_unstable();
            words
        };
        let online = ["layer", "removed-layer", "unknown", "v0.15-cache"];
        assert_eq!(words(true), online);
        let offline = [
            "layer",
            "removed-layer",
            "unfinished-file",
            "unfinished-file",
            "unknown",
            "unpacking",
            "v0.15-cache",
        ];
        assert_eq!(words(false), offline);
        assert_eq!(find(&root.path().join("none"), false).unwrap(), []);
    }
}
