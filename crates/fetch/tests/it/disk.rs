//! Disks that fail while a layer is filled: readers are served, the status says it, nothing that was
//! stored is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Rig, Sample, check_all, eventually, no_readahead, read};
use soci_fetch::{FillState, LayerData as _};
use soci_oci::Digest;
use soci_registry::testing::MemoryBlob;
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;

/// A file system of its own, which can be made to fail as one whose disk has errors.
struct Ext4 {
    at: PathBuf,
    image: tempfile::NamedTempFile,
    is_mounted: bool,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect(program);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Ext4 {
    fn mount(at: &Path) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(32 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", text(image.path())]);
        let mut mounted = Self {
            at: at.to_owned(),
            image,
            is_mounted: false,
        };
        mounted.mount_again();
        mounted
    }

    fn mount_again(&mut self) {
        let options = "loop,errors=remount-ro";
        let image = text(self.image.path());
        run("mount", &["-o", options, image, text(&self.at)]);
        self.is_mounted = true;
    }

    /// From now on every write is refused.
    fn fail(&self) {
        let device = run("findmnt", &["-no", "SOURCE", text(&self.at)]);
        let device = Path::new(&device).file_name().unwrap().to_owned();
        let trigger = Path::new("/sys/fs/ext4").join(device);
        std::fs::write(trigger.join("trigger_fs_error"), "1").unwrap();
        let refused = std::fs::write(self.at.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    fn unmount(&mut self) {
        self.is_mounted = false;
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }

    /// Unmounts it when no thread of the store uses it any more: the same image would be mounted as it is otherwise.
    fn unmount_unused(&mut self) {
        let flags = rustix::mount::UnmountFlags::empty();
        eventually("the disk is not in use", || {
            rustix::mount::unmount(&self.at, flags).is_ok()
        });
        self.is_mounted = false;
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.is_mounted {
            self.unmount();
        }
    }
}

#[test]
fn a_store_that_becomes_read_only_serves_what_it_has_and_the_rest_comes_from_the_registry() {
    let sample = Sample::gzip(20, 100_000);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut disk = Ext4::mount(dir.path());
    let mut filling = no_readahead();
    filling.background.silence_period = Some(Duration::ZERO);
    {
        let rig = Rig::at(dir.clone(), filling.clone(), LayerStoreConfig::default());
        let source = MemoryBlob::new(sample.blob.clone());
        let layer = rig.open(&sample, source.clone());
        check_all(&layer, &sample.tar[..1_000_000], 100_000);
        // A reader is answered before its last span is stored.
        eventually("stored", || {
            let mut read = layer.stored().spans().covering(0..1_000_000);
            read.all(|span| layer.stored().has(SpanId(span)))
        });
        layer.stored().sync().unwrap();
        let stored = layer.stored().stored_spans();
        assert!(stored > 0 && !layer.stored().is_complete());
        disk.fail();

        // What is stored comes from the disk, the rest from the registry; filling leaves it alone.
        let asked = source.requests().len();
        check_all(&layer, &sample.tar[..1_000_000], 100_000);
        assert_eq!(source.requests().len(), asked);
        layer.start_background(Digest::of(b"image"));
        eventually("filling says that it cannot store", || {
            layer.fill().state == FillState::NoRoom
        });
        check_all(&layer, &sample.tar, 100_000);
        assert_eq!(layer.fill().state, FillState::NoRoom);
        assert_eq!(layer.stored().stored_spans(), stored);
        let error = layer.status().error.unwrap().detail;
        assert!(error.contains("Read-only file system"), "{error}");
        assert!(rig.fetcher.stats().store_failures > 0);
        rig.shut_down();
    }
    // Once the disk can be written again.
    disk.unmount_unused();
    disk.mount_again();
    {
        let rig = Rig::at(dir.clone(), filling, LayerStoreConfig::default());
        let source = MemoryBlob::new(sample.blob.clone());
        let layer = rig.open(&sample, source.clone());
        check_all(&layer, &sample.tar[..1_000_000], 100_000);
        assert_eq!(source.requests(), []);
        layer.start_background(Digest::of(b"image"));
        eventually("filled", || layer.stored().is_complete());
        check_all(&layer, &sample.tar, 100_000);
        rig.shut_down();
    }
    disk.unmount();
    drop(dir);
}

/// The writes of the store, each of which the disk can refuse, with EIO or for want of space.
const STEPS: [&str; 6] = [
    "store-write-data",
    "store-write-data-full",
    "store-sync-data",
    "store-write-record",
    "store-write-record-full",
    "store-sync-record",
];
const DIR: &str = "SOCI_TEST_FILLING_DIR";
/// A file that says that the store was refused a write.
const REFUSED: &str = "refused";

#[test]
fn a_disk_that_refuses_any_write_of_filling_costs_spans_and_never_the_truth() {
    let sample = Sample::gzip(20, 100_000);
    if let Some(dir) = std::env::var_os(DIR) {
        return fill(&sample, Path::new(&dir));
    }
    for step in STEPS {
        // In memory: syncs are many.
        let dir = Arc::new(tempfile::tempdir_in("/dev/shm").unwrap());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("disk::a_disk_that_refuses_any_write_of_filling_costs_spans_and_never_the_truth")
            .env(DIR, dir.path())
            .env("SOCI_FAULT_POINT", format!("{step}:2"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let errors = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{step}: {text}{errors}");
        // For want of space other spans make room, and the write is done again.
        let makes_room = step == "store-write-data-full";
        assert!(
            makes_room || dir.path().join(REFUSED).exists(),
            "{step}: {text}"
        );

        // Another process finds the truth, and needs no request for it unless a disk may have lost data.
        std::fs::rename(dir.path().join("rig/layers"), dir.path().join("layers")).unwrap();
        let rig = Rig::at(dir.clone(), no_readahead(), LayerStoreConfig::default());
        let source = MemoryBlob::new(sample.blob.clone());
        let layer = rig.open(&sample, source.clone());
        check_all(&layer, &sample.tar, 100_000);
        let may_be_lost = step == "store-sync-data";
        assert!(source.requests().is_empty() || may_be_lost, "{step}");
    }
}

/// Fills a layer, one write of which is refused, and reads what is stored of it all the time.
fn fill(sample: &Sample, dir: &Path) {
    // What is durable is made so below.
    let store = LayerStoreConfig {
        sync_interval: Duration::from_secs(3600),
        ..LayerStoreConfig::default()
    };
    let mut at = tempfile::Builder::new();
    let at = at.prefix("rig").rand_bytes(0).disable_cleanup(true);
    let mut filling = no_readahead();
    filling.background.silence_period = Some(Duration::ZERO);
    let rig = Rig::paused_in(Arc::new(at.tempdir_in(dir).unwrap()), filling, store);
    let _time = rig.enter();
    let layer = rig.open(sample, MemoryBlob::new(sample.blob.clone()));
    // Two syncs at least, however fast filling is: of one span, and of the rest.
    layer.read(0, 1, Box::new(drop));
    rig.passes_until("stored", || layer.stored().has(SpanId(0)));
    let refused = std::cell::Cell::new(layer.stored().sync().is_err());
    layer.start_background(Digest::of(b"image"));
    rig.passes_until("filled", || {
        let stored = layer.stored().spans().len();
        for span in (0..stored).filter(|span| layer.stored().has(SpanId(*span))) {
            let range = layer.stored().spans().span(SpanId(span)).uncompressed;
            let at = usize::try_from(range.start).unwrap();
            let bytes = read(&layer, range.start, 100).unwrap();
            assert!(bytes == sample.tar[at..at + bytes.len()], "span {span}");
        }
        let is_filled = layer.stored().is_complete();
        if layer.stored().sync().is_err() || rig.fetcher.stats().store_failures > 0 {
            refused.set(true);
        }
        is_filled && layer.stored().is_complete()
    });
    layer.stored().sync().unwrap();
    assert_eq!(layer.status().error, None, "it is over");
    if refused.get() {
        std::fs::write(dir.join(REFUSED), "").unwrap();
    }
}
