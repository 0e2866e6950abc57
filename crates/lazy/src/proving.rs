//! Could this program serve what another one serves now? Everything is looked at, nothing is changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::{LayerData, LayerStatus, ReadDone, ReadError};
use soci_fuse::{ContentIdentity, FuseError, Journal, Pool};
use soci_holder::HeldFd;
use soci_layerfs::{MountError, MountOptions, Tree, TreeError, TreeOptions};
use soci_oci::Digest;
use soci_store::{LayerKey, LayerStore, StoreError};

use crate::held::{ConnectionNote, HeldConnections, HeldError};

/// How long a mount of our own may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why this program cannot take over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvingError {
    /// The notes about the connections are not understood.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// A layer that is mounted cannot be read.
    #[error("the layer at {} cannot be opened: {source}", mountpoint.display())]
    Store {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// Why not.
        source: Box<StoreError>,
    },
    /// A layer that is mounted cannot be shown.
    #[error("the layer at {} cannot be shown: {source}", mountpoint.display())]
    Tree {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// Why not.
        source: TreeError,
    },
    /// This program would show a mounted layer with other node numbers.
    #[error(
        "the mount at {} shows {found:?}, and this program would show {expected:?}: the old program has to \
         go on, or the containers on it have to be drained",
        mountpoint.display()
    )]
    OtherContent {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What this program would show.
        expected: Box<ContentIdentity>,
        /// What is mounted.
        found: Box<ContentIdentity>,
    },
    /// A mount of our own does not work.
    #[error("a mount of its own does not work: {0}")]
    Mount(#[from] MountError),
    /// The same, for the threads that serve it.
    #[error("a mount of its own does not work: {0}")]
    Fuse(#[from] FuseError),
    /// The same, for reading it.
    #[error("a mount of its own at {} cannot be read: {reason}", mountpoint.display())]
    Unreadable {
        /// Where it was.
        mountpoint: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// Shows that every connection among `kept` could be served on, from the layers stored in `layers`, and that
/// this program can serve a mount, at `scratch`, an empty directory. Returns how many connections there are.
///
/// # Errors
/// If it could not. Nothing is mounted at `scratch` then.
pub fn prove(layers: &Path, kept: Vec<HeldFd>, scratch: &Path) -> Result<usize, ProvingError> {
    let connections = HeldConnections::new(kept)?.take_rest();
    let mut shown = None;
    for held in &connections {
        let tree = same_tree(layers, &held.note)?;
        shown = Some((tree, held.note.layer()));
    }
    let (tree, layer) = match shown {
        Some(shown) => shown,
        None => {
            let empty = Tree::build(&[], 0, TreeOptions::default());
            let empty = empty.map_err(|source| ProvingError::Tree {
                mountpoint: scratch.to_owned(),
                source,
            })?;
            (Arc::new(empty), Digest::of(b""))
        }
    };
    serve_for_a_moment(tree, layer, scratch)?;
    Ok(connections.len())
}

/// The file tree of a mounted layer, with the numbers that it has there.
fn same_tree(layers: &Path, note: &ConnectionNote) -> Result<Arc<Tree>, ProvingError> {
    let mountpoint = || note.facts.mountpoint.clone();
    let ztoc = note.ztoc();
    let key = LayerKey {
        layer: ztoc.layer_digest,
        ztoc: ztoc.descriptor.digest,
    };
    let (toc, size) = LayerStore::look_at(layers, key).map_err(|source| ProvingError::Store {
        mountpoint: mountpoint(),
        source: Box::new(source),
    })?;
    let look = note.look();
    let options = TreeOptions {
        overlay_xattr: look.mark,
        ..TreeOptions::default()
    };
    let tree = Tree::build(&toc, size, options).map_err(|source| ProvingError::Tree {
        mountpoint: mountpoint(),
        source,
    })?;
    let tree = look.at(&Arc::new(tree));
    let expected = soci_layerfs::content_identity(&tree, &key.layer);
    if expected == note.facts.content {
        return Ok(tree);
    }
    Err(ProvingError::OtherContent {
        mountpoint: mountpoint(),
        expected: Box::new(expected),
        found: Box::new(note.facts.content.clone()),
    })
}

/// Mounts a tree where nobody looks, and lists its root.
fn serve_for_a_moment(tree: Arc<Tree>, layer: Digest, scratch: &Path) -> Result<(), ProvingError> {
    let pool = Pool::new(1, Journal::create()?)?;
    let data = Arc::new(NoData(layer));
    let options = MountOptions::default();
    let mounted = soci_layerfs::mount_layer(&pool, tree, data, scratch, options)?;
    let (sender, listed) = std::sync::mpsc::channel();
    let path = scratch.to_owned();
    // Should the mount not answer, the thread is freed by its end.
    std::thread::spawn(move || {
        let count = std::fs::read_dir(path)
            .and_then(|mut entries| entries.try_fold(0, |count, entry| entry.map(|_| count + 1)));
        // Nobody listens after the time limit.
        let _: Result<(), _> = sender.send(count);
    });
    let listed: Result<usize, String> = match listed.recv_timeout(PATIENCE) {
        Ok(Ok(count)) => Ok(count),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let unmounted = mounted.unmount();
    mounted.abort();
    pool.shutdown();
    listed.map_err(|reason| ProvingError::Unreadable {
        mountpoint: scratch.to_owned(),
        reason,
    })?;
    Ok(unmounted?)
}

/// A layer without content: only names and attributes are asked of it.
struct NoData(Digest);

impl LayerData for NoData {
    fn try_read(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, ReadError> {
        Err(ReadError::Closed)
    }

    fn read(&self, _offset: u64, _len: usize, done: ReadDone) {
        done(Err(ReadError::Closed));
    }

    fn status(&self) -> LayerStatus {
        LayerStatus {
            digest: self.0,
            size: 0,
            fetched_size: 0,
            error: None,
        }
    }
}
