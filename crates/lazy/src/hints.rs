//! Hints about what a start will read: their switches and limits, and what they are notified of.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_fetch::{LazyLayer, ReadLog, StartId};
use soci_layerfs::{FileWatch, FileWatcher, MountedLayer, OwnReader, Tree, WeakMountedLayer};
use soci_profile::Blocks;
use soci_store::LayerKey;
use tokio::sync::mpsc;

use crate::hinted_start::HintedStart;
use crate::page_cache::PageCache;
use crate::start_order::StartOrder;

/// Switches and limits of hints.
#[derive(Debug, Clone)]
pub struct HintConfig {
    /// Fetches what the structure of files says.
    pub enable: bool,
    /// Compressed bytes that may be fetched and not read.
    pub max_unread_bytes: u64,
    /// Part of what is read that is added to that, in percent.
    pub max_unread_percent: u64,
    /// Rate of the link in bytes per second below which nothing is fetched for hints.
    pub min_link_rate: u64,
    /// The process that reads into the page cache; `None`: only the container's reads fill it.
    pub page_cache: Option<crate::PageCacheProgram>,
}

impl Default for HintConfig {
    fn default() -> Self {
        Self {
            enable: true,
            max_unread_bytes: 64 << 20,
            max_unread_percent: 100,
            min_link_rate: 50_000_000,
            page_cache: None,
        }
    }
}

/// Hints for the starts of a daemon.
pub(crate) struct Hints {
    pub(crate) config: HintConfig,
    pub(crate) page_cache: Option<PageCache>,
    /// The process that reads into the page cache.
    pub(crate) own_reader: Arc<OwnReader>,
}

/// What the profile of earlier starts knows of a layer.
#[derive(Debug, Default)]
pub(crate) struct KnownLayer {
    pub(crate) spans: HashSet<u32>,
    /// Blocks of 64 KiB of the tar.
    pub(crate) blocks: Blocks,
}

pub(crate) enum HintEvent {
    /// A layer was opened.
    Opened(HintedLayer),
    /// A layer was mounted.
    Mounted(LayerKey, WeakMountedLayer),
    /// A container reads a file for the first time: number of the layer, inode number.
    Read(usize, u64),
    /// What earlier starts have read.
    Profile(HashMap<LayerKey, KnownLayer>),
}

/// A layer of a start.
pub(crate) struct HintedLayer {
    pub(crate) key: LayerKey,
    pub(crate) data: Weak<LazyLayer>,
    pub(crate) tree: Arc<Tree>,
    pub(crate) log: Arc<ReadLog>,
    pub(crate) watch: Arc<FileWatch>,
    pub(crate) watcher: Option<Arc<FileWatcher>>,
    pub(crate) mount: Option<WeakMountedLayer>,
}

/// The hints for one start. Dropping it ends them.
pub(crate) struct StartHints {
    events: Option<mpsc::UnboundedSender<HintEvent>>,
    layers: Mutex<HashSet<LayerKey>>,
}

impl Hints {
    /// Must be called on a tokio runtime.
    pub(crate) fn new(config: &HintConfig) -> Arc<Self> {
        let own_reader = Arc::<OwnReader>::default();
        let start = |program| PageCache::new(program, own_reader.clone());
        Arc::new(Self {
            page_cache: config.page_cache.clone().map(start),
            own_reader,
            config: config.clone(),
        })
    }

    /// Whether there are hints at all.
    pub(crate) const fn is_active(&self) -> bool {
        self.config.enable || self.page_cache.is_some()
    }

    /// Begins the hints for a start.
    pub(crate) fn begin(self: &Arc<Self>, start: StartId) -> StartHints {
        let events = self.is_active().then(|| {
            let (events, receiver) = mpsc::unbounded_channel();
            let start = HintedStart::new(start, self.clone(), events.downgrade());
            tokio::spawn(start.run(receiver));
            events
        });
        StartHints {
            events,
            layers: Mutex::default(),
        }
    }
}

impl StartHints {
    fn send(&self, event: HintEvent) {
        if let Some(events) = &self.events {
            // The task has ended.
            let _ = events.send(event);
        }
    }

    /// Notes that a layer is open.
    pub(crate) fn opened(
        &self,
        key: LayerKey,
        data: &Arc<LazyLayer>,
        tree: &Arc<Tree>,
        watch: &Arc<FileWatch>,
    ) {
        if self.events.is_none() || !self.layers.lock().insert(key) {
            return;
        }
        self.send(HintEvent::Opened(HintedLayer {
            key,
            data: Arc::downgrade(data),
            tree: tree.clone(),
            log: data.log_reads(),
            watch: watch.clone(),
            watcher: None,
            mount: None,
        }));
    }

    /// Notes that a layer is mounted.
    pub(crate) fn mounted(&self, key: LayerKey, mounted: &MountedLayer) {
        self.send(HintEvent::Mounted(key, mounted.downgrade()));
    }

    /// Notes what earlier starts have read.
    pub(crate) fn profile(&self, order: Option<&StartOrder>) {
        let mut known = HashMap::<_, KnownLayer>::new();
        for (key, span) in order.into_iter().flat_map(|order| &order.spans) {
            known.entry(*key).or_default().spans.insert(*span);
        }
        for (key, blocks) in order.into_iter().flat_map(|order| &order.blocks) {
            known.entry(*key).or_default().blocks = blocks.clone();
        }
        self.send(HintEvent::Profile(known));
    }
}
