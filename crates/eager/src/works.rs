//! All layers that are being worked on, and counts of what was done.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_oci::Digest;
use soci_unpack::LayerProgress;
use tokio_util::task::TaskTracker;

use crate::image::PlannedLayer;
use crate::layer_work::LayerWork;
use crate::puller::ImagePull;
use crate::report::EagerTotals;

/// Chain ID of a layer, and the namespace of the content store that keeps it, if one does.
type Key = (Option<String>, Digest);

/// All layers that are being worked on.
#[derive(Default)]
pub(crate) struct Works {
    by_chain: Mutex<HashMap<Key, Weak<LayerWork>>>,
    counts: Mutex<Counts>,
    pub(crate) tasks: TaskTracker,
}

/// When a layer is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Its snapshot is being prepared.
    Now,
    /// Its snapshot may be prepared later, after those of the layers below.
    Later,
}

#[derive(Default)]
struct Counts {
    running: Vec<Arc<LayerProgress>>,
    /// Totals of works that have ended.
    ended: EagerTotals,
}

/// A work that is counted as running until it has ended, however it ends.
pub(crate) struct Counted {
    works: Arc<Works>,
    progress: Arc<LayerProgress>,
    /// Set if it has succeeded.
    unpacked_for: Option<Duration>,
}

impl Works {
    /// Returns the work on a layer, which is started unless it is under way. `Need::Later` starts
    /// nothing for a layer that another image has taken: its snapshot is there or about to be
    /// committed.
    pub(crate) fn work(
        self: &Arc<Self>,
        namespace: Option<&str>,
        layer: &PlannedLayer,
        image: &Arc<dyn ImagePull>,
        need: Need,
    ) -> Option<Arc<LayerWork>> {
        let key = (namespace.map(str::to_owned), layer.chain_id);
        let mut works = self.by_chain.lock();
        works.retain(|_, work| work.strong_count() > 0);
        let known = works.get(&key).and_then(Weak::upgrade);
        match known {
            Some(work) if work.is_of_use() => return Some(work),
            Some(work) if work.is_taken() && need == Need::Later => return None,
            _ => {}
        }
        let work = LayerWork::start(self, layer.clone(), Arc::clone(image));
        works.insert(key, Arc::downgrade(&work));
        Some(work)
    }

    /// Returns the works on these layers that are known, which stay known as long as they are held.
    pub(crate) fn known(
        &self,
        namespace: Option<&str>,
        layers: &[PlannedLayer],
    ) -> Vec<Arc<LayerWork>> {
        let works = self.by_chain.lock();
        let of = |layer: &PlannedLayer| {
            let key = (namespace.map(str::to_owned), layer.chain_id);
            works.get(&key).and_then(Weak::upgrade)
        };
        layers.iter().filter_map(of).collect()
    }

    /// Counts a work as running.
    pub(crate) fn begun(self: &Arc<Self>, progress: &Arc<LayerProgress>) -> Counted {
        self.counts.lock().running.push(Arc::clone(progress));
        Counted {
            works: Arc::clone(self),
            progress: Arc::clone(progress),
            unpacked_for: None,
        }
    }

    /// Returns what was done since the start.
    pub(crate) fn totals(&self) -> EagerTotals {
        let counts = self.counts.lock();
        let mut totals = counts.ended;
        for progress in &counts.running {
            totals.add(progress);
        }
        totals.layers_running = counts.running.len() as u64;
        totals
    }
}

impl Counted {
    /// Records that the work has ended well, and how long the layer was unpacked.
    pub(crate) fn succeeded(mut self, unpacked_for: Duration) {
        self.unpacked_for = Some(unpacked_for);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.works.counts.lock();
        counts
            .running
            .retain(|running| !Arc::ptr_eq(running, &self.progress));
        counts.ended.add(&self.progress);
        match self.unpacked_for {
            Some(time) => {
                counts.ended.layers += 1;
                let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                counts.ended.unpack_milliseconds += milliseconds;
            }
            None => counts.ended.layers_failed += 1,
        }
    }
}

impl EagerTotals {
    fn add(&mut self, progress: &LayerProgress) {
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        self.downloaded += of(&progress.downloaded);
        self.requests += of(&progress.requests);
        self.unpacked += of(&progress.unpacked);
    }
}
