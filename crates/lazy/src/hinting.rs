//! Tests of hints for a start, on layers whose registry is in memory.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::{FetchConfig, LayerData as _, LazyLayer, SpanFetcher, StartId};
use soci_layerfs::{Tree, TreeOptions};
use soci_oci::Digest;
use soci_registry::testing::{Fault, MemoryBlob};
use soci_store::{LayerKey, LayerStore, LayerStoreConfig};
use soci_ztoc::SpanId;
use tokio::sync::mpsc;

use crate::HintConfig;
use crate::hinted_start::{HintedStart, WholeSizes};
use crate::hints::{HintEvent, HintedLayer, Hints, KnownLayer};

/// Uncompressed, and as the layers are plain tars also compressed size of a span.
const SPAN: u64 = 16 << 10;
/// Length of the ELF files.
const ELF: usize = 512 << 10;
/// Where their code is.
const CODE: Range<u64> = (200 << 10)..(300 << 10);

struct HeldLayer {
    data: Arc<LazyLayer>,
    tree: Arc<Tree>,
    blob: MemoryBlob,
}

/// A start whose layers hold these files.
struct Rig {
    start: HintedStart,
    layers: Vec<HeldLayer>,
    fetcher: Arc<SpanFetcher>,
    store: LayerStore,
    _dir: tempfile::TempDir,
    _events: mpsc::UnboundedSender<HintEvent>,
}

impl Rig {
    fn new() -> Self {
        Self::with_store(LayerStoreConfig::default())
    }

    /// No layer is small enough to be fetched whole.
    fn with_store(store: LayerStoreConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = FetchConfig {
            max_readahead: 0,
            ..FetchConfig::default()
        };
        let (events, _) = mpsc::unbounded_channel();
        let mut start = HintedStart::new(
            StartId::unique(),
            Hints::new(&HintConfig::default()),
            events.downgrade(),
        );
        start.whole.layer = 0;
        start.note(HintEvent::Profile(HashMap::new()));
        Self {
            start,
            layers: Vec::new(),
            fetcher: SpanFetcher::new(config, tokio::runtime::Handle::current()),
            store: LayerStore::open(&dir.path().join("layers"), store).unwrap(),
            _dir: dir,
            _events: events,
        }
    }

    fn layer(&mut self, files: &[(&str, Vec<u8>)]) {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, path, &content[..]).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let options = soci_ztoc::BuildOptions {
            span_size: SPAN,
            ..Default::default()
        };
        let kind = soci_ztoc::Compression::Uncompressed;
        let ztoc = soci_ztoc::build(&tar[..], kind, options)
            .unwrap()
            .ztoc
            .encode();
        let key = LayerKey {
            layer: Digest::of(&tar),
            ztoc: Digest::of(&ztoc),
        };
        let opened = self.store.create_or_open_with_index(key, Some(ztoc.into()));
        let (stored, index) = opened.unwrap();
        stored.standing().set_in_use(true);
        let blob = MemoryBlob::new(tar);
        let layer = HeldLayer {
            data: self.fetcher.add_layer(stored, Arc::new(blob.clone())),
            tree: Arc::new(Tree::of_index(&index, TreeOptions::default()).unwrap()),
            blob,
        };
        self.start.note(HintEvent::Opened(HintedLayer {
            key,
            data: Arc::downgrade(&layer.data),
            tree: layer.tree.clone(),
            log: layer.data.log_reads(),
            watch: Arc::default(),
            watcher: None,
            mount: None,
        }));
        self.layers.push(layer);
    }

    fn key(&self, layer: usize) -> LayerKey {
        self.layers[layer].data.stored().key()
    }

    /// The spans with a part of a file.
    fn spans(&self, layer: usize, path: &str, part: Range<u64>) -> BTreeSet<u32> {
        let layer = &self.layers[layer];
        let ino = layer.tree.find(path.as_bytes()).unwrap();
        let (start, len) = layer.tree.extent(ino).unwrap();
        let part = start + part.start..start + part.end.min(len);
        layer.data.stored().spans().covering(part).collect()
    }

    /// A container reads a part of a file.
    async fn read(&mut self, layer: usize, path: &str, part: Range<u64>) {
        let held = &self.layers[layer];
        let ino = held.tree.find(path.as_bytes()).unwrap();
        let (start, _) = held.tree.extent(ino).unwrap();
        let (send, answer) = tokio::sync::oneshot::channel();
        let done = move |read: Result<_, _>| send.send(read.map(|_| ())).unwrap_or_default();
        let length = usize::try_from(part.end - part.start).unwrap();
        // As the file system does.
        let mut buffer = vec![0; length];
        if !held.data.try_read(start + part.start, &mut buffer).unwrap() {
            held.data.read(start + part.start, length, Box::new(done));
            answer.await.unwrap().unwrap();
        }
        self.start.note(HintEvent::Read(layer, ino));
    }

    fn stored(&self, layer: usize) -> BTreeSet<u32> {
        let stored = self.layers[layer].data.stored();
        let all = 0..stored.spans().len();
        all.filter(|span| stored.has(SpanId(*span))).collect()
    }

    /// Continues until hints request nothing more. Returns what is stored of each layer.
    async fn settle(&mut self) -> Vec<BTreeSet<u32>> {
        let all = |rig: &Self| -> Vec<_> {
            let layers = 0..rig.layers.len();
            layers.map(|layer| rig.stored(layer)).collect()
        };
        for _ in 0..200 {
            self.idle().await;
            let before = all(self);
            self.start.look();
            self.start.fetch();
            self.idle().await;
            if all(self) == before {
                return before;
            }
        }
        panic!("hints do not end");
    }

    async fn idle(&self) {
        for _ in 0..6000 {
            let stats = self.fetcher.stats();
            if stats.requests_in_flight == 0 && stats.memory_in_use == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("requests do not end");
    }
}

fn union(sets: &[BTreeSet<u32>]) -> BTreeSet<u32> {
    sets.iter().flatten().copied().collect()
}

/// An ELF file with code that needs these libraries.
fn elf(needed: &[&str]) -> Vec<u8> {
    const LOAD: u64 = 1;
    const DYNAMIC: u64 = 2;
    const EXECUTABLE: u64 = 1 << 32;
    let (dynamic, strings) = (4096, 8192);
    let mut names = vec![0];
    let mut entries = Vec::new();
    for name in needed {
        entries.push((1, names.len() as u64));
        names.extend(name.as_bytes());
        names.push(0);
    }
    entries.extend([(5, strings), (10, names.len() as u64), (0, 0)]);
    let code = CODE.end - CODE.start;
    let segments = [
        (LOAD, 0, ELF as u64),
        (LOAD | EXECUTABLE, CODE.start, code),
        (DYNAMIC, dynamic, 16 * entries.len() as u64),
    ];
    file_of(&segments, dynamic, &entries, strings, &names)
}

fn file_of(
    segments: &[(u64, u64, u64)],
    dynamic: u64,
    entries: &[(u64, u64)],
    strings: u64,
    names: &[u8],
) -> Vec<u8> {
    let mut file = vec![0; ELF];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[32], file[54]) = (64, 56);
    file[56] = u8::try_from(segments.len()).unwrap();
    let mut put = |at: u64, value: u64| {
        let at = usize::try_from(at).unwrap();
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    for (number, (kind, start, length)) in (0..).zip(segments) {
        let at = 64 + 56 * number;
        for (field, value) in [(0, kind), (8, start), (16, start), (32, length)] {
            put(at + field, *value);
        }
    }
    for (number, (tag, value)) in (0..).zip(entries) {
        put(dynamic + 16 * number, *tag);
        put(dynamic + 16 * number + 8, *value);
    }
    let at = usize::try_from(strings).unwrap();
    file[at..at + names.len()].copy_from_slice(names);
    file
}

fn zeros(length: u64) -> Vec<u8> {
    vec![0; usize::try_from(length).unwrap()]
}

#[tokio::test]
async fn the_neighbours_of_a_small_file_are_fetched_with_it() {
    for known in [false, true] {
        let mut rig = Rig::new();
        let small = |name| (name, zeros(5 * SPAN));
        let files = [
            small("a"),
            small("b"),
            small("c"),
            ("large", zeros(1 << 20)),
        ];
        rig.layer(&files);
        if known {
            let known = [(rig.key(0), KnownLayer::default())].into();
            rig.start.note(HintEvent::Profile(known));
        }
        rig.read(0, "b", 0..100).await;
        rig.read(0, "large", (1 << 19)..(1 << 19) + 100).await;
        let whole = rig.spans(0, "b", 0..5 * SPAN);
        let (first, last) = (*whole.first().unwrap(), *whole.last().unwrap());
        let page = rig.spans(0, "large", (1 << 19)..(1 << 19) + 100);
        // Whether it is an ELF file.
        let header = rig.spans(0, "large", 0..64);
        let expected = match known {
            // A profile knows better.
            true => union(&[rig.spans(0, "b", 0..100), page, header]),
            false => union(&[(first - 1..last + 2).collect(), page, header]),
        };
        assert_eq!(rig.settle().await, [expected]);
    }
}

#[tokio::test]
async fn small_layers_are_fetched_whole_once_a_container_reads() {
    for has_profile in [false, true] {
        let mut rig = Rig::new();
        rig.start.whole.layer = 2_000_000;
        if has_profile {
            let key = LayerKey {
                layer: Digest::of(b"layer"),
                ztoc: Digest::of(b"ztoc"),
            };
            let known = [(key, KnownLayer::default())].into();
            rig.start.note(HintEvent::Profile(known));
        }
        rig.layer(&[("a", zeros(1_500_000))]);
        rig.layer(&[("b", zeros(2_500_000))]);
        assert_eq!(rig.settle().await, [BTreeSet::new(), BTreeSet::new()]);
        rig.read(1, "b", 0..100).await;
        let page = rig.spans(1, "b", 0..100);
        let whole = (0..rig.layers[0].data.stored().spans().len()).collect();
        let first = if has_profile { BTreeSet::new() } else { whole };
        assert_eq!(rig.settle().await, [first, page]);
    }
}

#[tokio::test]
async fn libraries_beside_one_that_is_read_are_fetched() {
    for others in [1, 64] {
        let mut rig = Rig::new();
        let mut files = vec![
            ("opt/app/read.so", elf(&[])),
            ("opt/app/beside.so.1", elf(&[])),
            ("opt/app/program", elf(&[])),
            ("opt/other/far.so", elf(&[])),
        ];
        let names: Vec<String> = (1..others).map(|n| format!("opt/app/{n}.so")).collect();
        files.extend(names.iter().map(|name| (&name[..], Vec::new())));
        rig.layer(&files);
        rig.read(0, "opt/app/read.so", 0..100).await;
        let [stored] = &rig.settle().await[..] else {
            panic!("one layer");
        };
        let code = |file: &str| rig.spans(0, file, CODE);
        assert!(stored.is_superset(&code("opt/app/read.so")), "{stored:?}");
        let beside = code("opt/app/beside.so.1");
        // In a folder with as many libraries it says nothing.
        assert_eq!(stored.is_superset(&beside), others == 1, "{stored:?}");
        for other in ["opt/app/program", "opt/other/far.so"] {
            let inside = rig.spans(0, other, 2 * SPAN..ELF as u64 - 2 * SPAN);
            assert!(stored.is_disjoint(&inside), "{other}: {stored:?}");
        }
    }
}

#[tokio::test]
async fn code_is_fetched_up_to_a_limit() {
    for (limit, fetched) in [(u64::MAX, true), (50_000, false)] {
        let mut rig = Rig::new();
        rig.start.whole = WholeSizes {
            layer: 0,
            code: limit,
        };
        // Large enough to have no neighbours.
        let mut program = elf(&[]);
        program.resize(1 << 20, 0);
        rig.layer(&[("program", program)]);
        rig.read(0, "program", 0..100).await;
        let code = rig.spans(0, "program", CODE.start + SPAN..CODE.end - SPAN);
        let stored = rig.settle().await.remove(0);
        let found = stored.intersection(&code).count();
        assert_eq!(found, if fetched { code.len() } else { 0 }, "{stored:?}");
    }
}

#[tokio::test]
async fn needed_libraries_are_found_in_all_layers_and_may_need_each_other() {
    let mut rig = Rig::new();
    rig.layer(&[
        ("usr/bin/app", elf(&["libone.so"])),
        ("usr/lib/libtwo.so", elf(&["libone.so", "libtwo.so"])),
        ("usr/lib/libunused.so", elf(&["libone.so"])),
    ]);
    rig.layer(&[
        ("usr/lib/libone.so", elf(&["libtwo.so", "libnone.so"])),
        ("usr/lib/libother.so", elf(&[])),
    ]);
    rig.read(0, "usr/bin/app", 0..100).await;
    let stored = rig.settle().await;
    let code = |layer, file: &str| rig.spans(layer, file, CODE);
    assert!(stored[1].is_superset(&code(1, "usr/lib/libone.so")));
    assert!(stored[0].is_superset(&code(0, "usr/lib/libtwo.so")));
    assert!(stored[0].is_disjoint(&code(0, "usr/lib/libunused.so")));
    assert!(stored[1].is_disjoint(&code(1, "usr/lib/libother.so")));
    // Nothing of it twice.
    for layer in &rig.layers {
        let requests = layer.blob.requests();
        let bytes: u64 = requests.iter().map(|range| range.end - range.start).sum();
        let stored = layer.data.stored().stored_spans() * SPAN;
        assert!(bytes <= stored, "{bytes} of {stored}");
    }
}

#[tokio::test]
async fn headers_that_lie_cost_no_more_than_the_spans_with_the_headers() {
    let (end, far) = (1 << 20, 1 << 62);
    let names = b"\0liar.so\0/";
    let dynamic = |start, length| [(1, 0, end), (2, start, length)];
    let lies = [
        // The dynamic section lies behind the end, or is longer than the file.
        file_of(&dynamic(end, 4096), 4096, &[], 8192, names),
        file_of(&dynamic(4096, far), 4096, &[], 8192, names),
        // Names, tables and functions lie behind the end.
        file_of(
            &dynamic(4096, 160),
            4096,
            &[
                (1, far),
                (5, far),
                (10, far),
                (6, far),
                (7, far),
                (8, far),
                (12, far),
                (13, end),
            ],
            8192,
            names,
        ),
        // It needs itself, what has no name, and what is not a file.
        file_of(
            &dynamic(4096, 96),
            4096,
            &[(1, 1), (1, 0), (1, 9), (5, 8192), (10, 10), (0, 0)],
            8192,
            names,
        ),
        {
            let mut headers_behind_the_end = elf(&[]);
            headers_behind_the_end[39] = 0x40;
            headers_behind_the_end
        },
    ];
    for (number, lie) in (0..).zip(lies) {
        let mut rig = Rig::new();
        let mut lie = lie;
        // Large enough to have no neighbours.
        lie.resize(1 << 20, 0);
        rig.layer(&[("usr/lib/liar.so", lie), ("usr/lib/other", elf(&[]))]);
        rig.read(0, "usr/lib/liar.so", 0..100).await;
        let stored = rig.settle().await.remove(0);
        // A table without a length has at most 64 KiB.
        let headers = rig.spans(0, "usr/lib/liar.so", 0..8192 + (64 << 10));
        assert!(stored.is_subset(&headers), "{number}: {stored:?}");
    }
}

#[tokio::test]
async fn on_a_slow_link_nothing_is_fetched_for_hints() {
    let mut rig = Rig::new();
    rig.layer(&[("a", zeros(200 * SPAN)), ("app", elf(&[]))]);
    let layer = &rig.layers[0];
    layer
        .blob
        .fault_always(Some(Fault::Delay(Duration::from_millis(200))));
    // Apart from each other, as requests for neighbours are joined: more than are made at a time.
    let apart: Vec<u32> = (0..60).map(|number| 3 * number).collect();
    layer.data.prefetch_each(&apart, StartId::unique());
    rig.idle().await;
    let layer = &rig.layers[0];
    layer.blob.fault_always(None);
    let rate = layer.data.link_rate().expect("the link was full");
    assert!(rate < HintConfig::default().min_link_rate, "{rate}");
    let before = rig.stored(0);
    rig.read(0, "app", 0..100).await;
    let page = rig.spans(0, "app", 0..100);
    assert_eq!(rig.settle().await, [union(&[before, page])]);
    // With another idea of what is slow.
    let config = HintConfig {
        min_link_rate: rate,
        ..HintConfig::default()
    };
    rig.start.set_hints(Hints::new(&config));
    let code = rig.spans(0, "app", CODE);
    assert!(rig.settle().await[0].is_superset(&code));
}

#[tokio::test]
async fn hints_evict_nothing_from_a_store_that_is_full() {
    let read = 40_000;
    for (budget, fetched) in [(None, true), (Some(read), false)] {
        let mut rig = Rig::with_store(LayerStoreConfig {
            budget_bytes: budget,
            ..LayerStoreConfig::default()
        });
        rig.layer(&[("app", elf(&[])), ("other", zeros(1 << 20))]);
        rig.read(0, "other", 0..read).await;
        let page = rig.spans(0, "other", 0..read);
        rig.read(0, "app", 0..100).await;
        let page = union(&[page, rig.spans(0, "app", 0..100)]);
        let stored = rig.settle().await.remove(0);
        let code = rig.spans(0, "app", CODE);
        assert_eq!(stored.is_superset(&code), fetched, "{stored:?}");
        assert_eq!(stored == page, !fetched, "{stored:?}");
    }
}
