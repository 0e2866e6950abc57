//! Checks, before a hand-over, that this program can serve what another one serves now. Changes
//! nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::{LayerData, LayerStatus, ReadDone, ReadError};
use soci_fuse::{ContentIdentity, FuseError, Journal, Pool};
use soci_holder::HeldFd;
use soci_layerfs::{LayerMountOptions, MountError, Tree, TreeError, TreeOptions};
use soci_oci::Digest;
use soci_store::{LayerKey, LayerStore, StoreError};

use crate::inherited::{ConnectionNote, InheritedConnections, InheritedError};

/// Time within which our own mount must answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Why this program cannot take over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// A note about a connection cannot be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The stored layer of a mount cannot be read.
    #[error("cannot open the layer at {}: {source}", mountpoint.display())]
    Store {
        /// The mount point.
        mountpoint: PathBuf,
        /// The cause.
        source: Box<StoreError>,
    },
    /// The file tree of a mounted layer cannot be built.
    #[error("cannot build the file tree of the layer at {}: {source}", mountpoint.display())]
    Tree {
        /// The mount point.
        mountpoint: PathBuf,
        /// The cause.
        source: TreeError,
    },
    /// This program numbers the files of a mounted layer differently.
    #[error(
        "the mount at {} shows {found:?}, and this program would show {expected:?}: keep the old \
         program, or drain the containers on it",
        mountpoint.display()
    )]
    OtherContent {
        /// The mount point.
        mountpoint: PathBuf,
        /// The content that this program would show.
        expected: Box<ContentIdentity>,
        /// The content that is mounted.
        found: Box<ContentIdentity>,
    },
    /// A test mount cannot be made.
    #[error("test mount failed: {0}")]
    Mount(#[from] MountError),
    /// The threads that serve the test mount cannot be started.
    #[error("test mount failed: {0}")]
    Fuse(#[from] FuseError),
    /// The test mount cannot be read.
    #[error("test mount at {} cannot be read", mountpoint.display())]
    Unreadable {
        /// The mount point.
        mountpoint: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Checks that every connection among `held` can be served from the layers stored in `layers`, and
/// that this program can serve a mount at `scratch`, an empty directory. Returns the number of
/// connections.
///
/// # Errors
/// A connection or the test mount cannot be served. Nothing is mounted at `scratch` afterwards.
pub fn preflight(
    layers: &Path,
    held: Vec<HeldFd>,
    scratch: &Path,
) -> Result<usize, PreflightError> {
    let connections = InheritedConnections::new(held)?.take_rest();
    let mut shown = None;
    for held in &connections {
        let tree = same_tree(layers, &held.note)?;
        shown = Some((tree, held.note.layer()));
    }
    let (tree, layer) = match shown {
        Some(shown) => shown,
        None => {
            let empty = Tree::build(&[], 0, TreeOptions::default());
            let empty = empty.map_err(|source| PreflightError::Tree {
                mountpoint: scratch.to_owned(),
                source,
            })?;
            (Arc::new(empty), Digest::of(b""))
        }
    };
    serve_test_mount(tree, layer, scratch)?;
    Ok(connections.len())
}

/// Builds the file tree of a mounted layer, and checks that it has the same numbers there.
fn same_tree(layers: &Path, note: &ConnectionNote) -> Result<Arc<Tree>, PreflightError> {
    let mountpoint = || note.facts.mountpoint.clone();
    let ztoc = note.ztoc();
    let key = LayerKey {
        layer: ztoc.layer_digest,
        ztoc: ztoc.descriptor.digest,
    };
    let index = LayerStore::look_at(layers, key).map_err(|source| PreflightError::Store {
        mountpoint: mountpoint(),
        source: Box::new(source),
    })?;
    let view = note.view();
    let options = TreeOptions {
        overlay_xattr: view.mark,
        ..TreeOptions::default()
    };
    let tree = Tree::of_index(&index, options).map_err(|source| PreflightError::Tree {
        mountpoint: mountpoint(),
        source,
    })?;
    let tree = Arc::new(tree);
    let expected = soci_layerfs::content_identity(&tree, &key.layer);
    if expected == note.facts.content {
        return Ok(tree);
    }
    Err(PreflightError::OtherContent {
        mountpoint: mountpoint(),
        expected: Box::new(expected),
        found: Box::new(note.facts.content.clone()),
    })
}

/// Mounts a tree at `scratch` and lists its root.
fn serve_test_mount(tree: Arc<Tree>, layer: Digest, scratch: &Path) -> Result<(), PreflightError> {
    let pool = Pool::new(1, Journal::create()?)?;
    let data = Arc::new(NoData(layer));
    let options = LayerMountOptions::default();
    let mounted = soci_layerfs::mount_layer(&pool, tree, data, scratch, options)?;
    let (sender, listed) = std::sync::mpsc::channel();
    let path = scratch.to_owned();
    // If the mount does not answer, its end frees the thread.
    std::thread::spawn(move || {
        let count = std::fs::read_dir(path)
            .and_then(|mut entries| entries.try_fold(0, |count, entry| entry.map(|_| count + 1)));
        // The receiver is gone after the time limit.
        let _: Result<(), _> = sender.send(count);
    });
    let listed: io::Result<usize> = listed.recv_timeout(ANSWER_LIMIT).unwrap_or_else(|_| {
        let seconds = ANSWER_LIMIT.as_secs();
        Err(io::Error::other(format!("no answer within {seconds} s")))
    });
    let unmounted = mounted.unmount();
    mounted.abort();
    pool.shutdown();
    listed.map_err(|source| PreflightError::Unreadable {
        mountpoint: scratch.to_owned(),
        source,
    })?;
    Ok(unmounted?)
}

/// A layer without content: only its names and attributes are read.
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
