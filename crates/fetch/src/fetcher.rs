//! The span fetcher as the rest of the daemon sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use soci_registry::BlobSource;
use soci_store::StoredLayer;
use tokio::runtime::Handle;

use crate::core::Core;
use crate::layer::Layer;
use crate::{FetchConfig, LazyLayer, Stats, background};

/// The one fetcher of a daemon.
pub struct SpanFetcher {
    core: Arc<Core>,
}

impl std::fmt::Debug for SpanFetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanFetcher")
            .field("stats", &self.stats())
            .finish()
    }
}

impl SpanFetcher {
    /// Starts a fetcher whose requests run on `runtime`.
    #[must_use]
    pub fn new(config: FetchConfig, runtime: Handle) -> Arc<Self> {
        let core = Core::new(config, runtime.clone());
        runtime.spawn(background::run(Arc::downgrade(&core)));
        Arc::new(Self { core })
    }

    /// Makes a layer readable.
    pub fn add_layer(
        &self,
        layer: Arc<StoredLayer>,
        source: Arc<dyn BlobSource>,
    ) -> Arc<LazyLayer> {
        let number = self.core.next_layer.fetch_add(1, Ordering::Relaxed);
        let layer = Arc::new(Layer::new(number, layer, source));
        let stopped = {
            let mut schedule = self.core.schedule.lock();
            schedule.add_layer(layer.clone());
            schedule.stopped
        };
        if stopped {
            self.core.close(&layer);
        }
        self.core.active();
        Arc::new(LazyLayer::new(self.core.clone(), layer))
    }

    /// What it has done and is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Closes all layers: readers that wait get [`crate::ReadError::Closed`], requests are cancelled,
    /// and what was fetched is made durable.
    pub async fn shutdown(&self) {
        let layers = self.core.stop();
        let synced = tokio::task::spawn_blocking(move || {
            for layer in layers {
                if let Err(error) = layer.stored.sync() {
                    tracing::warn!(error = %error, "fetched spans are not durable");
                }
            }
        });
        // Fails only when the runtime ends, too late for doing anything about it.
        let _ = synced.await;
    }
}

impl Drop for SpanFetcher {
    fn drop(&mut self) {
        self.core.stop();
    }
}
