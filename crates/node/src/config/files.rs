//! The files that containerd's configuration consists of, and which of them to change.

use std::io;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, InlineTable, Item};

use super::{Before, ConfigError, ContainerdRelease, Edit, Snapshotter};

/// Name of the drop-in: imported files count in the order of their names, and this one is the last.
const DROP_IN: &str = "zz-soci-snapshotter.toml";
const COMMENT: &str = "# Written by `soci node install`, removed by `soci node uninstall`.\n";

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Path on the node.
    pub path: PathBuf,
    /// Content; `None` if there is no such file.
    pub text: Option<String>,
}

impl ConfigFile {
    fn read(root: &Path, path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(below(root, path)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// The content; nothing if there is no such file.
    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The main file and those that it imports, without the drop-in of this program.
#[derive(Debug)]
pub struct ConfigFiles {
    main: ConfigFile,
    imported: Vec<ConfigFile>,
    /// Folders of which every `*.toml` is imported.
    folders: Vec<PathBuf>,
}

/// A file and its new content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Path on the node.
    pub path: PathBuf,
    /// New content.
    pub text: String,
}

impl ConfigFiles {
    /// Reads the file at `main` and what it imports. `root` is the folder that the node's paths are below.
    ///
    /// # Errors
    /// A file cannot be read. A missing main file is none, and counts as empty.
    pub fn load(root: &Path, main: &Path) -> io::Result<Self> {
        let main = ConfigFile::read(root, main)?;
        let mut files = Self {
            imported: Vec::new(),
            folders: Vec::new(),
            main,
        };
        for pattern in files.patterns() {
            // containerd takes relative patterns from the folder of the file.
            let base = files.main.path.parent().unwrap_or(Path::new("/"));
            let pattern = base.join(pattern);
            let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            if name == "*.toml" {
                files.folders.push(folder.to_owned());
            }
            for path in matches(root, folder, &name)? {
                if path.file_name().is_none_or(|name| name != DROP_IN) {
                    files.imported.push(ConfigFile::read(root, &path)?);
                }
            }
        }
        Ok(files)
    }

    /// The patterns of `imports`. A file that is not TOML has none; reading it again reports that.
    fn patterns(&self) -> Vec<String> {
        let Ok(document) = self.main.text().parse::<DocumentMut>() else {
            return Vec::new();
        };
        let imports = document.get("imports").and_then(Item::as_array);
        let imports = imports.into_iter().flat_map(|array| array.iter());
        imports
            .filter_map(|pattern| pattern.as_str().map(str::to_owned))
            .collect()
    }

    /// All files, in the order in which containerd lets later ones win.
    fn all(&self) -> impl DoubleEndedIterator<Item = &ConfigFile> {
        std::iter::once(&self.main).chain(&self.imported)
    }

    /// Plans the configuration that makes the snapshotter CRI's own, and returns it with the values
    /// that CRI's keys have without it.
    ///
    /// containerd 2.x with `imports = ["DIR/*.toml"]` gets a drop-in. Otherwise the main file is changed,
    /// and, where it is another one, the last file with a section of the CRI plugin, because that section
    /// is the one that counts.
    ///
    /// # Errors
    /// A file is not TOML, of another version of the format, or has something else than tables.
    pub fn plan(
        &self,
        release: ContainerdRelease,
        snapshotter: &Snapshotter,
    ) -> Result<(Vec<Target>, Before), ConfigError> {
        let main = Edit::of(&self.main.name(), self.main.text(), release)?;
        let version = main.version();
        let mut edits = vec![main];
        for file in &self.imported {
            edits.push(Edit::of_imported(
                &file.name(),
                file.text(),
                version,
                release,
            )?);
        }
        let of_cri = edits.iter().rposition(Edit::has_cri).unwrap_or(0);
        let before = edits.get(of_cri).map(Edit::before).unwrap_or_default();
        let unpack: Vec<InlineTable> = edits
            .iter()
            .rev()
            .map(Edit::unpack)
            .find(|entries| !entries.is_empty())
            .unwrap_or_default();
        let has_runtimes = edits.iter().any(Edit::has_runtimes);

        if let Some(folder) = self.folders.last().filter(|_| release.merges_plugins()) {
            let path = folder.join(DROP_IN);
            let mut edit = Edit::new(&path.display().to_string(), version, COMMENT);
            edit.add_plugin(snapshotter, release)?;
            edit.select(release, has_runtimes)?;
            edit.let_transfer_unpack(&unpack)?;
            let text = edit.text();
            return Ok((vec![Target { path, text }], before));
        }
        for (index, edit) in edits.iter_mut().enumerate() {
            if index == 0 {
                edit.add_plugin(snapshotter, release)?;
                if release.merges_plugins() {
                    edit.let_transfer_unpack(&unpack)?;
                }
            }
            if index == of_cri {
                edit.select(release, has_runtimes)?;
            }
        }
        let changed = self.all().zip(&edits).filter_map(|(file, edit)| {
            let text = edit.text();
            (file.text.as_deref() != Some(text.as_str())).then(|| Target {
                path: file.path.clone(),
                text,
            })
        });
        Ok((changed.collect(), before))
    }
}

/// The existing files of a pattern of containerd, sorted. Only the last component may have `*`.
fn matches(root: &Path, folder: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    if !pattern.contains('*') {
        let path = folder.join(pattern);
        let exists = below(root, &path).exists();
        return Ok(exists.then_some(path).into_iter().collect());
    }
    let entries = match std::fs::read_dir(below(root, folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| is_like(name, pattern)) {
            found.push(folder.join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a name matches a pattern with `*`.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|end| {
            let ends = (0..=end.len()).filter_map(|at| end.get(at..));
            ends.into_iter().any(|end| is_like(end, rest))
        }),
    }
}

/// A path of the node, below `root`.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
