//! The hints for one start: from the structure of ELF files and the neighbourhood of small ones
//! where no profile knows better, and into the page cache where it is known what will be read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::{LazyLayer, StartId};
use soci_layerfs::{ElfFindings, ElfWalk, MountedLayer, Tree, WeakMountedLayer};
use soci_store::LayerKey;
use soci_ztoc::SpanId;
use tokio::sync::mpsc;

use crate::hint_budget::{HintBudget, HintLimits, HintedSpan};
use crate::hinted_file::HintedFile;
use crate::hints::{HintEvent, HintedLayer, Hints, KnownLayer};
use crate::library_search::{find_library, parent};
use crate::page_cache_process::ReadOrder;

/// Time between two looks at what has arrived.
const PERIOD: Duration = Duration::from_millis(10);
/// Time between two looks when nothing was read for a while.
const REST: Duration = Duration::from_millis(200);
/// Number of looks after which that is so.
const MOST_IDLE: u32 = 200;
/// The kernel's readahead during a start, in KiB. A page fault reads this much around the page: most
/// of the usual readahead is not needed then, and spans beside the one with the page would be fetched
/// for it, and recorded as needed.
const START_READAHEAD_KIB: u32 = 512;
/// Files below this size have neighbours that are read as well, in bytes.
const SMALL_FILE: u64 = 1 << 20;
/// Files up to this size are read whole by the kernel, in bytes.
const READ_WHOLE: u64 = 128 << 10;
/// Number of files that are looked at in a start.
const MOST_FILES: usize = 8192;
/// Number of libraries of one folder that are looked at.
const MOST_IN_FOLDER: usize = 64;
/// Number of ranges that are remembered of a file.
const MOST_RANGES: usize = 4096;

/// What is small enough to be fetched whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WholeSizes {
    /// Layers up to this compressed size are, in bytes.
    pub(crate) layer: u64,
    /// Code up to this compressed size is, in bytes.
    pub(crate) code: u64,
}

impl Default for WholeSizes {
    fn default() -> Self {
        Self {
            layer: 120_000_000,
            code: 40_000_000,
        }
    }
}

/// The state of one start.
pub(crate) struct HintedStart {
    start: StartId,
    hints: Arc<Hints>,
    events: mpsc::WeakUnboundedSender<HintEvent>,
    layers: Vec<HintedLayer>,
    /// Not kept: a layer that is removed must go.
    mounts: HashMap<LayerKey, WeakMountedLayer>,
    profile: Option<HashMap<LayerKey, KnownLayer>>,
    budget: HintBudget,
    pub(crate) whole: WholeSizes,
    files: HashMap<(usize, u64), HintedFile>,
    /// The files in the order in which they became known.
    order: Vec<(usize, u64)>,
    /// Folders whose libraries were looked at.
    folders: HashSet<(usize, Vec<u8>)>,
    /// Whether a container has read a file.
    has_reads: bool,
    /// Number of looks since the last event.
    idle: u32,
}

impl HintedStart {
    pub(crate) fn new(
        start: StartId,
        hints: Arc<Hints>,
        events: mpsc::WeakUnboundedSender<HintEvent>,
    ) -> Self {
        Self {
            start,
            budget: HintBudget::new(HintLimits {
                unread: hints.config.max_unread_bytes,
                percent: hints.config.max_unread_percent,
            }),
            hints,
            events,
            whole: WholeSizes::default(),
            layers: Vec::new(),
            mounts: HashMap::new(),
            profile: None,
            files: HashMap::new(),
            order: Vec::new(),
            folders: HashSet::new(),
            has_reads: false,
            idle: 0,
        }
    }

    /// Replaces the switches and limits.
    #[cfg(test)]
    pub(crate) fn set_hints(&mut self, hints: Arc<Hints>) {
        self.hints = hints;
    }

    pub(crate) async fn run(mut self, mut events: mpsc::UnboundedReceiver<HintEvent>) {
        loop {
            let event = match self.wait() {
                Some(wait) => tokio::time::timeout(wait, events.recv()).await.ok(),
                None => Some(events.recv().await),
            };
            match event {
                Some(Some(event)) => {
                    self.idle = 0;
                    self.note(event);
                    // What came with it.
                    while let Ok(event) = events.try_recv() {
                        self.note(event);
                    }
                }
                Some(None) => break,
                None => self.idle = self.idle.saturating_add(1),
            }
            let looked = soci_task::run(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(start) => self = start,
                Err(_) => return,
            }
            self.fetch();
            self.fill_page_cache();
        }
        self.end();
    }

    fn end(&mut self) {
        let (granted, unread) = self.budget.bytes();
        if granted > 0 {
            tracing::info!(
                granted,
                unread,
                files = self.files.len(),
                "start-up hints ended"
            );
        }
        self.set_readahead(soci_layerfs::READAHEAD_KIB);
    }

    /// Time until the next look; `None`: nothing is waited for but a read.
    fn wait(&self) -> Option<Duration> {
        let waits =
            |file: &HintedFile| file.walk.is_some() || (file.is_read && !file.expected.is_empty());
        let busy = self.has_reads && (self.budget.is_waiting() || self.files.values().any(waits));
        let period = if self.idle < MOST_IDLE { PERIOD } else { REST };
        busy.then_some(period)
    }

    pub(crate) fn note(&mut self, event: HintEvent) {
        match event {
            HintEvent::Opened(mut layer) => {
                let number = self.layers.len();
                let events = self.events.clone();
                layer.watcher = Some(layer.watch.begin(move |ino| {
                    if let Some(events) = events.upgrade() {
                        let _ = events.send(HintEvent::Read(number, ino));
                    }
                }));
                layer.mount = self.mounts.get(&layer.key).cloned();
                self.layers.push(layer);
                if self.profile.is_some() {
                    self.whole_layer(number);
                }
            }
            HintEvent::Mounted(key, mount) => {
                if let Some(mount) = mount.upgrade() {
                    mount.set_readahead(START_READAHEAD_KIB);
                }
                if let Some(layer) = self.layers.iter_mut().find(|layer| layer.key == key) {
                    layer.mount = Some(mount.clone());
                }
                self.mounts.insert(key, mount);
            }
            HintEvent::Profile(profile) => {
                self.profile = Some(profile);
                for number in 0..self.layers.len() {
                    self.whole_layer(number);
                }
            }
            HintEvent::Read(layer, ino) => self.file_read(layer, ino),
        }
    }

    fn set_readahead(&self, kib: u32) {
        for mount in self.mounts.values().filter_map(WeakMountedLayer::upgrade) {
            mount.set_readahead(kib);
        }
    }

    /// Whether earlier starts are known.
    fn has_profile(&self) -> bool {
        self.profile.as_ref().is_some_and(|known| !known.is_empty())
    }

    /// Requests a whole layer, if it is small and nothing is known of earlier starts.
    fn whole_layer(&mut self, number: usize) {
        let Some(layer) = self.layers.get(number) else {
            return;
        };
        let spans = layer
            .data
            .upgrade()
            .map(|data| data.stored().spans().clone());
        let Some(spans) = spans else { return };
        let is_small = spans.compressed_size() <= self.whole.layer;
        if self.hints.config.enable && !self.has_profile() && is_small {
            for (span, bytes) in self.missing(number, 0..spans.len()) {
                self.budget.ask_last((number, span), bytes);
            }
        }
    }

    /// Notes that a container reads a file for the first time.
    fn file_read(&mut self, layer: usize, ino: u64) {
        self.has_reads = true;
        let Some(number) = self.known_file(layer, ino, true) else {
            return;
        };
        let blocks = self.layers.get(layer).and_then(|layer| {
            let known = self.profile.as_ref()?.get(&layer.key)?;
            Some(known.blocks.clone())
        });
        let Some(file) = self.files.get_mut(&number) else {
            return;
        };
        if file.len > READ_WHOLE
            && let Some(blocks) = blocks
        {
            file.expected.extend(file.of_blocks(&blocks));
        }
        let (start, len, is_elf) = (file.start, file.len, file.is_elf);
        // The newest file is the first.
        self.order.retain(|other| *other != number);
        self.order.push(number);
        if is_elf {
            self.libraries_beside(number);
        }
        if self.hints.config.enable && !self.has_profile() && len < SMALL_FILE {
            self.ask_neighbours(layer, start..start.saturating_add(len));
        }
    }

    /// The data of a layer, unless the layer is gone.
    fn data(&self, layer: usize) -> Option<Arc<LazyLayer>> {
        self.layers.get(layer)?.data.upgrade()
    }

    /// The spans of a small file and those next to them.
    fn ask_neighbours(&mut self, layer: usize, tar: Range<u64>) {
        let Some(data) = self.data(layer) else {
            return;
        };
        let spans = data.stored().spans();
        let covering = spans.covering(tar);
        let around =
            covering.start.saturating_sub(1)..covering.end.saturating_add(1).min(spans.len());
        self.ask(layer, around);
    }

    /// The entry of a file, made if there is none and it can have hints.
    fn known_file(&mut self, layer: usize, ino: u64, is_read: bool) -> Option<(usize, u64)> {
        let number = (layer, ino);
        if let Some(file) = self.files.get_mut(&number) {
            file.is_read |= is_read;
            return Some(number);
        }
        if self.files.len() >= MOST_FILES {
            return None;
        }
        let (start, len) = self.layers.get(layer)?.tree.extent(ino)?;
        let file = HintedFile {
            layer,
            ino,
            start,
            len,
            walk: (self.hints.config.enable && !self.is_in_profile(layer, start))
                .then(|| ElfWalk::new(len)),
            is_read,
            is_elf: false,
            expected: Vec::new(),
        };
        self.files.insert(number, file);
        self.order.push(number);
        Some(number)
    }

    /// Whether earlier starts have read the beginning of a file: then they know it better.
    fn is_in_profile(&self, layer: usize, start: u64) -> bool {
        let known = || {
            let layer = self.layers.get(layer)?;
            let known = self.profile.as_ref()?.get(&layer.key)?;
            let span = layer
                .data
                .upgrade()?
                .stored()
                .spans()
                .at_uncompressed(start)?;
            Some(known.spans.contains(&span.0))
        };
        known().unwrap_or(false)
    }

    /// Looks further into files of which more is stored than before. Reads from the store.
    pub(crate) fn look(&mut self) {
        let mut at = 0;
        // Files that are found in others are looked at, too.
        while let Some(number) = self.order.get(at).copied() {
            at += 1;
            let (layer, _) = number;
            let Some(data) = self.data(layer) else {
                continue;
            };
            let file = self.files.get_mut(&number);
            let Some(file) = file.filter(|file| file.walk.is_some()) else {
                continue;
            };
            let found = file.look(&data);
            self.use_findings(number, found);
        }
        self.order.retain(|number| {
            let file = self.files.get(number);
            file.is_some_and(|file| file.walk.is_some() || !file.expected.is_empty())
        });
    }

    fn use_findings(&mut self, number: (usize, u64), found: ElfFindings) {
        let Some(file) = self.files.get_mut(&number) else {
            return;
        };
        let layer = file.layer;
        file.is_elf |= !found.touched.is_empty();
        let is_elf = file.is_elf && file.is_read;
        let urgent: Vec<_> = found.next.iter().map(|range| file.in_tar(range)).collect();
        let room = MOST_RANGES.saturating_sub(file.expected.len());
        let touched: Vec<_> = found
            .touched
            .iter()
            .map(|range| file.in_tar(range))
            .collect();
        file.expected.extend(found.touched.into_iter().take(room));
        let code = found.code.clone().map(|range| file.in_tar(&range));
        for tar in urgent {
            self.fetch_urgently(layer, tar);
        }
        let Some(data) = self.data(layer) else {
            return;
        };
        let spans = data.stored().spans();
        for tar in touched {
            self.ask(layer, spans.covering(tar));
        }
        if let Some(tar) = code {
            let covering = spans.covering(tar);
            if covering.clone().map(|span| size(&data, span)).sum::<u64>() <= self.whole.code {
                self.ask(layer, covering);
                if let (Some(file), Some(code)) = (self.files.get_mut(&number), found.code) {
                    file.expected.push(code);
                }
            }
        }
        if is_elf {
            self.libraries_beside(number);
        }
        if found.needed.is_empty() {
            return;
        }
        let Some(tree) = self.layers.get(layer).map(|layer| layer.tree.clone()) else {
            return;
        };
        let path = tree.path(number.1);
        for name in found.needed {
            let layers = self.layers.iter().enumerate();
            let own_first = layers
                .clone()
                .filter(|(at, _)| *at == layer)
                .chain(layers.filter(|(at, _)| *at != layer));
            let trees: Vec<_> = own_first
                .map(|(at, layer)| (at, layer.tree.clone()))
                .collect();
            let trees = trees.iter().map(|(at, tree)| (*at, &**tree));
            if let Some((layer, ino)) = find_library(trees, &path, &name, &found.search) {
                self.known_file(layer, ino, false);
            }
        }
    }

    /// Looks at the other libraries in the folder of a file that is read, unless it is a folder of
    /// the whole system.
    fn libraries_beside(&mut self, (layer, ino): (usize, u64)) {
        let Some(tree) = self.layers.get(layer).map(|layer| layer.tree.clone()) else {
            return;
        };
        let path = tree.path(ino);
        let folder = parent(&path);
        if self.has_profile() || !self.folders.insert((layer, folder.to_vec())) {
            return;
        }
        let Some(folder) = tree.find(folder) else {
            return;
        };
        let is_library = |name: &[u8]| name.windows(3).any(|part| part == b".so");
        let entries = tree.readdir(folder, 2).into_iter().flatten();
        let libraries = entries.filter(|entry| is_library(entry.name));
        let libraries: Vec<u64> = libraries
            .take(MOST_IN_FOLDER + 1)
            .map(|entry| entry.ino)
            .collect();
        if libraries.len() <= MOST_IN_FOLDER {
            for library in libraries {
                self.known_file(layer, library, false);
            }
        }
    }

    /// Fetches what is needed to look further: little, and soon.
    fn fetch_urgently(&mut self, layer: usize, tar: Range<u64>) {
        let Some(data) = self.data(layer).filter(|_| !self.is_slow()) else {
            return;
        };
        let covering = data.stored().spans().covering(tar);
        let missing = self.missing(layer, covering).into_iter();
        let mut room = self.room();
        let new: Vec<u32> = missing
            .filter(|(span, _)| take(&mut room, uncompressed_size(&data, *span)))
            .filter(|(span, bytes)| self.budget.take((layer, *span), *bytes))
            .map(|(span, _)| span)
            .collect();
        if !new.is_empty() {
            data.fetch_ahead(&new);
        }
    }

    fn ask(&mut self, layer: usize, spans: Range<u32>) {
        for (span, bytes) in self.missing(layer, spans) {
            self.budget.ask((layer, span), bytes);
        }
    }

    /// The spans that are not stored, with their compressed size.
    fn missing(&self, layer: usize, spans: Range<u32>) -> Vec<(u32, u64)> {
        let Some(data) = self.data(layer) else {
            return Vec::new();
        };
        let missing = spans.filter(|span| !data.stored().has(SpanId(*span)));
        let sized = missing.map(|span| (span, size(&data, span)));
        sized.collect()
    }

    /// Uncompressed bytes that hints may still bring into the store: what was granted and has not
    /// arrived will need its part. What hints fetch evicts nothing.
    fn room(&self) -> u64 {
        let open: Vec<_> = self
            .layers
            .iter()
            .map(|layer| layer.data.upgrade())
            .collect();
        let room = open.iter().flatten().next();
        let room = room.map_or(0, |data| data.stored().room_for_start());
        let on_their_way = self.budget.unread().filter_map(|(layer, span)| {
            let data = open.get(layer)?.as_ref()?;
            (!data.stored().has(SpanId(span))).then(|| uncompressed_size(data, span))
        });
        room.saturating_sub(on_their_way.sum())
    }

    /// Whether the link to the registry is too slow for hints. One whose rate is not known counts as
    /// fast: the first reads of the container, which come before any hint, begin to show it, and the
    /// budget bounds what is fetched until then.
    fn is_slow(&self) -> bool {
        let open = self.layers.iter().filter_map(|layer| layer.data.upgrade());
        let mut rates = open.filter_map(|data| data.link_rate());
        rates.any(|rate| rate < self.hints.config.min_link_rate)
    }

    /// Fetches what the budget and the store allow.
    pub(crate) fn fetch(&mut self) {
        if !self.budget.is_waiting() {
            return;
        }
        let open: Vec<_> = self
            .layers
            .iter()
            .map(|layer| layer.data.upgrade())
            .collect();
        if self.is_slow() {
            return;
        }
        let read_bytes = self.layers.iter().zip(&open).map(|(layer, data)| {
            let Some(data) = data else { return 0 };
            let reads = layer.log.first_reads();
            reads
                .into_iter()
                .map(|(span, _)| size(data, span))
                .sum::<u64>()
        });
        let read_bytes = read_bytes.sum();
        let layers = &self.layers;
        let was_read = |(layer, span): HintedSpan| {
            layers
                .get(layer)
                .is_some_and(|layer| layer.log.was_read(span))
        };
        let mut room = self.room();
        let take_room = |(layer, span): HintedSpan| {
            let data = open.get(layer).and_then(Option::as_ref);
            data.is_some_and(|data| take(&mut room, uncompressed_size(data, span)))
        };
        let mut lists = vec![Vec::new(); layers.len()];
        for (layer, span) in self.budget.grant(read_bytes, was_read, take_room) {
            if let Some(list) = lists.get_mut(layer) {
                list.push(span);
            }
        }
        for (data, list) in open.iter().zip(&lists) {
            if let Some(data) = data.as_ref().filter(|_| !list.is_empty()) {
                data.prefetch_each(list, self.start);
            }
        }
    }

    /// Reads what is stored of files that are read, and expected to be read, into the page
    /// cache: the newest file first.
    fn fill_page_cache(&mut self) {
        let Some(page_cache) = self.hints.page_cache.clone() else {
            return;
        };
        for number in self.order.iter().rev() {
            if !page_cache.has_room() {
                return;
            }
            let Some(file) = self.files.get_mut(number) else {
                continue;
            };
            let layer = self.layers.get(file.layer);
            let ready = layer.and_then(|layer| {
                Some((
                    layer.mount.as_ref()?.upgrade()?,
                    layer.data.upgrade()?,
                    layer,
                ))
            });
            let Some((mount, data, layer)) =
                ready.filter(|_| file.is_read && file.len > READ_WHOLE)
            else {
                continue;
            };
            let ranges = file.take_stored(&data);
            if !ranges.is_empty() && mount.is_served() {
                page_cache.read(order(&mount, &layer.tree, file.ino, ranges));
            }
        }
    }
}

fn order(mount: &MountedLayer, tree: &Tree, ino: u64, ranges: Vec<Range<u64>>) -> ReadOrder {
    use std::os::unix::ffi::OsStringExt as _;
    let mountpoint: PathBuf = mount.mountpoint().to_owned();
    ReadOrder {
        mount: mountpoint.into_os_string().into_vec(),
        path: tree.path(ino),
        ranges,
    }
}

/// Compressed size of a span in bytes.
fn size(data: &LazyLayer, span: u32) -> u64 {
    let span = data.stored().spans().get(SpanId(span));
    span.map_or(0, |span| {
        span.compressed.end.saturating_sub(span.compressed.start)
    })
}

/// Uncompressed size of a span in bytes.
pub(crate) fn uncompressed_size(data: &LazyLayer, span: u32) -> u64 {
    let span = data.stored().spans().get(SpanId(span));
    span.map_or(0, |span| {
        let range = span.uncompressed;
        range.end.saturating_sub(range.start)
    })
}

/// Takes a part of the room; false if there is not as much.
fn take(room: &mut u64, bytes: u64) -> bool {
    let left = room.checked_sub(bytes);
    *room = left.unwrap_or(*room);
    left.is_some()
}
