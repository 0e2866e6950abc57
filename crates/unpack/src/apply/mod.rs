//! Applying a layer's tar to a directory by the rules with which containerd unpacks a layer onto
//! overlayfs (pkg/archive, `applyNaive` with `OverlayConvertWhiteout`), entry by entry. The crate
//! `layerfs` follows the same rules for lazy layers.

mod create;
mod finish;
pub(crate) mod lower;
mod metadata;
mod walk;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use soci_oci::{Digest, Hasher};
use soci_ztoc::{FileMetadata, TarPart, TarStream};

use crate::ApplyError;
use finish::{Pending, Whiteout};
use lower::LowerLayer;
use soci_layer::OverlayXattr;
use walk::{Directory, Walker};

/// How much uncompressed data is handled at once.
const CHUNK: usize = 256 << 10;
const WHITEOUT: &[u8] = b".wh.";
/// AUFS keeps files of its own under such names.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How a layer is applied.
#[derive(Default)]
pub struct ApplyOptions {
    /// Where overlayfs looks for its marks.
    pub overlay_xattr: OverlayXattr,
    /// The layers below, nearest first: a directory that only the names of others imply gets the
    /// attributes that it has there.
    pub lower: Vec<Box<dyn LowerLayer>>,
}

/// Applies the uncompressed tar that `tar` gives to the empty directory `root`, and returns the
/// digest of all that was read. `root` itself keeps its owner and mode. What is written is on
/// disk when this returns. `cancelled` is asked now and then.
///
/// No entry leads out of `root`: symbolic links on the way are followed as if `root` were `/`, never
/// by the kernel. `root` must be nobody else's business meanwhile.
///
/// # Errors
/// The tar is damaged, or an entry cannot be made. `root` then holds anything.
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
    /// What has to wait for the end.
    pending: Pending,
    /// The file whose content is coming.
    open: Option<OpenFile>,
}

struct OpenFile {
    file: File,
    entry: FileMetadata,
    left: u64,
}

impl Applier<'_> {
    fn entry(&mut self, entry: FileMetadata) -> Result<(), ApplyError> {
        // Content that comes next is nobody's, unless a file is opened here.
        self.open = None;
        let Some((parent_path, base)) = soci_ztoc::tar_path::split(&entry.name) else {
            // containerd ignores what is said about the root.
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
                    place: parent.place.clone(),
                    uid: entry.uid,
                    gid: entry.gid,
                });
                return Ok(());
            }
            // AUFS's own: others of the layer may be hard links to it, so it goes in the end only.
            _ => self.pending.reserve(&parent.place.path, base),
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

/// A directory of the layer.
type Parent = Arc<Directory>;

fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// An entry's failure.
fn failed<E: Into<std::io::Error>>(
    name: &[u8],
    action: &'static str,
) -> impl FnOnce(E) -> ApplyError {
    let name = printable(name.get(..name.len().min(4096)).unwrap_or_default());
    move |source| ApplyError::Entry {
        name,
        action,
        source: source.into(),
    }
}
