//! The span fetcher.

use std::sync::Arc;

use registry::BlobSource;
use store::StoredLayer;
use tokio::runtime::Handle;

use crate::{FetchConfig, LazyLayer, Stats};

/// The one fetcher of a daemon.
pub struct SpanFetcher {}

impl SpanFetcher {
    /// Starts a fetcher whose requests run on `runtime`.
    #[must_use]
    pub fn new(_config: FetchConfig, _runtime: Handle) -> Arc<Self> {
        todo!()
    }
    /// Makes a layer readable.
    pub fn add_layer(
        &self,
        _layer: Arc<StoredLayer>,
        _source: Arc<dyn BlobSource>,
    ) -> Arc<LazyLayer> {
        todo!()
    }
    /// What it has done and is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }
    /// Closes all layers: readers that wait get [`crate::ReadError::Closed`], requests are cancelled, and what
    /// was fetched is made durable.
    pub async fn shutdown(&self) {
        todo!()
    }
}
