//! The attributes of directories that a lazy layer only implies: looked up in the layers below when
//! the layer is mounted first, and kept beside its mount point. A layer under two different parents
//! has two mount points, and other attributes at each.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_layer::{LayerRefusal, LayerRequest, LowerLayer, Purpose};
use soci_layerfs::{Cancelled, ImpliedDirectories, ImpliedError, Tree};
use soci_meter::OverLimit;
use soci_oci::Digest;
use soci_store::{StoreError, write_file};

use crate::LazyLayers;
use crate::open_layer::OpenLayer;
use crate::tree_memory::TreePermit;

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

impl LazyLayers {
    /// The attributes of a layer's implied directories at the place for which it is requested; `None`:
    /// those in its tree.
    pub(crate) async fn implied(
        &self,
        request: &LayerRequest,
        image: Digest,
        layer: &OpenLayer,
    ) -> Result<Option<Arc<Implied>>, LayerRefusal> {
        if !ImpliedDirectories::are_in(&layer.tree) {
            return Ok(None);
        }
        let first = request.purpose == Purpose::ImageLayer;
        if !first && let Some(known) = self.implied.get(&request.snapshot) {
            return Ok(Some(known));
        }
        let below = match first {
            true => self.table.lower_layers(&request.parents),
            false => Ok(Vec::new()),
        };
        let below = below.map_err(LayerRefusal::failed)?;
        let found = match first && below.is_empty() {
            true => Ok(None),
            false => self.find_implied(request, image, layer, below).await,
        };
        found.map_err(LayerRefusal::failed)
    }

    async fn find_implied(
        &self,
        request: &LayerRequest,
        image: Digest,
        layer: &OpenLayer,
        below: Vec<Box<dyn LowerLayer>>,
    ) -> Result<Option<Arc<Implied>>, LookupError> {
        let cancelled = Cancelled::default();
        // A caller that has waited long enough drops this future: the work ends as well.
        let _wanted = cancelled.on_drop();
        let trees = &self.opener.loader.trees;
        let options = trees.options(self.opener.loader.overlay_xattr, cancelled);
        let path = request.snapshot.join(FILE);
        let (tree, first) = (Arc::clone(&layer.tree), !below.is_empty());
        let work = move || -> Result<_, LookupError> {
            if !first {
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
            _memory: trees.take(image, directories.memory())?,
            directories: Arc::new(directories),
        });
        self.implied.insert(request.snapshot.clone(), &implied);
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
