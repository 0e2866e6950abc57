//! The span fetcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use soci_registry::BlobSource;
use soci_store::StoredLayer;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::driver::Driver;
use crate::served_layer::ServedLayer;
use crate::span_key::LayerId;
use crate::stats::Load;
use crate::{FetchConfig, LazyLayer, Stats, abandoned, background};

/// Longest wait at the end for spans that readers have got and the disk has not. A hand-over waits as long, and
/// readers with it; what is missing then is fetched again.
const STORE_LIMIT: Duration = Duration::from_secs(2);
/// Time between two looks whether they are stored.
const STORE_POLL: Duration = Duration::from_millis(2);

/// The span fetcher of a daemon.
pub struct SpanFetcher {
    driver: Arc<Driver>,
    next_layer: AtomicU64,
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
        let driver = Driver::new(config, runtime.clone());
        runtime.spawn(background::run(Arc::downgrade(&driver)));
        runtime.spawn(abandoned::run(Arc::downgrade(&driver)));
        Arc::new(Self {
            driver,
            next_layer: AtomicU64::new(0),
        })
    }

    /// Adds a layer, whose missing spans come from `source`.
    pub fn add_layer(
        &self,
        layer: Arc<StoredLayer>,
        source: Arc<dyn BlobSource>,
    ) -> Arc<LazyLayer> {
        let id = LayerId(self.next_layer.fetch_add(1, Ordering::Relaxed));
        let layer = Arc::new(ServedLayer::new(id, layer, source));
        let context = &self.driver.context;
        let now = Instant::now();
        let added = context.schedule.lock().add_layer(id, layer.clone(), now);
        if !added {
            self.driver.close(&layer);
        }
        context.activity.note_use();
        Arc::new(LazyLayer::new(self.driver.clone(), layer))
    }

    /// Returns what the fetcher has done and is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let context = &self.driver.context;
        // Before the schedule is locked: the queue locks it in turn.
        let background = self.driver.background.load();
        let load = {
            let schedule = context.schedule.lock();
            let (queued_spans, requests) = schedule.load();
            Load {
                queued_spans,
                requests,
                request_limit: schedule.request_limit(),
                origins: schedule.origins(),
                memory: context.budget.usage(),
                background,
            }
        };
        context.counters.snapshot(&load)
    }

    /// Returns whether readers wait for the network, so that other traffic should leave it to them.
    #[must_use]
    pub fn demand_waits(&self) -> bool {
        self.driver.context.schedule.lock().demand_waits()
    }

    /// Notes that other work needs the network now: filling waits for its end as for that of a start.
    pub fn note_use(&self) {
        self.driver.context.activity.note_use();
    }

    /// Closes all layers: waiting readers get [`crate::ReadError::Closed`], requests are cancelled,
    /// and what readers have got is stored and made durable.
    pub async fn shutdown(&self) {
        let layers = self.driver.stop();
        // A span that is being stored has its memory until it is.
        let stored = async {
            while self.stats().memory_in_use > 0 {
                tokio::time::sleep(STORE_POLL).await;
            }
        };
        if tokio::time::timeout(STORE_LIMIT, stored).await.is_err() {
            tracing::warn!("spans are not stored in time: they will be fetched again");
        }
        let synced = soci_task::run(move || {
            for layer in layers {
                if let Err(error) = layer.stored.sync() {
                    tracing::warn!(layer = %layer.stored.digest(), error = %error, "cannot make spans durable");
                }
            }
        });
        // An error means that the runtime shuts down: too late for anything else.
        let _ = synced.await;
    }
}

impl Drop for SpanFetcher {
    fn drop(&mut self) {
        self.driver.stop();
    }
}
