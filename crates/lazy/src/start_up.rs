//! Starts of images: from the first Prepare on, the profile of earlier starts is played, and what
//! the kernel reads is recorded for the next one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_fetch::{LazyLayer, Playback, PlayedLayer, ProfileSpan, ReadLog};
use soci_oci::Digest;
use soci_store::LayerKey;
use soci_ztoc::{Span, SpanId};
use tokio::time::Instant;

use crate::profile::RecordedSpan;
use crate::profile_files::ProfileFiles;

/// Time between two looks at a start.
const PERIOD: Duration = Duration::from_millis(100);
/// Time after a pull after which its start is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Number of starts that are looked at a time.
const MOST_STARTS: usize = 64;

/// Switches and limits of start-up profiles.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// Records and plays them.
    pub enable: bool,
    /// Limit of all profiles on disk, in bytes.
    pub max_size_bytes: u64,
    /// Time without a first read of a span that ends a start.
    pub quiet: Duration,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            enable: true,
            max_size_bytes: 8 << 20,
            quiet: Duration::from_secs(10),
        }
    }
}

/// What start-up profiles have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProfileCounts {
    /// Number of starts that were recorded.
    pub recorded: u64,
    /// Number of profiles whose playing began.
    pub played: u64,
    /// Compressed bytes that they fetched, of starts that have ended.
    pub bytes: u64,
    /// Part of these bytes that readers used.
    pub used_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    recorded: AtomicU64,
    played: AtomicU64,
    bytes: AtomicU64,
    used_bytes: AtomicU64,
}

/// The starts that are being recorded, by the manifest of the image.
pub(crate) struct StartUps {
    files: Option<ProfileFiles>,
    quiet: Duration,
    starts: Mutex<HashMap<Digest, Arc<StartUp>>>,
    counters: Counters,
}

/// The start of one image.
#[derive(Default)]
struct StartUp {
    layers: Mutex<Vec<StartedLayer>>,
}

#[derive(Clone)]
struct StartedLayer {
    key: LayerKey,
    data: Weak<LazyLayer>,
    log: Arc<ReadLog>,
}

impl StartUps {
    pub(crate) fn new(directory: std::path::PathBuf, config: &ProfileConfig) -> Arc<Self> {
        let files = ProfileFiles::new(directory, config.max_size_bytes);
        Arc::new(Self {
            files: config.enable.then_some(files),
            quiet: config.quiet,
            starts: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Begins the start of an image, unless it has begun.
    pub(crate) fn begin(self: &Arc<Self>, manifest: Digest) {
        let Some(files) = self.files.clone() else {
            return;
        };
        let start = Arc::<StartUp>::default();
        {
            let mut starts = self.starts.lock();
            if starts.len() >= MOST_STARTS || starts.contains_key(&manifest) {
                return;
            }
            starts.insert(manifest, start.clone());
        }
        tokio::spawn(follow(Arc::downgrade(self), start, manifest, files));
    }

    /// Notes that a layer of an image is open.
    pub(crate) fn opened(&self, manifest: &Digest, key: LayerKey, data: &Arc<LazyLayer>) {
        let Some(start) = self.starts.lock().get(manifest).cloned() else {
            return;
        };
        let mut layers = start.layers.lock();
        let gone = |layer: &StartedLayer| layer.key == key && layer.data.strong_count() == 0;
        layers.retain(|layer| !gone(layer));
        if layers.iter().all(|layer| layer.key != key) {
            layers.push(StartedLayer {
                key,
                data: Arc::downgrade(data),
                log: data.log_reads(),
            });
        }
    }

    pub(crate) fn counts(&self) -> ProfileCounts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProfileCounts {
            recorded: value(&self.counters.recorded),
            played: value(&self.counters.played),
            bytes: value(&self.counters.bytes),
            used_bytes: value(&self.counters.used_bytes),
        }
    }
}

/// An open layer that is played.
struct Played {
    data: Arc<LazyLayer>,
    log: Arc<ReadLog>,
}

impl Played {
    fn span(&self, span: u32) -> Option<Span> {
        self.data.stored().spans().get(SpanId(span))
    }
}

impl PlayedLayer for Played {
    fn size(&self, span: u32) -> Option<u64> {
        let span = self.span(span)?.compressed;
        Some(span.end.saturating_sub(span.start))
    }

    fn is_stored(&self, span: u32) -> bool {
        self.data.stored().has(SpanId(span))
    }

    fn has_room(&self, span: u32) -> bool {
        let size = self.span(span).map_or(0, |span| {
            let range = span.uncompressed;
            range.end.saturating_sub(range.start)
        });
        size <= self.data.stored().spare_room()
    }

    fn was_read(&self, span: u32) -> bool {
        self.log.was_read(span)
    }

    fn fetch(&self, spans: &[u32]) {
        self.data.prefetch_each(spans);
    }
}

/// Plays and records a start until it has ended.
async fn follow(
    starts: Weak<StartUps>,
    start: Arc<StartUp>,
    manifest: Digest,
    files: ProfileFiles,
) {
    let began = Instant::now();
    let reader = files.clone();
    let order = soci_task::run(move || reader.load(&manifest).map(|profile| profile.merged()));
    let order = order.await.ok().flatten().unwrap_or_default();
    let mut player = Player::new(&order);
    if player.is_some()
        && let Some(starts) = starts.upgrade()
    {
        starts.counters.played.fetch_add(1, Ordering::Relaxed);
        tracing::info!(manifest = %manifest, spans = order.len(), "playing start-up profile");
    }
    let reads = loop {
        tokio::time::sleep(PERIOD).await;
        let Some(starts) = starts.upgrade() else {
            return;
        };
        let layers = start.layers.lock().clone();
        let reads = first_reads(&layers);
        let first = reads.iter().map(|(_, _, at)| *at).min();
        let last = reads.iter().map(|(_, _, at)| *at).max();
        let now = Instant::now();
        if let Some(player) = &mut player {
            player.step(&layers, first, now);
        }
        let removed = !layers.is_empty() && layers.iter().all(|l| l.data.strong_count() == 0);
        let quiet = last.is_some_and(|last| now >= last + starts.quiet);
        if removed || quiet || now >= began + PATIENCE {
            starts.starts.lock().remove(&manifest);
            break reads;
        }
    };
    let played = player.map(|player| player.end()).unwrap_or_default();
    let Some(starts) = starts.upgrade() else {
        return;
    };
    let counters = &starts.counters;
    counters.bytes.fetch_add(played.bytes, Ordering::Relaxed);
    counters
        .used_bytes
        .fetch_add(played.used, Ordering::Relaxed);
    let Some(first) = reads.iter().map(|(_, _, at)| *at).min() else {
        return;
    };
    let spans: Vec<_> = reads
        .into_iter()
        .map(|(layer, span, at)| RecordedSpan {
            layer,
            span,
            at: at.saturating_duration_since(first),
        })
        .collect();
    let count = spans.len();
    let added = soci_task::run(move || files.add(&manifest, spans).map_err(|e| e.to_string()));
    match added.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => {
            counters.recorded.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                manifest = %manifest,
                spans = count,
                played_bytes = played.bytes,
                used_bytes = played.used,
                "recorded start-up profile"
            );
        }
        Err(error) => {
            tracing::warn!(manifest = %manifest, error, "cannot store start-up profile");
        }
    }
}

fn first_reads(layers: &[StartedLayer]) -> Vec<(LayerKey, u32, Instant)> {
    let of = |layer: &StartedLayer| {
        let (key, reads) = (layer.key, layer.log.first_reads());
        reads.into_iter().map(move |(span, at)| (key, span, at))
    };
    layers.iter().flat_map(of).collect()
}

/// The playback of a profile whose layers open one after another.
struct Player {
    playback: Playback,
    keys: Vec<LayerKey>,
    /// The layers that have no other readahead while it plays.
    playing: HashMap<LayerKey, Weak<LazyLayer>>,
    played: soci_fetch::Played,
}

impl Player {
    fn new(order: &[(LayerKey, u32)]) -> Option<Self> {
        if order.is_empty() {
            return None;
        }
        let mut keys = Vec::new();
        let mut spans = Vec::with_capacity(order.len());
        for (key, span) in order {
            let layer = keys.iter().position(|known| known == key);
            let layer = layer.unwrap_or_else(|| {
                keys.push(*key);
                keys.len() - 1
            });
            spans.push(ProfileSpan { layer, span: *span });
        }
        Some(Self {
            playback: Playback::new(spans),
            keys,
            playing: HashMap::new(),
            played: soci_fetch::Played::default(),
        })
    }

    fn step(&mut self, layers: &[StartedLayer], first_read: Option<Instant>, now: Instant) {
        if self.played.ended {
            return;
        }
        let open = |key: &LayerKey| {
            let layer = layers.iter().find(|layer| layer.key == *key)?;
            let (data, log) = (layer.data.upgrade()?, layer.log.clone());
            Some(Played { data, log })
        };
        let open: Vec<_> = self.keys.iter().map(open).collect();
        for (key, layer) in self.keys.iter().zip(&open) {
            if let Some(layer) = layer
                && !self.playing.contains_key(key)
            {
                layer.data.set_playing(true);
                self.playing.insert(*key, Arc::downgrade(&layer.data));
            }
        }
        self.played = self.playback.step(&open, first_read, now);
        if self.played.ended {
            self.release();
        }
    }

    /// Has sequential readers get readahead again.
    fn release(&mut self) {
        for (_, layer) in self.playing.drain() {
            if let Some(layer) = layer.upgrade() {
                layer.set_playing(false);
            }
        }
    }

    fn end(mut self) -> soci_fetch::Played {
        self.release();
        self.played
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.release();
    }
}
