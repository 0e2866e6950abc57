//! Which spans make room, which stay, and what a crash or a failing disk in between leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use soci_store::{LayerStore, LayerStoreConfig, StoreError, StoredLayer};
use soci_ztoc::SpanId;

use crate::layers::Sample;

const BUDGET: u64 = 700_000;

fn with_budget(dir: &Path, budget_bytes: u64) -> LayerStore {
    let config = LayerStoreConfig {
        budget_bytes: Some(budget_bytes),
        ..LayerStoreConfig::default()
    };
    LayerStore::open(dir, config).unwrap()
}

fn write(sample: &Sample, layer: &StoredLayer, ids: std::ops::Range<u32>) {
    for id in ids {
        layer
            .write_span(SpanId(id), sample.truth(layer, id))
            .unwrap();
    }
}

/// As background filling writes: old from the start.
fn write_ahead(sample: &Sample, layer: &StoredLayer, ids: std::ops::Range<u32>) {
    for id in ids {
        layer
            .write_ahead(SpanId(id), sample.truth(layer, id))
            .unwrap();
    }
}

fn allocated(dir: &Path, sample: &Sample) -> u64 {
    fs::metadata(sample.folder(dir).join("data"))
        .unwrap()
        .blocks()
        * 512
}

/// Two layers; a budget that holds about two thirds of one.
fn two(dir: &Path) -> (LayerStore, [Sample; 2], [Arc<StoredLayer>; 2]) {
    let samples = [Sample::new(50_000), Sample::new(60_000)];
    let store = with_budget(dir, BUDGET);
    let layers = [samples[0].open(&store), samples[1].open(&store)];
    (store, samples, layers)
}

#[test]
fn layers_without_containers_go_before_layers_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (store, samples, [used, idle]) = two(dir.path());
    used.standing().set_in_use(true);
    used.standing().note_source(true);
    // The layer in use is the older one.
    write_ahead(&samples[0], &used, 0..6);
    write(&samples[1], &idle, 0..6);
    let before = used.stored_spans();
    write(&samples[0], &used, 10..14);
    assert_eq!(used.stored_spans(), before + 4);
    assert!(idle.stored_spans() < 6);
    assert!(store.usage().evicted_bytes > 0);
    // When nothing else is left, its old spans go.
    write(&samples[0], &used, 6..10);
    write(&samples[0], &used, 14..17);
    assert!(!used.has(SpanId(0)));
    samples[0].check(&used);
    samples[1].check(&idle);
}

#[test]
fn what_may_not_come_again_and_what_was_just_read_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, samples, [used, idle]) = two(dir.path());
    used.standing().set_in_use(true);
    write_ahead(&samples[0], &used, 0..10);
    idle.standing().note_source(false);
    write_ahead(&samples[1], &idle, 0..1);
    // Its source has not answered yet: nothing goes, and what a reader needs is stored above the limit.
    write(&samples[0], &used, 10..16);
    assert_eq!((used.stored_spans(), idle.stored_spans()), (16, 1));
    assert!(store.is_over());
    let refused = used.write_ahead(SpanId(16), samples[0].truth(&used, 16));
    assert!(matches!(refused, Err(StoreError::OverLimit { .. })));
    let trimmed = store.trim();
    assert_eq!(trimmed.freed, 0);
    let unproven: Vec<_> = trimmed.unproven.iter().map(|layer| layer.key()).collect();
    assert!(unproven.contains(&used.key()) && unproven.contains(&idle.key()));
    // Proven: what was not read goes, what was read a moment ago does not.
    used.standing().note_source(true);
    samples[0].read_one(&used, 3);
    let trimmed = store.trim();
    assert!(trimmed.freed > 0);
    assert!(!store.is_over());
    assert!((10..16).all(|id| used.has(SpanId(id))));
    assert!(used.has(SpanId(3)));
    assert_eq!(idle.stored_spans(), 1);
    // The source is gone: nothing goes any more.
    used.standing().note_source(false);
    let here = used.stored_spans();
    store.set_elsewhere(BUDGET);
    assert_eq!(store.trim().freed, 0);
    assert_eq!(used.stored_spans(), here);
}

#[test]
fn layers_in_other_forms_take_their_part_of_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (store, samples, [layer, _]) = two(dir.path());
    write(&samples[0], &layer, 0..8);
    assert!(!store.is_over());
    store.set_elsewhere(BUDGET - 100_000);
    assert!(store.is_over());
    assert_eq!(layer.spare_room(), 0);
    let _ = store.trim();
    let usage = store.usage();
    assert!(usage.stored_bytes <= 100_000, "{usage:?}");
    assert_eq!(usage.budget_bytes, Some(BUDGET));
    assert_eq!(usage.elsewhere_bytes, BUDGET - 100_000);
}

#[test]
fn a_percentage_of_the_disk_is_a_budget() {
    let dir = tempfile::tempdir().unwrap();
    let config = |percent, bytes| LayerStoreConfig {
        budget_percent: percent,
        budget_bytes: bytes,
        ..LayerStoreConfig::default()
    };
    let total = soci_dirtree::Space::at(dir.path()).unwrap().total;
    for (percent, bytes, limit) in [
        (50, None, Some(total / 100 * 50)),
        (50, Some(1000), Some(1000)),
        (50, Some(u64::MAX), Some(total / 100 * 50)),
        (0, None, None),
    ] {
        let store = LayerStore::open(dir.path(), config(percent, bytes)).unwrap();
        assert_eq!(store.usage().budget_bytes, limit);
    }
}

/// Needs root: mounts a tmpfs of 6 MiB.
#[test]
fn a_full_disk_is_room_for_what_readers_need_as_long_as_something_may_go() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=6m")
        .expect("this test needs root");
    let result = std::panic::catch_unwind(|| {
        // Something else takes a part of the space.
        fs::write(dir.path().join("other"), vec![7; 3 << 19]).unwrap();
        let reserve = soci_dirtree::Reserve { percent: 30 };
        let config = LayerStoreConfig {
            reserve,
            ..LayerStoreConfig::default()
        };
        let store = LayerStore::open(dir.path(), config).unwrap();
        let samples = [Sample::new(50_000), Sample::new(60_000)];
        let [idle, used] = [samples[0].open(&store), samples[1].open(&store)];
        used.standing().set_in_use(true);
        samples[0].fill(&idle);
        samples[1].fill(&used);
        assert!(used.is_complete());
        assert!(!idle.is_complete());
        let space = soci_dirtree::Space::at(dir.path()).unwrap();
        assert!(space.free >= space.total / 100 * 30, "{space:?}");
        samples[0].check(&idle);
        samples[1].check(&used);
    });
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_removed_layer_with_readers_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let store = with_budget(dir.path(), u64::MAX);
    let layer = sample.open(&store);
    sample.fill(&layer);
    layer.sync().unwrap();
    assert!(allocated(dir.path(), &sample) > 1 << 20);
    assert_eq!(layer.release().unwrap(), sample.len());
    assert!(allocated(dir.path(), &sample) <= 64 << 10);
    assert_eq!(sample.check(&layer), 0);
    // A reader that continues gets it again.
    write(&sample, &layer, 4..5);
    assert_eq!(sample.check(&layer), 1);
}

#[test]
fn space_that_a_crash_left_without_a_record_is_freed_when_the_layer_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let store = with_budget(dir.path(), u64::MAX);
    let layer = sample.open(&store);
    write(&sample, &layer, 0..3);
    layer.sync().unwrap();
    drop((layer, store));
    // As if the others had been written, and the process had died before they were recorded.
    let data = sample.folder(dir.path()).join("data");
    fs::write(&data, sample.tar()).unwrap();
    fs::File::open(&data).unwrap().sync_all().unwrap();
    let store = with_budget(dir.path(), u64::MAX);
    let layer = sample.reopen(&store).unwrap();
    assert_eq!(sample.check(&layer), 3);
    let left = allocated(dir.path(), &sample);
    assert!(left <= 200_000, "{left}");
}

/// The steps at which the disk can refuse, in a process of its own for each.
const STEPS: [&str; 5] = [
    "store-write-data",
    "store-sync-data",
    "store-write-record",
    "store-sync-record",
    "store-punch",
];
/// The steps between which the process can die.
const POINTS: [&str; 2] = ["store-evict-recorded", "store-evict-punched"];
const DIR: &str = "SOCI_TEST_EVICTION_DIR";

#[test]
fn a_disk_that_fails_at_any_step_costs_spans_and_never_the_truth() {
    if let Some(dir) = std::env::var_os(DIR) {
        return churn(Path::new(&dir));
    }
    for step in STEPS.iter().chain(&POINTS) {
        // In memory: syncs are many.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads=1"])
            .arg("eviction::a_disk_that_fails_at_any_step_costs_spans_and_never_the_truth")
            .env(DIR, dir.path())
            .env(soci_faults::VARIABLE, *step)
            .output()
            .unwrap();
        let died = POINTS.contains(step);
        let text = String::from_utf8_lossy(&child.stdout);
        assert_eq!(child.status.success(), !died, "{step}: {text}");
        // The next process finds the truth or nothing, and frees what is not on record.
        let samples = [Sample::new(50_000), Sample::new(60_000)];
        let store = with_budget(dir.path(), BUDGET);
        for sample in &samples {
            let layer = sample.reopen(&store).unwrap();
            let here = sample.check(&layer);
            let kept = here as u64 * 80_000 + (128 << 10);
            let left = allocated(dir.path(), sample);
            assert!(left <= kept, "{step}: {left} bytes for {here} spans");
            sample.fill(&layer);
            sample.check(&layer);
        }
    }
}

/// Fills two layers beyond the budget, several times; a step may fail once.
fn churn(dir: &Path) {
    let (_store, samples, layers) = two(dir);
    for _ in 0..2 {
        for (sample, layer) in samples.iter().zip(&layers) {
            for id in 0..layer.spans().len() {
                // Refused by the step that fails, or because nothing could make room.
                let _ = layer.write_span(SpanId(id), sample.truth(layer, id));
            }
            let _ = layer.sync();
            sample.check(layer);
        }
    }
    for layer in &layers {
        layer.sync().unwrap();
    }
}
