//! Downloads ahead of the Prepare: containerd prepares one layer after another, but the first Prepare
//! names the layers above.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::error::UnpackError;
use crate::image::LayerOfImage;
use crate::unpacker::Fetched;

/// Time that a layer waits for its Prepare.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// Limit of waiting layers.
const MOST: usize = 16;

/// A download of a layer that was not requested yet.
pub(crate) struct Download {
    task: AbortOnDropHandle<Result<Fetched, UnpackError>>,
    started: Arc<AtomicBool>,
}

impl Download {
    /// Waits until it has begun; `None` if it failed, or still waits for its turn, which a layer that is
    /// needed now does not.
    pub(crate) async fn fetched(self) -> Option<Fetched> {
        if !self.started.load(Ordering::Acquire) {
            return None;
        }
        self.task.await.ok()?.ok()
    }
}

/// Downloads of layers that were not requested yet. Clones share the map.
#[derive(Clone, Default)]
pub(crate) struct Ahead {
    layers: Arc<Mutex<HashMap<LayerOfImage, (u64, Download)>>>,
}

impl Ahead {
    /// Starts a download, which notes that it has a slot, unless the layer has one, or too many wait.
    pub(crate) fn begin<D>(
        &self,
        layer: LayerOfImage,
        number: u64,
        download: impl FnOnce(Arc<AtomicBool>) -> D,
    ) where
        D: Future<Output = Result<Fetched, UnpackError>> + Send + 'static,
    {
        let mut layers = self.layers.lock();
        if layers.len() >= MOST || layers.contains_key(&layer) {
            return;
        }
        let started = Arc::new(AtomicBool::new(false));
        // Without a parent: the Prepare that came is of another layer.
        let span = tracing::error_span!(
            parent: None,
            "download",
            image = %layer.reference,
            layer = %layer.layer,
        );
        let download = download(Arc::clone(&started)).instrument(span);
        let task = AbortOnDropHandle::new(tokio::spawn(download));
        let download = Download { task, started };
        layers.insert(layer.clone(), (number, download));
        let waiting = Arc::downgrade(&self.layers);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            if let Some(layers) = waiting.upgrade() {
                let mut layers = layers.lock();
                // Another of the same name may have been begun since.
                if layers
                    .get(&layer)
                    .is_some_and(|(known, _)| *known == number)
                {
                    layers.remove(&layer);
                }
            }
        });
    }

    /// The download of a layer that was begun.
    pub(crate) fn take(&self, layer: &LayerOfImage) -> Option<Download> {
        let download = self.layers.lock().remove(layer);
        download.map(|(_, download)| download)
    }
}
