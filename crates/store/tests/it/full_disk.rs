//! A disk that is full, or refuses, at each write of a file as a whole: zTOCs, records, notes, indexes.

use std::fs;
use std::path::Path;
use std::process::Command;

use soci_oci::{Descriptor, Digest, media_types};
use soci_store::content::OciLayout;
use soci_store::{LayerStore, LayerStoreConfig, StoreError, write_file};

use crate::layers::Sample;

/// Every step of such a write.
const STEPS: [&str; 6] = [
    "store-create-file",
    "store-write-file",
    "store-sync-file",
    "store-rename-file",
    "store-sync-folder",
    "store-size-data",
];
const DIR: &str = "SOCI_TEST_FULL_DISK_DIR";
/// What the child prints for each write that was refused.
const REFUSED: &str = "REFUSED: ";

fn open(dir: &Path) -> LayerStore {
    LayerStore::open(&dir.join("layers"), LayerStoreConfig::default()).unwrap()
}

#[test]
fn a_disk_that_refuses_any_write_of_a_file_costs_that_write_and_nothing_stored() {
    if let Some(dir) = std::env::var_os(DIR) {
        return write_all(Path::new(&dir));
    }
    let samples = [Sample::new(50_000), Sample::new(60_000)];
    for step in STEPS {
        let mut refused = 0;
        for (refusal, says) in [("-full", "no space to "), ("", "Input/output error")] {
            // A full disk refuses the step the first time that it is reached, the second, and so on.
            let times = if refusal.is_empty() { 1 } else { u32::MAX };
            for time in 1..=times {
                let dir = tempfile::tempdir_in("/dev/shm").unwrap();
                prepare(dir.path(), &samples[0]);
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "--nocapture", "--test-threads=1"])
                    .arg("full_disk::a_disk_that_refuses_any_write_of_a_file_costs_that_write_and_nothing_stored")
                    .env(DIR, dir.path())
                    .env(soci_faults::VARIABLE, format!("{step}{refusal}:{time}"))
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&child.stdout);
                let errors = String::from_utf8_lossy(&child.stderr);
                assert!(
                    child.status.success(),
                    "{step}{refusal}:{time}: {text} {errors}"
                );
                check(dir.path(), &samples);
                let refusals: Vec<_> = text
                    .lines()
                    .filter_map(|line| line.split_once(REFUSED))
                    .collect();
                let [(_, refused_with)] = refusals.as_slice() else {
                    assert!(refusals.is_empty(), "{step}{refusal}:{time}: {text}");
                    break;
                };
                assert!(
                    refused_with.contains(says) && refused_with.contains('/'),
                    "{step}{refusal}:{time}: {refused_with}"
                );
                refused += 1;
            }
        }
        assert!(refused >= 2, "{step} was refused {refused} times");
    }
}

fn index() -> (Descriptor, &'static [u8]) {
    let bytes = b"{\"schemaVersion\":2}";
    let digest = Digest::of(bytes);
    let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
    (descriptor, bytes)
}

/// What a process stored before the disk was full: a layer, and a note.
fn prepare(dir: &Path, sample: &Sample) {
    let layer = sample.open(&open(dir));
    sample.fill(&layer);
    layer.sync().unwrap();
    write_file(&dir.join("note"), b"old").unwrap();
    OciLayout::open(&dir.join("content")).unwrap();
}

/// Writes everything that is written as a whole; what is refused is written once more. Readers of
/// what is stored continue.
fn write_all(dir: &Path) {
    let (first, second) = (Sample::new(50_000), Sample::new(60_000));
    let store = open(dir);
    let layer = twice(|| first.reopen(&store));
    let spans = layer.spans().len() as usize;
    twice(|| second.try_open(&store));
    assert_eq!(first.check(&layer), spans);
    twice(|| {
        let written = write_file(&dir.join("note"), b"new");
        let note = fs::read(dir.join("note")).unwrap();
        assert!(note == b"old" || note == b"new");
        written
    });
    let content = OciLayout::open_existing(&dir.join("content")).unwrap();
    let (descriptor, bytes) = index();
    twice(|| {
        let put = content.put(&descriptor, bytes);
        if content.contains(&descriptor.digest) {
            assert_eq!(content.get(&descriptor.digest).unwrap(), bytes);
        }
        put
    });
    assert_eq!(first.check(&layer), spans);
}

#[expect(clippy::print_stdout, reason = "for the process that reads it")]
fn twice<T>(write: impl Fn() -> Result<T, StoreError>) -> T {
    write().unwrap_or_else(|error| {
        println!("{REFUSED}{error}");
        write().unwrap()
    })
}

/// What a later process finds: all of it, and nothing half written.
fn check(dir: &Path, [first, second]: &[Sample; 2]) {
    let store = open(dir);
    let layer = first.reopen(&store).unwrap();
    assert_eq!(first.check(&layer), layer.spans().len() as usize);
    second.reopen(&store).unwrap();
    assert_eq!(store.layers().unwrap().len(), 2);
    assert_eq!(fs::read(dir.join("note")).unwrap(), b"new");
    let content = OciLayout::open_existing(&dir.join("content")).unwrap();
    let (descriptor, bytes) = index();
    assert_eq!(content.get(&descriptor.digest).unwrap(), bytes);
    for folder in [dir, &first.folder(&dir.join("layers"))] {
        let names = fs::read_dir(folder).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.all(|name| !name.starts_with(".unfinished")));
    }
}
