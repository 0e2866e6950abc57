//! Starts of images: from the first Prepare on, what is known of earlier starts is played, and what
//! the kernel reads is recorded for the next one. A container of an image that stayed on the node and
//! has lost spans begins one as well.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_fetch::StartId;
use soci_layerfs::MountedLayer;
use soci_oci::Digest;
use soci_profile::{Blocks, LayerReads, ProfiledLayer, Recording};
use soci_registry::Client;
use soci_store::{LayerKey, ProfileFiles, StartMark};
use soci_ztoc::SpanId;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::Artifacts;
use crate::hints::{Hints, StartHints};
use crate::image_layer::ImageKey;
use crate::index_files::FoundIndex;
use crate::lease::LeaseMap;
use crate::open_layer::OpenLayer;
use crate::player::{Player, StartedLayer};
use crate::profile_config::ProfileConfig;
use crate::profile_report::{PlayingReport, ProfileCounts, ProfileReport};
use crate::publisher::Publisher;
use crate::start_order::{StartOrder, StartOrders, StartOrigin};

/// Time between two looks at a start.
const PERIOD: Duration = Duration::from_millis(100);
/// Time between two looks at a start of which nothing is to be expected soon.
const SLOW_PERIOD: Duration = Duration::from_secs(1);
/// Time for the layers of an image to be restored after a restart.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);
/// Time for which a layer is waited for.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Number of starts that are followed at a time.
const MOST_STARTS: usize = 64;

#[derive(Debug, Default)]
struct Counters {
    recorded: AtomicU64,
    played: AtomicU64,
    stopped: AtomicU64,
    bytes: AtomicU64,
    used_bytes: AtomicU64,
}

/// The starts that are followed, by the manifest of the image.
pub(crate) struct StartUps {
    files: ProfileFiles,
    orders: Arc<StartOrders>,
    hints: Arc<Hints>,
    starts: Mutex<HashMap<Digest, Arc<StartUp>>>,
    /// Publishes what was recorded; `None`: it stays on this node.
    publisher: Option<Publisher>,
    /// The daemon ends: starts are left to the next process.
    leaving: AtomicBool,
    counters: Counters,
}

/// How a start begins.
enum Beginning {
    /// The image is pulled.
    Pulled(Arc<FoundIndex>),
    /// The daemon was restarted during the start, which an earlier process has marked.
    Restored(Arc<FoundIndex>, StartMark),
    /// A container starts from an image that stayed on the node and has lost a part of this order.
    Evicted(StartOrder),
}

impl Beginning {
    /// Whether the start is followed from its beginning. After an eviction it is not recorded: the
    /// kernel may have pages of an earlier container, and does not request what they hold.
    const fn is_whole(&self) -> bool {
        matches!(
            self,
            Self::Pulled(_) | Self::Restored(_, StartMark::Waiting)
        )
    }
}

/// The start of one image.
struct StartUp {
    image: ImageKey,
    id: StartId,
    /// It is recorded: it was followed from its beginning.
    recorded: bool,
    /// A container is about to start: what was evicted since it was played is played again.
    replay: AtomicBool,
    layers: Mutex<Vec<StartedLayer>>,
    hints: StartHints,
    /// Notified when a layer was opened.
    opened: Notify,
    playing: Mutex<Option<PlayingReport>>,
    /// A container reads.
    reading: AtomicBool,
}

impl StartUp {
    /// How the next process has to resume it: only from its beginning it can be recorded.
    fn mark(&self) -> StartMark {
        match self.reading.load(Ordering::Relaxed) || !self.recorded {
            true => StartMark::Reading,
            false => StartMark::Waiting,
        }
    }
}

impl StartUps {
    pub(crate) fn new(
        directory: PathBuf,
        client: Client,
        artifacts: Artifacts,
        config: &ProfileConfig,
        layers: Arc<LeaseMap<OpenLayer>>,
        time_limit: Duration,
        hints: Arc<Hints>,
    ) -> Arc<Self> {
        let files = ProfileFiles::new(directory, config.max_size_bytes);
        let publisher = config
            .publish
            .then(|| Publisher::new(files.clone(), client.clone(), time_limit));
        Arc::new(Self {
            publisher,
            files: files.clone(),
            orders: Arc::new(StartOrders {
                files: config.enable.then_some(files),
                client,
                artifacts,
                config: config.clone(),
                layers,
                time_limit,
            }),
            hints,
            starts: Mutex::default(),
            leaving: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Leaves the starts to the next process: that their layers are closed from now on does not end
    /// them.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Begins the start of an image that is pulled, unless it has begun.
    pub(crate) fn begin(self: &Arc<Self>, image: &ImageKey, index: &Arc<FoundIndex>) {
        let config = &self.orders.config;
        let listed = config.prefetch && !index.index.prefetch.is_empty();
        if config.enable || listed || self.hints.is_active() {
            self.follow(image, Beginning::Pulled(index.clone()));
        }
    }

    /// Begins the start of an image that stayed on the node, if a profile of it is stored there, and
    /// `is_missing` for a part of what the profile lists. Returns whether it has begun. If the image
    /// was pulled and no container has read since, what it lost is played again.
    pub(crate) async fn begin_evicted(
        self: &Arc<Self>,
        image: &ImageKey,
        is_missing: impl Fn(&LayerKey, u32) -> Option<bool>,
    ) -> bool {
        if let Some(start) = self.starts.lock().get(&image.manifest) {
            start.replay.store(true, Ordering::Relaxed);
            start.opened.notify_one();
            return false;
        }
        let Some(mut order) = self.orders.recorded(image).await else {
            return false;
        };
        let mut missing = false;
        order.spans.retain(|(layer, span)| {
            let is_missing = is_missing(layer, *span);
            missing |= is_missing == Some(true);
            is_missing.is_some()
        });
        missing && self.follow(image, Beginning::Evicted(order))
    }

    /// Resumes the start of an image that an earlier process followed: what is missing is played.
    /// It is recorded only if no container had read.
    pub(crate) async fn resume(self: &Arc<Self>, image: &ImageKey, index: &Arc<FoundIndex>) {
        let (files, manifest) = (self.files.clone(), image.manifest);
        if self.starts.lock().contains_key(&manifest) {
            return;
        }
        let marked = soci_task::run(move || files.marked(&manifest)).await;
        let config = &self.orders.config;
        let listed = config.prefetch && !index.index.prefetch.is_empty();
        if let Ok(Some(mark)) = marked
            && (config.enable || listed || self.hints.is_active())
        {
            self.follow(image, Beginning::Restored(index.clone(), mark));
        }
    }

    /// Follows a start. Returns whether it does: it may have begun, and others may need the place.
    fn follow(self: &Arc<Self>, image: &ImageKey, beginning: Beginning) -> bool {
        let reading = matches!(beginning, Beginning::Restored(_, StartMark::Reading));
        let id = StartId::unique();
        let start = Arc::new(StartUp {
            image: image.clone(),
            id,
            recorded: self.orders.config.enable && beginning.is_whole(),
            replay: AtomicBool::new(false),
            layers: Mutex::default(),
            hints: self.hints.begin(id),
            opened: Notify::new(),
            playing: Mutex::default(),
            reading: AtomicBool::new(reading),
        });
        {
            let mut starts = self.starts.lock();
            if starts.contains_key(&image.manifest) {
                return false;
            }
            if starts.len() >= MOST_STARTS {
                // An image that was pulled ahead makes room for one that starts.
                let waiting =
                    |(_, start): &(&Digest, &Arc<StartUp>)| !start.reading.load(Ordering::Relaxed);
                let Some(manifest) = starts.iter().find(waiting).map(|(manifest, _)| *manifest)
                else {
                    return false;
                };
                starts.remove(&manifest);
            }
            starts.insert(image.manifest, start.clone());
        }
        // Without a parent: it outlives the mount or the read that began it.
        let span = tracing::error_span!(
            parent: None,
            "start",
            image = %image.reference,
            manifest = %image.manifest,
        );
        let follow = follow(Arc::downgrade(self), self.orders.clone(), start, beginning);
        tokio::spawn(follow.instrument(span));
        true
    }

    /// Notes that a layer of an image is open.
    pub(crate) fn opened(&self, manifest: &Digest, key: LayerKey, layer: &OpenLayer) {
        let Some(start) = self.starts.lock().get(manifest).cloned() else {
            return;
        };
        let data = &layer.data;
        start.hints.opened(key, data, &layer.tree, &layer.watch);
        {
            let mut layers = start.layers.lock();
            let gone = |layer: &StartedLayer| layer.key == key && layer.data.strong_count() == 0;
            layers.retain(|layer| !gone(layer));
            if layers.iter().any(|layer| layer.key == key) {
                return;
            }
            layers.push(StartedLayer {
                key,
                data: Arc::downgrade(data),
                log: data.log_reads(),
                spans: data.stored().spans().clone(),
            });
        }
        start.opened.notify_one();
    }

    /// Notes that a layer of an image is mounted.
    pub(crate) fn mounted(&self, manifest: &Digest, key: LayerKey, mounted: &MountedLayer) {
        if let Some(start) = self.starts.lock().get(manifest) {
            start.hints.mounted(key, mounted);
        }
    }

    pub(crate) fn counts(&self) -> ProfileCounts {
        self.counts_with(&self.playing())
    }

    pub(crate) async fn report(&self) -> ProfileReport {
        let playing = self.playing();
        let files = self.files.clone();
        let usage = soci_task::run(move || files.usage()).await;
        let (stored, stored_bytes) = usage.unwrap_or_default();
        ProfileReport {
            enabled: self.orders.config.enable,
            counts: self.counts_with(&playing),
            stored,
            stored_bytes,
            playing,
        }
    }

    fn playing(&self) -> Vec<PlayingReport> {
        let starts = self.starts.lock();
        let playing = starts
            .values()
            .filter_map(|start| start.playing.lock().clone());
        let mut playing: Vec<_> = playing.collect();
        playing.sort_by(|one, other| one.reference.cmp(&other.reference));
        playing
    }

    fn counts_with(&self, playing: &[PlayingReport]) -> ProfileCounts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let bytes = playing.iter().map(|playing| playing.bytes);
        let used = playing.iter().map(|playing| playing.used_bytes);
        ProfileCounts {
            recorded: value(&counters.recorded),
            played: value(&counters.played),
            stopped: value(&counters.stopped),
            playing: playing.len() as u64,
            bytes: value(&counters.bytes) + bytes.sum::<u64>(),
            used_bytes: value(&counters.used_bytes) + used.sum::<u64>(),
        }
    }

    /// Counts a playback that has ended, or whose start has.
    fn count_played(&self, start: &StartUp) {
        let Some(played) = start.playing.lock().take() else {
            return;
        };
        let add = |counter: &AtomicU64, number| counter.fetch_add(number, Ordering::Relaxed);
        add(&self.counters.bytes, played.bytes);
        add(&self.counters.used_bytes, played.used_bytes);
        add(&self.counters.stopped, u64::from(played.held));
        tracing::info!(
            manifest = %played.manifest,
            origin = played.origin.word(),
            played_bytes = played.bytes,
            used_bytes = played.used_bytes,
            stopped = played.held,
            "played start-up profile"
        );
    }

    async fn mark(&self, start: &StartUp, mark: Option<StartMark>) {
        let (files, manifest) = (self.files.clone(), start.image.manifest);
        if let Err(error) = soci_task::blocking(move || files.mark(&manifest, mark)).await {
            let error = soci_errors::chain(&error);
            tracing::debug!(%manifest, error, "cannot note the start of an image");
        }
    }

    /// Stores a recording. Returns whether it is stored.
    async fn store(&self, start: &StartUp, recording: Recording) -> bool {
        let read_bytes = read_bytes(&start.layers.lock());
        let files = self.files.clone();
        let (manifest, spans) = (start.image.manifest, recording.spans.len());
        let name = start.image.reference.to_string();
        match soci_task::blocking(move || files.add(manifest, &name, recording)).await {
            Ok(()) => {
                self.counters.recorded.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%manifest, spans, read_bytes, "recorded start-up profile");
                true
            }
            Err(error) => {
                let error = soci_errors::chain(&error);
                tracing::warn!(%manifest, error, "cannot store start-up profile");
                false
            }
        }
    }

    /// Whether a start is still to be followed: others may have needed its place.
    fn follows(&self, start: &Arc<StartUp>) -> bool {
        let starts = self.starts.lock();
        let known = starts.get(&start.image.manifest);
        known.is_some_and(|known| Arc::ptr_eq(known, start))
    }
}

/// Plays and records a start until it has ended.
async fn follow(
    starts: Weak<StartUps>,
    orders: Arc<StartOrders>,
    start: Arc<StartUp>,
    beginning: Beginning,
) {
    let manifest = start.image.manifest;
    let config = &orders.config;
    let began = Instant::now();
    if let Some(starts) = starts.upgrade() {
        let mark = start.mark();
        starts.mark(&start, Some(mark)).await;
    }
    let evicted = matches!(beginning, Beginning::Evicted(_));
    let mut finding = std::pin::pin!(find_order(&orders, &start, beginning));
    let (mut found, mut period) = (false, PERIOD);
    let mut known: Option<StartOrder> = None;
    let mut player: Option<Player> = None;
    // Bytes that earlier playbacks of this start have fetched.
    let mut earlier = 0;
    let mut waits = false;
    let mut idle_since = began;
    let recording = loop {
        tokio::select! {
            biased;
            order = &mut finding, if !found => {
                found = true;
                let Some(starts) = starts.upgrade() else {
                    return;
                };
                start.hints.profile(order.as_ref().map(|(_, order)| order));
                if let Some((origin, order)) = order {
                    player = Some(Player::new(start.id, &order, config));
                    starts.counters.played.fetch_add(1, Ordering::Relaxed);
                    let report = PlayingReport {
                        reference: start.image.reference.to_string(),
                        manifest,
                        origin,
                        spans: order.spans.len() as u64,
                        bytes: 0,
                        used_bytes: 0,
                        held: false,
                        ended: false,
                    };
                    *start.playing.lock() = Some(report);
                    let spans = order.spans.len();
                    tracing::info!(%manifest, origin = origin.word(), spans, "playing start-up profile");
                    known = Some(order);
                }
            }
            () = start.opened.notified() => {}
            () = tokio::time::sleep(period) => {}
        }
        let Some(starts) = starts.upgrade() else {
            return;
        };
        if starts.leaving.load(Ordering::Relaxed) {
            return;
        }
        let layers = start.layers.lock().clone();
        let times = layers.iter().flat_map(|layer| layer.log.first_reads());
        let times: Vec<_> = times.map(|(_, at)| at).collect();
        let (first, last) = (times.iter().min().copied(), times.iter().max().copied());
        let now = Instant::now();
        if first.is_some() && !start.reading.swap(true, Ordering::Relaxed) {
            starts.mark(&start, Some(StartMark::Reading)).await;
        }
        if start.replay.swap(false, Ordering::Relaxed)
            && first.is_none()
            && let (Some(order), Some(ended)) = (&known, player.as_ref())
            && ended.has_ended()
            && lacks_spans(&layers, order)
        {
            earlier += ended.bytes();
            player = Some(Player::new(start.id, order, config));
        }
        if let Some(playing) = &mut player {
            let played = playing.step(&layers, first, now);
            if let Some(report) = start.playing.lock().as_mut() {
                (report.bytes, report.used_bytes) = (earlier + played.bytes, played.used);
                (report.held, report.ended) = (played.held, played.ended);
            }
            if played.waits && !std::mem::replace(&mut waits, true) {
                tracing::info!(%manifest, "start-up profile waits for the first read on a slow link");
            }
        }
        let busy = player.as_ref().is_some_and(|player| !player.has_ended());
        period = match first.is_some() || busy || !found {
            true => PERIOD,
            false => SLOW_PERIOD,
        };
        let open = layers.iter().any(|layer| layer.data.strong_count() > 0);
        let removed = !open && (!layers.is_empty() || now >= began + PATIENCE);
        let quiet = last.is_some_and(|last| now >= last + config.quiet);
        if busy || !found {
            idle_since = now;
        }
        // What is used is counted until a recorded start has ended, or one after an eviction, unless no
        // container reads for as long.
        let counted =
            start.recorded || (evicted && (first.is_some() || now < idle_since + config.quiet));
        let done = found && !busy && !counted;
        if removed || quiet || done || !starts.follows(&start) {
            break recording(&layers, began);
        }
    };
    drop(player);
    let Some(starts) = starts.upgrade() else {
        return;
    };
    starts.count_played(&start);
    if starts.follows(&start) {
        starts.starts.lock().remove(&manifest);
    }
    let is_stored =
        start.recorded && !recording.spans.is_empty() && starts.store(&start, recording).await;
    starts.mark(&start, None).await;
    if let Some(publisher) = starts.publisher.as_ref().filter(|_| is_stored) {
        publisher.publish(&start.image).await;
    }
}

/// Whether a span of an order is not stored.
fn lacks_spans(layers: &[StartedLayer], order: &StartOrder) -> bool {
    let open = layers.iter();
    let open = open.filter_map(|layer| Some((layer.key, layer.data.upgrade()?)));
    let open: HashMap<_, _> = open.collect();
    order.spans.iter().any(|(key, span)| {
        let Some(data) = open.get(key) else {
            return false;
        };
        let (stored, span) = (data.stored(), SpanId(*span));
        stored.spans().get(span).is_some() && !stored.has(span)
    })
}

/// Finds what is known of a start. Nothing is looked for, at a registry least of all, for an image
/// that was stored whole before the daemon was restarted.
async fn find_order(
    orders: &StartOrders,
    start: &StartUp,
    beginning: Beginning,
) -> Option<(StartOrigin, StartOrder)> {
    let (index, pulled) = match beginning {
        Beginning::Evicted(order) => return Some((StartOrigin::Recorded, order)),
        Beginning::Pulled(index) => (index, true),
        Beginning::Restored(index, _) => (index, false),
    };
    if !pulled {
        tokio::time::sleep(RESTORED_WITHIN).await;
        let is_complete = |layer: &StartedLayer| {
            let data = layer.data.upgrade();
            data.is_none_or(|data| data.stored().is_complete())
        };
        if start.layers.lock().iter().all(is_complete) {
            return None;
        }
    }
    orders.find(&start.image, &index, pulled).await
}

/// What was read since the start was begun.
fn recording(layers: &[StartedLayer], began: Instant) -> Recording {
    let reads = layers.iter().map(|layer| {
        let spans = layer.log.first_reads().into_iter();
        LayerReads {
            layer: ProfiledLayer {
                layer: layer.key.layer,
                ztoc: layer.key.ztoc,
            },
            table: layer.spans.clone(),
            spans: spans
                .map(|(span, at)| (span, at.saturating_duration_since(began)))
                .collect(),
            blocks: Blocks::new(layer.log.blocks()),
        }
    });
    Recording::of_reads(reads.collect())
}

/// Compressed size of the spans that were read.
fn read_bytes(layers: &[StartedLayer]) -> u64 {
    let sizes = layers.iter().flat_map(|layer| {
        let reads = layer.log.first_reads().into_iter();
        reads.filter_map(|(span, _)| {
            let span = layer.spans.get(SpanId(span))?.compressed;
            Some(span.end.saturating_sub(span.start))
        })
    });
    sizes.sum()
}
