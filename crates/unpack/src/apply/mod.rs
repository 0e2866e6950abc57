//! Applying a layer's tar to a directory by the rules with which containerd unpacks a layer onto
//! overlayfs (pkg/archive, `applyNaive` with `OverlayConvertWhiteout`), entry by entry. The crate
//! `layerfs` follows the same rules for lazy layers.

mod create;
mod directory;
mod file_writers;
mod finish;
mod implied;
pub(crate) mod limits;
pub(crate) mod lower_directory;
mod metadata;
mod names;
pub(crate) mod settle;
mod walk;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use soci_layer::{LowerLayer, OverlayXattr};
use soci_oci::{Digest, Hasher};
use soci_ztoc::{FileMetadata, TarPart, TarStream};

use crate::ApplyError;
use crate::flush::Flusher;
use create::OpenFile;
use file_writers::FileWriters;
use finish::{Pending, WHITEOUT};
use limits::{Output, UnpackLimits, check_path, check_target};
use metadata::Creation;
use settle::ImpliedDirectories;
use walk::Walker;

/// Size of the buffer for uncompressed data, in bytes.
const CHUNK: usize = 256 << 10;
/// Prefix of the files that AUFS keeps for itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How a layer is applied.
#[derive(Default)]
pub struct ApplyOptions {
    /// The namespace of overlayfs's extended attributes.
    pub overlay_xattr: OverlayXattr,
    /// The layers below, nearest first. A directory without an entry of its own gets the attributes
    /// that it has there.
    pub lower: Vec<Box<dyn LowerLayer>>,
    /// What unpacking may take.
    pub limits: UnpackLimits,
}

/// Applies an uncompressed tar to the empty directory `root`, and returns the digest of the tar.
///
/// `root` itself keeps its owner and mode. Everything is on disk when this returns. `cancelled` is
/// polled between reads.
///
/// No entry leads out of `root`: symbolic links on the way are followed as if `root` were `/`, never
/// by the kernel. No other process may use `root` during the call.
///
/// # Errors
/// The tar is damaged, an entry cannot be made, or a limit is exceeded. The content of `root` is then
/// undefined.
pub fn apply(
    mut tar: impl Read,
    root: &Path,
    options: &ApplyOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Digest, ApplyError> {
    let mut application = Application::begin(root, options, cancelled)?;
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let bytes = match tar.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => chunk.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(ApplyError::Decompress(error)),
        };
        hasher.update(bytes);
        application.write(bytes)?;
    }
    application.complete()?.sync()?;
    Ok(hasher.finish())
}

/// A tar that is being applied to a directory, as its bytes come.
pub(crate) struct Application<'a> {
    path: &'a Path,
    /// Open from the start: the kernel reports failures of writing back to it that come after that.
    root: File,
    output: Output,
    applier: Applier<'a>,
    stream: TarStream,
    /// Writes back what was applied so far.
    pub(crate) flushing: Flusher,
}

/// A tar that was applied.
pub(crate) struct Applied {
    path: PathBuf,
    root: File,
    flushing: Flusher,
    pub(crate) implied: ImpliedDirectories,
    /// Bytes of the tar.
    pub(crate) size: u64,
}

impl<'a> Application<'a> {
    /// Begins, with nothing applied.
    pub(crate) fn begin(
        root: &'a Path,
        options: &'a ApplyOptions,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Result<Self, ApplyError> {
        let opened = File::open(root).map_err(|source| ApplyError::Root {
            path: root.to_owned(),
            action: "open it",
            source,
        })?;
        let mut walker = Walker::open(root, &options.lower, options.limits.meter())?;
        if !walker.is_empty(root)? {
            walker.names.incomplete();
        }
        let creation = Creation::below(walker.directory(), options.overlay_xattr);
        Ok(Self {
            path: root,
            root: opened,
            output: Output::new(options.limits),
            applier: Applier {
                walker,
                cancelled,
                overlay_xattr: options.overlay_xattr,
                creation,
                files: FileWriters::default(),
                pending: Pending::default(),
                open: None,
            },
            stream: TarStream::new(),
            flushing: Flusher::new(),
        })
    }

    /// Applies the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        if (self.applier.cancelled)() {
            return Err(ApplyError::Cancelled);
        }
        let applier = &mut self.applier;
        self.output.add(bytes.len(), applier.walker.directory())?;
        self.stream.write(bytes, |part| match part {
            TarPart::Entry(entry) => applier.entry(*entry),
            TarPart::Content(bytes) => applier.content(bytes),
        })
    }

    /// Does what must wait for the last entry.
    pub(crate) fn complete(self) -> Result<Applied, ApplyError> {
        self.stream.finish()?;
        let size = self.output.bytes();
        let implied = self.applier.finish(self.path)?;
        Ok(Applied {
            path: self.path.to_owned(),
            root: self.root,
            flushing: self.flushing,
            implied,
            size,
        })
    }

    /// The directory.
    pub(crate) const fn root(&self) -> &File {
        &self.root
    }
}

fn not_durable(path: &Path, source: std::io::Error) -> ApplyError {
    ApplyError::Root {
        path: path.to_owned(),
        action: "write it to disk",
        source,
    }
}

impl Applied {
    /// Waits until everything is on disk.
    pub(crate) fn sync(&mut self) -> Result<(), ApplyError> {
        let flushed = self.flushing.finish();
        flushed
            .and_then(|()| Ok(rustix::fs::syncfs(&self.root)?))
            .map_err(|error| not_durable(&self.path, error))
    }
}

/// A layer that is being applied.
struct Applier<'a> {
    walker: Walker<'a>,
    cancelled: &'a dyn Fn() -> bool,
    overlay_xattr: OverlayXattr,
    creation: Creation,
    /// Writes small files.
    files: FileWriters,
    /// Work that waits for the last entry.
    pending: Pending,
    /// The file whose content is being read.
    open: Option<OpenFile>,
}

impl Applier<'_> {
    fn entry(&mut self, entry: FileMetadata) -> Result<(), ApplyError> {
        // Content that follows is ignored unless this entry opens a file.
        self.open = None;
        if (self.cancelled)() {
            return Err(ApplyError::Cancelled);
        }
        check_path(&entry.name)?;
        check_target(&entry.linkname, &entry.name)?;
        let Some((parent_path, base)) = soci_ztoc::tar_path::split(&entry.name) else {
            // containerd ignores the root's entry.
            return Ok(());
        };
        let parent = self.walker.parent(parent_path, &entry.name)?;
        if self.walker.implied_inherits {
            self.creation.is_uncertain();
        }
        if base == OPAQUE {
            return self.mark_opaque(&parent, &entry);
        }
        match base.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => return Ok(()),
            Some(hidden) if !base.starts_with(WHITEOUT_META) => {
                let owner = (entry.uid, entry.gid);
                let meter = &mut self.walker.meter;
                return Ok(self.pending.whiteout(&parent, hidden, owner, meter)?);
            }
            // Other entries may be hard links to a file of AUFS: it is removed at the end.
            Some(_) => self.pending.reserve(),
            None => {}
        }
        let base = base.to_vec();
        self.create(&parent, &base, entry)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.write(bytes)?;
        if open.left == 0
            && let Some(open) = self.open.take()
        {
            self.close(open)?;
        }
        Ok(())
    }

    fn finish(mut self, root: &Path) -> Result<ImpliedDirectories, ApplyError> {
        if self.walker.implied_reserved {
            self.pending.reserve();
        }
        self.files.wait()?;
        self.pending.finish(root)?;
        Ok(ImpliedDirectories(self.walker.implied.into_paths()))
    }
}
