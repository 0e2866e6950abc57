//! The attributes of directories that a lazy layer only implies: looked up in the layers below when
//! the layer is mounted first, and kept beside its mount point. A layer under two different parents
//! has two mount points, and other attributes at each.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_layer::{LayerRefusal, LayerRequest, LowerLayer, OverlayXattr, Purpose};
use soci_layerfs::{Cancelled, ImpliedDirectories, ImpliedError, Tree};
use soci_meter::OverLimit;
use soci_oci::Digest;
use soci_store::{StoreError, write_file};

use crate::tree_memory::{TreeMemory, TreePermit};

/// Name of the file in the directory of the layer's snapshot. A layer without it was mounted by an
/// earlier version, or has no such directories.
const FILE: &str = "implied.json";

/// The attributes of one snapshot's implied directories. All views of the snapshot share them.
pub(crate) struct Implied {
    pub(crate) directories: Arc<ImpliedDirectories>,
    _memory: TreePermit,
}

/// Those in use, by the directory of the snapshot.
#[derive(Default)]
pub(crate) struct ImpliedInUse(Mutex<HashMap<PathBuf, Weak<Implied>>>);

impl ImpliedInUse {
    fn get(&self, snapshot: &Path) -> Option<Arc<Implied>> {
        self.0.lock().get(snapshot)?.upgrade()
    }

    fn insert(&self, snapshot: PathBuf, implied: &Arc<Implied>) {
        let mut in_use = self.0.lock();
        in_use.retain(|_, implied| implied.strong_count() > 0);
        in_use.insert(snapshot, Arc::downgrade(implied));
    }
}

/// Why a layer's implied directories cannot be shown.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("cannot find out what directories without an entry look like")]
    Implied(#[from] ImpliedError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Write(#[from] StoreError),
    #[error(transparent)]
    TooMuch(#[from] OverLimit),
    #[error("the lookup in the layers below was interrupted")]
    Interrupted(#[from] soci_task::Interrupted),
}

/// A layer whose implied directories are wanted, and what they may take.
pub(crate) struct ImpliedOf<'a> {
    pub(crate) request: &'a LayerRequest,
    /// The manifest of the image that it is opened for.
    pub(crate) image: Digest,
    pub(crate) tree: &'a Arc<Tree>,
    pub(crate) trees: &'a TreeMemory,
    pub(crate) overlay_xattr: OverlayXattr,
}

impl ImpliedInUse {
    /// The attributes of a layer's implied directories at the place for which it is requested; `None`:
    /// those in its tree. `below` are the layers below at the first mount there.
    pub(crate) async fn find(
        &self,
        layer: ImpliedOf<'_>,
        below: Vec<Box<dyn LowerLayer>>,
    ) -> Result<Option<Arc<Implied>>, LayerRefusal> {
        let first = layer.request.purpose == Purpose::ImageLayer;
        if !ImpliedDirectories::are_in(layer.tree) || (first && below.is_empty()) {
            return Ok(None);
        }
        if !first && let Some(known) = self.get(&layer.request.snapshot) {
            return Ok(Some(known));
        }
        let found = self.read_or_look_up(layer, below).await;
        found.map_err(LayerRefusal::failed)
    }

    async fn read_or_look_up(
        &self,
        layer: ImpliedOf<'_>,
        below: Vec<Box<dyn LowerLayer>>,
    ) -> Result<Option<Arc<Implied>>, LookupError> {
        let cancelled = Cancelled::default();
        // A caller that has waited long enough drops this future: the work ends as well.
        let _wanted = cancelled.on_drop();
        let options = layer.trees.options(layer.overlay_xattr, cancelled);
        let path = layer.request.snapshot.join(FILE);
        let tree = Arc::clone(layer.tree);
        let work = move || -> Result<_, LookupError> {
            if below.is_empty() {
                return read(path, &tree);
            }
            let found = ImpliedDirectories::look_up(&tree, &below, &options)?;
            // Durable: the snapshot is committed after it.
            write_file(&path, &found.encode(&tree))?;
            Ok(Some(found))
        };
        let Some(directories) = soci_task::blocking(work).await? else {
            return Ok(None);
        };
        let implied = Arc::new(Implied {
            _memory: layer.trees.take(layer.image, directories.memory())?,
            directories: Arc::new(directories),
        });
        self.insert(layer.request.snapshot.clone(), &implied);
        Ok(Some(implied))
    }
}

fn read(path: PathBuf, tree: &Tree) -> Result<Option<ImpliedDirectories>, LookupError> {
    match std::fs::read(&path) {
        Ok(stored) => Ok(Some(ImpliedDirectories::decode(&stored, tree)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LookupError::Read { path, source }),
    }
}
