//! What the installer changed on a node, so that it can be undone: at once when a step fails, and later
//! by `uninstall`.
//!
//! The state is a folder of the node. `state.json` lists the files that were written, with the digest of
//! what was written; `original/` has what was there before the first change of each. A file that was
//! changed by others since is recognised by its digest.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::Before;
use crate::error::NodeError;

/// The folder of the state on a node.
pub const STATE_FOLDER: &str = "/var/lib/soci-snapshotter-install";
const STATE: &str = "state.json";
const ORIGINALS: &str = "original";
/// Version of the format of the state.
const FORMAT: u32 = 1;

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// Path on the node.
    pub path: PathBuf,
    /// SHA-256 of what was written, in hex.
    pub sha256: String,
    /// Name of the copy of what was there before, in `original/`; `None` if there was nothing.
    pub original: Option<String>,
    /// Whether it belongs to containerd's configuration.
    pub containerd: bool,
    /// Whether others had changed it when it was written again, so that what was there before is not what
    /// it shall be.
    pub changed_since: bool,
}

/// The state of an installation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    /// Files in the order of their first change.
    pub files: Vec<Written>,
    /// What CRI was configured with before.
    pub before: Before,
    /// Whether CRI was handed back, while containers still use the snapshotter.
    pub handed_back: bool,
}

/// Content and permissions of a file.
type Kept = (Vec<u8>, u32);

/// The journal of a node.
#[derive(Debug)]
pub(crate) struct Journal {
    root: PathBuf,
    folder: PathBuf,
    /// The state; that of the disk after [`Journal::save`].
    pub state: State,
    /// Path, content and permissions before this run, in the order of the changes.
    undo: Vec<(PathBuf, Option<Kept>)>,
    /// Locked as long as the journal is open, so that one installer works at a time.
    _lock: std::fs::File,
}

impl Journal {
    /// Opens the journal of the node below `root`, and waits until no other process has it open.
    ///
    /// # Errors
    /// Its state is unreadable, or of a later version.
    pub(crate) fn open(root: &Path) -> Result<Self, NodeError> {
        let folder = below(root, Path::new(STATE_FOLDER));
        let path = folder.join(STATE);
        let parent = folder.parent().unwrap_or(root);
        std::fs::create_dir_all(parent).map_err(NodeError::file("make", parent))?;
        let lock = std::fs::File::open(parent).map_err(NodeError::file("open", parent))?;
        lock.lock().map_err(NodeError::file("lock", parent))?;
        let state = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| NodeError::file("read", &path)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(NodeError::file("read", &path)(error)),
        };
        if state.format > FORMAT {
            return Err(NodeError::Refused(format!(
                "cannot read {}: it has format {}, this version reads {FORMAT}: use the version that \
                 installed",
                path.display(),
                state.format
            )));
        }
        Ok(Self {
            root: root.to_owned(),
            folder,
            state,
            undo: Vec::new(),
            _lock: lock,
        })
    }

    /// Whether an installation is recorded.
    pub(crate) fn is_installed(&self) -> bool {
        !self.state.files.is_empty()
    }

    /// Writes a file of containerd's configuration if it has other bytes; returns whether it did. Its
    /// permissions stay.
    ///
    /// # Errors
    /// As [`Journal::write`].
    pub(crate) fn write_config(&mut self, path: &Path, text: &str) -> Result<bool, NodeError> {
        let mode = read(&below(&self.root, path))?.map_or(0o644, |(_, mode)| mode);
        self.write(path, text.as_bytes(), mode, true)
    }

    /// Writes a file if it has other bytes or permissions; returns whether it did.
    ///
    /// # Errors
    /// It cannot be written, or what was there cannot be kept.
    pub(crate) fn write(
        &mut self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        containerd: bool,
    ) -> Result<bool, NodeError> {
        let at = below(&self.root, path);
        let found = read(&at)?;
        let known = self.state.files.iter().position(|file| file.path == path);
        let same = found
            .as_ref()
            .is_some_and(|(old, old_mode)| old == bytes && *old_mode == mode);
        if same && known.is_some() {
            return Ok(false);
        }
        let sha256 = sha256(bytes);
        match known.and_then(|index| self.state.files.get_mut(index)) {
            Some(written) => {
                let found = found.as_ref().map(|(old, _)| self::sha256(old));
                written.changed_since |= found.is_some_and(|found| found != written.sha256);
                written.sha256 = sha256;
            }
            None => {
                let original = match &found {
                    Some((old, old_mode)) => Some(self.keep(path, old, *old_mode)?),
                    None => None,
                };
                self.state.files.push(Written {
                    path: path.to_owned(),
                    sha256,
                    original,
                    containerd,
                    changed_since: false,
                });
            }
        }
        // The state names a file before it is changed, so that a crash in between can be undone.
        self.save()?;
        self.undo.push((path.to_owned(), found));
        if !same {
            replace(&at, bytes, mode)?;
        }
        Ok(!same)
    }

    /// Puts a file back as it was before the first change. `otherwise` gives its new content if others have
    /// changed it since; without one it is left.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub(crate) fn restore(
        &mut self,
        written: &Written,
        otherwise: impl FnOnce(&str) -> Result<Option<String>, NodeError>,
    ) -> Result<bool, NodeError> {
        let at = below(&self.root, &written.path);
        let Some((now, mode)) = read(&at)? else {
            return Ok(false);
        };
        let new = if sha256(&now) == written.sha256 && !written.changed_since {
            match &written.original {
                Some(name) => read(&self.folder.join(ORIGINALS).join(name))?,
                None => None,
            }
        } else {
            let text = String::from_utf8_lossy(&now);
            match otherwise(&text)? {
                Some(text) => Some((text.into_bytes(), mode)),
                None => return Ok(false),
            }
        };
        self.undo.push((written.path.clone(), Some((now, mode))));
        put(&at, new.as_ref())?;
        Ok(true)
    }

    /// Writes the state.
    ///
    /// # Errors
    /// The folder is not writable.
    pub(crate) fn save(&mut self) -> Result<(), NodeError> {
        self.state.format = FORMAT;
        make_folder(&self.folder)?;
        let text = serde_json::to_vec_pretty(&self.state)
            .map_err(|error| NodeError::file("write", self.folder.join(STATE))(error.into()))?;
        replace(&self.folder.join(STATE), &text, 0o600)
    }

    /// Ends the part of this run that can be undone.
    pub(crate) fn settle(&mut self) {
        self.undo.clear();
    }

    /// Undoes what this run changed, last change first. `before` is the state that it began with.
    ///
    /// # Errors
    /// A file cannot be restored; the others are.
    pub(crate) fn roll_back(&mut self, before: State) -> Result<(), NodeError> {
        let mut first = Ok(());
        for (path, content) in self.undo.drain(..).rev() {
            let done = put(&below(&self.root, &path), content.as_ref());
            first = first.and(done);
        }
        self.state = before;
        if self.is_installed() {
            return first.and(self.save());
        }
        first.and(self.forget())
    }

    /// Removes the state with what it kept.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn forget(&mut self) -> Result<(), NodeError> {
        self.state = State::default();
        match soci_dirtree::remove_path(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NodeError::file("remove", &self.folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Keeps the content of a file that is about to be changed for the first time.
    fn keep(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<String, NodeError> {
        let folder = self.folder.join(ORIGINALS);
        make_folder(&folder)?;
        let number = self.state.files.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{number}-{name}");
        replace(&folder.join(&name), bytes, mode)?;
        Ok(name)
    }
}

/// Content and permissions of a file, if there is one.
fn read(path: &Path) -> Result<Option<Kept>, NodeError> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let metadata = path.metadata().map_err(NodeError::file("look at", path))?;
            Ok(Some((bytes, metadata.permissions().mode() & 0o7777)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NodeError::file("read", path)(error)),
    }
}

/// Writes a file, or removes it if it shall have no content.
fn put(path: &Path, content: Option<&Kept>) -> Result<(), NodeError> {
    match content {
        Some((bytes, mode)) => replace(path, bytes, *mode),
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NodeError::file("remove", path)(error))
            }
            _ => Ok(()),
        },
    }
}

/// Replaces a file in one step: readers see the old content or the new one, also after a crash. A symbolic
/// link keeps pointing to the file that is replaced.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), NodeError> {
    let failed = |error| NodeError::file("write", path)(error);
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::create_dir_all(folder).map_err(NodeError::file("make", folder))?;
    let unfinished = folder.join(format!(".{}.soci-new", name.to_string_lossy()));
    let write = || {
        let mut file = std::fs::File::create(&unfinished)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(failed)
}

fn make_folder(folder: &Path) -> Result<(), NodeError> {
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)))
        .map_err(NodeError::file("make", folder))
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn below(root: &Path, path: &Path) -> PathBuf {
    crate::config::below(root, path)
}
