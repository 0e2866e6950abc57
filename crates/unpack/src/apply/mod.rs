//! Applying a layer's tar to a directory by the rules with which containerd unpacks a layer onto
//! overlayfs (pkg/archive, `applyNaive` with `OverlayConvertWhiteout`), entry by entry. The crate
//! `layerfs` follows the same rules for lazy layers.

mod create;
mod directory;
mod finish;
pub(crate) mod limits;
pub(crate) mod lower;
pub(crate) mod lower_directory;
mod metadata;
mod walk;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use soci_layer::OverlayXattr;
use soci_meter::Meter;
use soci_oci::{Digest, Hasher};
use soci_ztoc::{FileMetadata, TarPart, TarStream};

use crate::ApplyError;
use finish::{Pending, WHITEOUT};
use limits::{Output, UnpackLimits, check_path, check_target};
use lower::LowerLayer;
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
    tar: impl Read,
    root: &Path,
    options: &ApplyOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Digest, ApplyError> {
    apply_metered(tar, root, options, options.limits.meter(), cancelled)
}

/// As [`apply`], with a meter that may hold memory for the tar already.
pub(crate) fn apply_metered(
    mut tar: impl Read,
    root: &Path,
    options: &ApplyOptions,
    meter: Meter,
    cancelled: &dyn Fn() -> bool,
) -> Result<Digest, ApplyError> {
    let mut output = Output::new(options.limits);
    let mut applier = Applier {
        walker: Walker::open(root, &options.lower, meter)?,
        cancelled,
        overlay_xattr: options.overlay_xattr,
        pending: Pending::default(),
        open: None,
    };
    let mut stream = TarStream::new();
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        if cancelled() {
            return Err(ApplyError::Cancelled);
        }
        let bytes = match tar.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => chunk.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(ApplyError::Decompress(error)),
        };
        output.add(bytes.len(), applier.walker.directory())?;
        hasher.update(bytes);
        stream.write(bytes, |part| match part {
            TarPart::Entry(entry) => applier.entry(*entry),
            TarPart::Content(bytes) => applier.content(bytes),
        })?;
    }
    stream.finish()?;
    applier.finish(root)?;
    Ok(hasher.finish())
}

/// A layer that is being applied.
struct Applier<'a> {
    walker: Walker<'a>,
    cancelled: &'a dyn Fn() -> bool,
    overlay_xattr: OverlayXattr,
    /// Work that waits for the last entry.
    pending: Pending,
    /// The file whose content is being read.
    open: Option<OpenFile>,
}

struct OpenFile {
    file: File,
    entry: FileMetadata,
    left: u64,
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
            self.close(&open)?;
        }
        Ok(())
    }

    fn finish(mut self, root: &Path) -> Result<(), ApplyError> {
        if self.walker.implied_reserved {
            self.pending.reserve();
        }
        self.pending.finish(root)?;
        self.walker.sync(root)
    }
}
