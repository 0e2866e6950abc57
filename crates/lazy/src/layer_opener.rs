//! Opens layers for their users, and those of later Prepares ahead of time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use soci_layer::{LayerRefusal, Purpose};
use soci_store::LayerKey;
use soci_telemetry::Meters;
use soci_telemetry::metrics::count;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::image_layer::{ImageKey, ImageLayer};
use crate::index_files::FoundIndex;
use crate::layer_loader::{LayerLoader, layer_key, limited};
use crate::lease::{Lease, LeaseMap};
use crate::open_layer::OpenLayer;
use crate::opened_ahead::{OpenedAhead, Opening};
use crate::start_up::StartUps;
use crate::sweeper::Sweeper;

/// Time for which a layer that was opened ahead waits for its Prepare.
const PREPARED_FOR: Duration = Duration::from_secs(300);

/// Longest time that a failed opening waits for its traces to be removed.
const CLEAN_UP: Duration = Duration::from_secs(1);

/// Opens each layer once for all its users.
pub(crate) struct LayerOpener {
    pub(crate) loader: LayerLoader,
    /// A layer that is prepared needs the confirmation of its image's registry.
    pub(crate) isolated: bool,
    pub(crate) start_ups: Arc<StartUps>,
    pub(crate) leases: Arc<LeaseMap<OpenLayer>>,
    pub(crate) ahead: OpenedAhead<OpenLayer>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) meters: Arc<Meters>,
    /// Time after which opening a layer ahead is given up.
    pub(crate) time_limit: Duration,
}

impl LayerOpener {
    /// Opens a layer of an image unless it is open. Waiting for its registry and for other layers ends
    /// at `until`, if it is set; work on this machine takes as long as it does.
    ///
    /// A failure may leave something stored: run this within
    /// [`leaving_nothing_new`](Self::leaving_nothing_new).
    pub(crate) async fn open(
        &self,
        namespace: &str,
        image: &ImageKey,
        ztoc: &ZtocDescriptor,
        purpose: Purpose,
        until: Option<Instant>,
    ) -> Result<Lease<OpenLayer>, LayerRefusal> {
        let key = layer_key(ztoc);
        let missed = AtomicBool::new(false);
        // Boxed: a request to a registry is a large future.
        let load = Box::pin(async {
            missed.store(true, Ordering::Relaxed);
            self.loader.load(namespace, image, ztoc, until).await
        });
        let lease = self.leases.acquire(key, load).await?;
        let resolved = match missed.into_inner() {
            true => count::RESOLVE_CACHE_MISS,
            false => count::RESOLVE_CACHE_HIT,
        };
        self.meters.count(resolved, &key.layer.to_string(), 1);
        let sources = &lease.layer().sources;
        sources.add_namespace(namespace);
        // What was mounted before was confirmed then.
        if self.isolated && purpose == Purpose::ImageLayer {
            // Boxed: a request to a registry is a large future.
            let confirm = Box::pin(sources.add_confirmed(&image.reference));
            let confirmed = limited(until, confirm).await;
            confirmed.unwrap_or_else(|| Err(self.loader.too_slow(image)))?;
        } else {
            sources.add(&image.reference);
        }
        self.start_ups.opened(&image.manifest, key, lease.layer());
        Ok(lease)
    }

    /// Runs work that opens a layer. If it fails, removes what it was the first to store of it.
    pub(crate) async fn leaving_nothing_new<T, E>(
        &self,
        key: LayerKey,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let stored = self.sweeper.is_stored(key).await;
        let result = work.await;
        if result.is_err() && !stored {
            let sweeper = self.sweeper.clone();
            let removal = tokio::spawn(async move { sweeper.remove_unused(key).await });
            // What still uses the layer must not hold this caller as well.
            let _ = tokio::time::timeout(CLEAN_UP, removal).await;
        }
        result
    }

    /// Opens the layers above the one that is prepared: their Prepares follow.
    pub(crate) fn open_above(
        self: &Arc<Self>,
        namespace: &str,
        below: &ImageLayer,
        found: &FoundIndex,
    ) {
        for above in &below.above {
            let Some(ztoc) = found.index.ztoc_for(&above.layer) else {
                continue;
            };
            let key = layer_key(ztoc);
            if self.leases.in_use(&key) {
                continue;
            }
            let Some(opening) = self.ahead.begin(key) else {
                continue;
            };
            let image = &below.image;
            let span = tracing::error_span!("open", image = %image.reference, layer = %key.layer);
            let (namespace, image) = (namespace.to_owned(), image.clone());
            let ahead = self
                .clone()
                .open_ahead(opening, namespace, image, ztoc.clone());
            tokio::spawn(ahead.instrument(span));
        }
    }

    async fn open_ahead(
        self: Arc<Self>,
        opening: Opening,
        namespace: String,
        image: ImageKey,
        ztoc: ZtocDescriptor,
    ) {
        let key = layer_key(&ztoc);
        let until = Some(Instant::now() + self.time_limit);
        let open = self.open(&namespace, &image, &ztoc, Purpose::ImageLayer, until);
        // A failure is reported by the Prepare of that layer, which tries again.
        let Ok(lease) = self.leaving_nothing_new(key, open).await else {
            self.ahead.give_up(&key, opening);
            return;
        };
        if !self.ahead.keep(opening, lease) {
            // The mount may be gone as well, and could not remove a layer in use.
            self.sweeper.remove_unused(key).await;
            return;
        }
        let opener = Arc::downgrade(&self);
        drop(self);
        tokio::time::sleep(PREPARED_FOR).await;
        let Some(opener) = opener.upgrade() else {
            return;
        };
        if opener.ahead.give_up(&key, opening) {
            opener.sweeper.remove_unused(key).await;
        }
    }
}
