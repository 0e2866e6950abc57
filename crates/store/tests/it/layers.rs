//! What a crash, a full disk or a rotten disk may leave, and what the layer store makes of it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use soci_oci::Digest;
use soci_store::{LayerStore, LayerStoreConfig, ReadOutcome, StoreError, StoredLayer};
use soci_ztoc::SpanId;

/// A gzip layer of a tar with one file, its zTOC, and the truth.
pub(crate) struct Sample {
    tar: Vec<u8>,
    layer: Digest,
    ztoc: Vec<u8>,
}

impl Sample {
    pub(crate) fn new(span_size: u64) -> Self {
        let mut seed = 1_u64;
        let mut tar = vec![0; 512];
        tar[..4].copy_from_slice(b"file");
        tar[100..107].copy_from_slice(b"0000644");
        tar[124..135].copy_from_slice(b"00004000000");
        tar[156] = b'0';
        tar[257..265].copy_from_slice(b"ustar\x0000");
        tar[148..156].copy_from_slice(b"        ");
        let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
        tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend((0..1 << 20).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b'a' + u8::try_from(seed >> 60).unwrap()
        }));
        tar.resize(tar.len() + 1024, 0);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // A flush ends a deflate block, and only between blocks can a span begin: some compressors would
        // make one block of it all.
        for part in tar.chunks(20_000) {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        let blob = encoder.finish().unwrap();
        let options = soci_ztoc::BuildOptions {
            span_size,
            ..Default::default()
        };
        let built = soci_ztoc::build(&blob[..], soci_ztoc::Compression::Gzip, options).unwrap();
        Self {
            tar,
            layer: Digest::of(&blob),
            ztoc: built.ztoc.encode(),
        }
    }

    fn ztoc_digest(&self) -> Digest {
        Digest::of(&self.ztoc)
    }

    pub(crate) fn open(&self, store: &LayerStore) -> Arc<StoredLayer> {
        self.try_open(store).unwrap()
    }

    pub(crate) fn try_open(&self, store: &LayerStore) -> Result<Arc<StoredLayer>, StoreError> {
        store.create_or_open(self.layer, self.ztoc_digest(), Some(&self.ztoc))
    }

    pub(crate) fn reopen(&self, store: &LayerStore) -> Result<Arc<StoredLayer>, StoreError> {
        store.create_or_open(self.layer, self.ztoc_digest(), None)
    }

    pub(crate) fn truth(&self, layer: &StoredLayer, id: u32) -> &[u8] {
        let span = layer.spans().span(SpanId(id)).uncompressed;
        &self.tar[usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap()]
    }

    pub(crate) fn fill(&self, layer: &StoredLayer) {
        for id in 0..layer.spans().len() {
            layer.write_span(SpanId(id), self.truth(layer, id)).unwrap();
        }
    }

    /// Every span is the truth or missing; returns how many are stored.
    pub(crate) fn check(&self, layer: &StoredLayer) -> usize {
        let stored = self.read(layer);
        for (id, &stored) in (0..).zip(&stored) {
            assert_eq!(layer.has(SpanId(id)), stored, "span {id}");
        }
        stored.iter().filter(|&&stored| stored).count()
    }

    /// The same while spans come and go; returns which were stored when they were read.
    fn read(&self, layer: &StoredLayer) -> Vec<bool> {
        let read = |id| {
            let truth = self.truth(layer, id);
            let mut buf = vec![0; truth.len()];
            match layer
                .read_at(layer.spans().span(SpanId(id)).uncompressed.start, &mut buf)
                .unwrap()
            {
                ReadOutcome::Filled => {
                    assert!(buf == truth, "span {id}");
                    true
                }
                ReadOutcome::Missing(spans) => {
                    assert_eq!(spans, id..id + 1);
                    false
                }
            }
        };
        (0..layer.spans().len()).map(read).collect()
    }

    /// Reads the first byte of a span.
    pub(crate) fn read_one(&self, layer: &StoredLayer, id: u32) {
        let at = layer.spans().span(SpanId(id)).uncompressed.start;
        let mut byte = [0];
        assert_eq!(layer.read_at(at, &mut byte).unwrap(), ReadOutcome::Filled);
        assert_eq!(byte[0], self.truth(layer, id)[0]);
    }

    pub(crate) fn tar(&self) -> &[u8] {
        &self.tar
    }

    pub(crate) fn len(&self) -> u64 {
        self.tar.len() as u64
    }

    pub(crate) fn folder(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{}", self.layer.hex(), self.ztoc_digest().hex()))
    }
}

fn open(dir: &Path) -> LayerStore {
    LayerStore::open(dir, LayerStoreConfig::default()).unwrap()
}

/// A store that a process filled and left in good order.
fn filled() -> (tempfile::TempDir, Sample, usize) {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let layer = sample.open(&open(dir.path()));
    sample.fill(&layer);
    layer.sync().unwrap();
    assert!(layer.is_complete() && layer.missing().is_empty());
    assert_eq!(layer.fetched_bytes(), layer.size());
    let spans = layer.spans().len() as usize;
    assert!(spans > 10);
    (dir, sample, spans)
}

#[test]
fn a_span_is_readable_at_once_and_after_a_restart() {
    let (dir, sample, spans) = filled();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    assert_eq!(layer.fetched_bytes(), layer.size());
    assert_eq!(sample.check(&layer), spans);
    let mut all = vec![0; sample.tar.len()];
    assert_eq!(layer.read_at(0, &mut all).unwrap(), ReadOutcome::Filled);
    assert!(all == sample.tar);
    assert_eq!(layer.ztoc().unwrap().encode(), sample.ztoc);
    assert!(layer.read_at(1, &mut all).is_err());
}

#[test]
fn closing_the_store_makes_durable_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let store = open(dir.path());
    sample.fill(&sample.open(&store));
    drop(store);
    assert!(sample.reopen(&open(dir.path())).unwrap().is_complete());
}

#[test]
fn the_flusher_makes_durable_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let config = LayerStoreConfig {
        sync_interval: std::time::Duration::from_millis(1),
        ..Default::default()
    };
    let store = LayerStore::open(dir.path(), config).unwrap();
    let layer = sample.open(&store);
    layer
        .write_span(SpanId(3), sample.truth(&layer, 3))
        .unwrap();
    let spans = sample.folder(dir.path()).join("spans");
    // Byte 512 starts the bitmap.
    while fs::read(&spans).unwrap()[512] != 1 << 3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn windows_are_those_of_the_ztoc_and_never_rotten_ones() {
    let (dir, sample, _) = filled();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    let at = layer.spans().window_at(SpanId(5)).unwrap();
    let range = usize::try_from(at.start).unwrap()..usize::try_from(at.end).unwrap();
    assert_eq!(layer.window(SpanId(5)).unwrap(), sample.ztoc[range.clone()]);
    let mut rotten = sample.ztoc.clone();
    rotten[range.start + 100] ^= 1;
    fs::write(sample.folder(dir.path()).join("ztoc"), rotten).unwrap();
    layer.window(SpanId(5)).unwrap_err();
    layer.window(SpanId(6)).unwrap();
    layer.ztoc().unwrap_err();
}

#[test]
fn a_bit_whose_data_is_damaged_or_was_never_written_is_taken_back() {
    let (dir, sample, spans) = filled();
    let path = sample.folder(dir.path()).join("data");
    let mut data = fs::read(&path).unwrap();
    data[200_000] ^= 1;
    fs::write(&path, &data).unwrap();
    {
        let store = open(dir.path());
        let layer = sample.reopen(&store).unwrap();
        assert_eq!(sample.check(&layer), spans - 1);
        assert!(layer.fetched_bytes() < layer.size());
    }
    // It is taken back for good, and can be stored again.
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    let gone = layer.missing();
    assert_eq!(gone.len(), 1);
    layer
        .write_span(SpanId(gone[0].start), sample.truth(&layer, gone[0].start))
        .unwrap();
    assert_eq!(sample.check(&layer), spans);
    drop((layer, store));

    let half = fs::OpenOptions::new().write(true).open(&path).unwrap();
    half.set_len(500_000).unwrap();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    let here = sample.check(&layer);
    assert!(here > 0 && here < spans, "{here}");
}

#[test]
fn a_damaged_record_means_that_nothing_is_stored() {
    let (dir, sample, spans) = filled();
    let path = sample.folder(dir.path()).join("spans");
    let good = fs::read(&path).unwrap();
    let mut garbage = good.clone();
    garbage[3] ^= 1;
    for bad in [&good[..good.len() - 1], &good[..100], &[][..], &garbage[..]] {
        fs::write(&path, bad).unwrap();
        let store = open(dir.path());
        let layer = sample.reopen(&store).unwrap();
        assert_eq!(sample.check(&layer), 0);
        assert_eq!(layer.fetched_bytes(), 0);
        sample.fill(&layer);
        assert_eq!(sample.check(&layer), spans);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(sample.check(&sample.reopen(&open(dir.path())).unwrap()), 0);
}

#[test]
fn bits_that_were_invented_do_not_invent_data() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    drop(sample.open(&open(dir.path())));
    let path = sample.folder(dir.path()).join("spans");
    let mut record = fs::read(&path).unwrap();
    record[512] = 0xff;
    fs::write(&path, record).unwrap();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    assert!(layer.has(SpanId(0)));
    assert_eq!(sample.check(&layer), 0);
}

#[test]
fn one_layer_through_two_ztocs_is_two_layers() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Sample::new(50_000), Sample::new(100_000));
    assert_eq!(one.layer, two.layer);
    let store = open(dir.path());
    let (first, second) = (one.open(&store), two.open(&store));
    one.fill(&first);
    assert_eq!(two.check(&second), 0);
    // The record of the one in the folder of the other.
    drop((first, second, store));
    fs::copy(
        one.folder(dir.path()).join("spans"),
        two.folder(dir.path()).join("spans"),
    )
    .unwrap();
    let store = open(dir.path());
    assert_eq!(two.check(&two.reopen(&store).unwrap()), 0);
    assert_eq!(store.layers().unwrap().len(), 2);
}

#[test]
fn a_ztoc_that_is_not_the_one_named_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let store = open(dir.path());
    let wrong = Sample::new(100_000).ztoc;
    let error = store
        .create_or_open(sample.layer, sample.ztoc_digest(), Some(&wrong))
        .unwrap_err();
    assert!(
        matches!(error, StoreError::DigestMismatch { .. }),
        "{error}"
    );
    let error = store
        .create_or_open(sample.layer, Digest::of(b"junk"), Some(b"junk"))
        .unwrap_err();
    assert!(matches!(error, StoreError::Ztoc { .. }), "{error}");
    assert!(sample.reopen(&store).unwrap_err().is_not_found());
    assert_eq!(store.layers().unwrap(), []);
}

/// Without a limit, a forged zTOC decides how much memory is requested at once.
#[test]
fn a_ztoc_with_spans_that_no_memory_holds_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let store = open(dir.path());
    let options = soci_ztoc::BuildOptions::default();
    let plain = soci_ztoc::build(
        &sample.tar[..],
        soci_ztoc::Compression::Uncompressed,
        options,
    );
    let mut plain = plain.unwrap().ztoc;
    let huge = 8 << 30;
    let soci_ztoc::Checkpoints::Tar(tar) = &mut plain.compression.checkpoints else {
        unreachable!("it was built so")
    };
    (tar.span_size, tar.size) = (huge, huge);
    plain.compressed_archive_size = huge;
    plain.uncompressed_archive_size = huge;
    let mut gzip = soci_ztoc::Ztoc::parse(&sample.ztoc).unwrap();
    gzip.compressed_archive_size = huge;
    let mut inflated = gzip.clone();
    inflated.compressed_archive_size = 10 << 20;
    inflated.uncompressed_archive_size = huge;
    for forged in [plain, gzip, inflated] {
        let forged = forged.encode();
        let error = store
            .create_or_open(sample.layer, Digest::of(&forged), Some(&forged))
            .unwrap_err();
        assert!(matches!(error, StoreError::LargeSpan { .. }), "{error}");
    }
    assert_eq!(store.layers().unwrap(), []);
}

#[test]
fn a_damaged_ztoc_is_fetched_again_and_spans_stay() {
    let (dir, sample, spans) = filled();
    let path = sample.folder(dir.path()).join("ztoc");
    for bad in [&sample.ztoc[..1000], &[][..]] {
        fs::write(&path, bad).unwrap();
        let store = open(dir.path());
        assert!(sample.reopen(&store).unwrap_err().is_not_found());
        assert_eq!(sample.check(&sample.open(&store)), spans);
    }
}

#[test]
fn folders_that_were_never_finished_or_half_removed_are_cleared_away() {
    let (dir, sample, spans) = filled();
    let other = Sample::new(100_000);
    fs::create_dir_all(other.folder(dir.path())).unwrap();
    fs::write(other.folder(dir.path()).join("data"), b"half").unwrap();
    fs::create_dir_all(dir.path().join(".removed/7")).unwrap();
    fs::write(dir.path().join(".removed/7/data"), b"old").unwrap();
    fs::write(sample.folder(dir.path()).join(".unfinished-1-1"), b"old").unwrap();
    let store = open(dir.path());
    assert_eq!(store.layers().unwrap().len(), 1);
    assert!(!dir.path().join(".removed/7").exists());
    assert_eq!(sample.check(&sample.reopen(&store).unwrap()), spans);
    assert!(!sample.folder(dir.path()).join(".unfinished-1-1").exists());
}

#[test]
fn a_removed_layer_can_still_be_read_by_who_holds_it() {
    let (dir, sample, spans) = filled();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    store.remove(sample.layer, sample.ztoc_digest()).unwrap();
    store.remove(sample.layer, sample.ztoc_digest()).unwrap();
    assert!(store.get(sample.layer, sample.ztoc_digest()).is_none());
    assert!(!sample.folder(dir.path()).exists());
    assert_eq!(sample.check(&layer), spans);
    // A new one of the same name has nothing to do with it.
    let new = sample.open(&store);
    assert_eq!(sample.check(&new), 0);
    layer.sync().unwrap();
    assert_eq!(sample.check(&layer), spans);
}

#[test]
fn an_open_layer_holds_three_descriptors() {
    let (dir, sample, _) = filled();
    let store = open(dir.path());
    let layer = sample.reopen(&store).unwrap();
    assert_eq!(sample.check(&layer), layer.spans().len() as usize);
    let folder = fs::canonicalize(sample.folder(dir.path())).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert_eq!(open.filter(|target| target.starts_with(&folder)).count(), 3);
}

#[test]
fn a_budget_is_kept_while_readers_get_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let config = LayerStoreConfig {
        budget_bytes: Some(300_000),
        ..Default::default()
    };
    let store = LayerStore::open(dir.path(), config).unwrap();
    let layer = sample.open(&store);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    sample.read(&layer);
                }
            });
        }
        for _ in 0..5 {
            sample.fill(&layer);
            assert!(store.usage().stored_bytes <= 300_000);
        }
        done.store(true, Ordering::Relaxed);
    });
    sample.fill(&layer);
    let here = sample.check(&layer);
    assert!(here >= 2, "{here}");
    // What was used last is what is left.
    assert!(layer.has(SpanId(layer.spans().len() - 1)));
    assert!(!layer.has(SpanId(0)));
    // The space on disk is freed.
    use std::os::unix::fs::MetadataExt as _;
    let data = fs::metadata(sample.folder(dir.path()).join("data")).unwrap();
    assert!(data.blocks() * 512 <= 400_000, "{}", data.blocks() * 512);
    layer.sync().unwrap();
    drop((layer, store));
    assert_eq!(
        sample.check(&sample.reopen(&open(dir.path())).unwrap()),
        here
    );
}

#[test]
fn a_span_larger_than_the_budget_is_not_kept_and_the_error_names_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(50_000);
    let config = LayerStoreConfig {
        budget_bytes: Some(1000),
        ..Default::default()
    };
    let store = LayerStore::open(dir.path(), config).unwrap();
    let layer = sample.open(&store);
    let error = layer
        .write_span(SpanId(1), sample.truth(&layer, 1))
        .unwrap_err();
    assert!(matches!(error, StoreError::OverLimit { .. }), "{error}");
    assert!(error.to_string().contains("layer_store.max_size_bytes"));
    assert!(!layer.has(SpanId(1)));
}

/// Needs root: mounts a tmpfs of 4 MiB.
#[test]
fn a_reserve_of_the_disk_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=4m")
        .expect("this test needs root");
    let result = std::panic::catch_unwind(|| {
        let free = || soci_dirtree::Space::at(dir.path()).unwrap();
        fs::write(dir.path().join("other"), vec![7; 2 << 20]).unwrap();
        let sample = Sample::new(150_000);
        let reserve = soci_dirtree::Reserve { percent: 30 };
        let config = LayerStoreConfig {
            reserve,
            ..Default::default()
        };
        let store = LayerStore::open(dir.path(), config).unwrap();
        let layer = sample.open(&store);
        // Nothing makes room: a container uses the layer, and it may not be possible to fetch it again.
        layer.standing().set_in_use(true);
        let results: Vec<_> = (0..layer.spans().len())
            .map(|id| layer.write_span(SpanId(id), sample.truth(&layer, id)))
            .collect();
        let refused = results
            .iter()
            .filter(|result| matches!(result, Err(StoreError::NoSpace { .. })))
            .count();
        assert!(refused > 0 && refused < results.len(), "{results:?}");
        let refusal = results
            .iter()
            .find_map(|result| result.as_ref().err())
            .unwrap();
        assert!(
            refusal.to_string().contains("min_free_percent"),
            "{refusal}"
        );
        let space = free();
        assert!(space.free >= space.total / 100 * 30, "{space:?}");
        assert_eq!(layer.spare_room(), 0);
        let ids = (0..layer.spans().len()).zip(&results);
        let ids = ids.filter(|(_, result)| result.is_err());
        let smallest = ids.map(|(id, _)| sample.truth(&layer, id).len()).min();
        assert!(layer.room_for_start() < smallest.unwrap() as u64);
        assert_eq!(sample.check(&layer), results.len() - refused);
        // What is deleted makes room again.
        fs::remove_file(dir.path().join("other")).unwrap();
        while layer.spare_room() == 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // A start may use what filling leaves free.
        let begun = free();
        let between = begun.spare(reserve) - begun.spare(soci_dirtree::Reserve { percent: 45 });
        let filler = usize::try_from(begun.spare(reserve) - between / 2).unwrap();
        fs::write(dir.path().join("other"), vec![7; filler]).unwrap();
        while layer.spare_room() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(layer.room_for_start() > 0);
        fs::remove_file(dir.path().join("other")).unwrap();
        while layer.spare_room() == 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        sample.fill(&layer);
    });
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_removed_folder_a_hundred_thousand_levels_deep_goes_at_the_start() {
    // In memory: a disk takes minutes to make as many folders.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let removed = dir.path().join(".removed/0");
    fs::create_dir_all(&removed).unwrap();
    let open = |at: std::os::fd::BorrowedFd<'_>, name: &str| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty()).unwrap()
    };
    let mut at = open(rustix::fs::CWD, removed.to_str().unwrap());
    for _ in 0..100_000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = open(std::os::fd::AsFd::as_fd(&at), "d");
    }
    drop(at);
    self::open(dir.path());
    assert_eq!(
        fs::read_dir(dir.path().join(".removed")).unwrap().count(),
        0
    );
}

/// Needs root: mounts a tmpfs of 1 MiB.
#[test]
fn a_full_disk_is_an_error_and_harms_nothing_that_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=1m")
        .expect("this test needs root");
    let result = std::panic::catch_unwind(|| {
        let sample = Sample::new(150_000);
        let store = open(dir.path());
        let layer = sample.open(&store);
        layer.standing().set_in_use(true);
        let results: Vec<_> = (0..layer.spans().len())
            .map(|id| layer.write_span(SpanId(id), sample.truth(&layer, id)))
            .collect();
        let full = results
            .iter()
            .filter(|result| matches!(result, Err(StoreError::NoSpace { .. })));
        let full = full.count();
        assert!(full > 0 && full < results.len(), "{results:?}");
        assert_eq!(sample.check(&layer), results.len() - full);
        layer.sync().unwrap();
        drop((layer, store));
        assert_eq!(
            sample.check(&sample.reopen(&open(dir.path())).unwrap()),
            results.len() - full
        );
    });
    let _ = rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH);
    result.unwrap();
}
