//! Applying a layer's tar to a directory by the rules with which containerd unpacks a layer onto
//! overlayfs (pkg/archive, `applyNaive` with `OverlayConvertWhiteout`), entry by entry. The crate
//! `layerfs` follows the same rules for lazy layers.

mod create;
mod directory;
mod finish;
pub(crate) mod lower;
pub(crate) mod lower_directory;
mod metadata;
mod walk;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use soci_layer::OverlayXattr;
use soci_oci::{Digest, Hasher};
use soci_ztoc::{FileMetadata, TarPart, TarStream};

use crate::ApplyError;
use finish::{Pending, WHITEOUT, Whiteout};
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
/// The tar is damaged, or an entry cannot be made. The content of `root` is then undefined.
pub fn apply(
    mut tar: impl Read,
    root: &Path,
    options: &ApplyOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Digest, ApplyError> {
    let mut applier = Applier {
        walker: Walker::open(root, &options.lower)?,
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
                self.pending.whiteouts.push(Whiteout {
                    name: hidden.to_vec(),
                    directory: parent.id.clone(),
                    uid: entry.uid,
                    gid: entry.gid,
                });
                return Ok(());
            }
            // Other entries may be hard links to a file of AUFS: it is removed at the end.
            _ => self.pending.reserve(&parent.id.path, base),
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

    fn finish(self, root: &Path) -> Result<(), ApplyError> {
        self.pending.finish(&self.walker)?;
        self.walker.sync(root)
    }
}
