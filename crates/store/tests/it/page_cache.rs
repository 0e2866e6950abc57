//! What is read of a stored layer is in the page cache once: that of the mount. Files are in the target
//! directory, because a file system in memory has no other place for them.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use soci_store::{LayerStore, LayerStoreConfig};

use crate::layers::Sample;

const PAGE: usize = 4096;

/// Number of pages of a file that are in the page cache. Looking at one may bring it there.
fn cached(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    // No page is read ahead of the one that is looked at.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let pages = fs::metadata(path).unwrap().len().div_ceil(PAGE as u64);
    let is_cached = |page: &u64| {
        let mut byte = [0];
        let mut to = [IoSliceMut::new(&mut byte)];
        match preadv2(&file, &mut to, page * PAGE as u64, ReadWriteFlags::NOWAIT) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                false
            }
        }
    };
    (0..pages).filter(is_cached).count() as u64
}

#[test]
fn what_was_written_and_read_does_not_stay_in_the_stores_pages() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sample = Sample::new(50_000);
    let data = sample.folder(dir.path()).join("data");
    let open = || LayerStore::open(dir.path(), LayerStoreConfig::default()).unwrap();
    let pages = sample.len() / PAGE as u64;
    assert!(pages > 200);
    // The page in which a span ends may stay: the next read starts there.
    let few = |layer: &soci_store::StoredLayer| u64::from(layer.spans().len()) + 1;

    let store = open();
    let layer = sample.open(&store);
    sample.fill(&layer);
    layer.sync().unwrap();
    let left = cached(&data);
    assert!(left <= few(&layer), "{left} of {pages} when it is durable");
    assert_eq!(sample.check(&layer), layer.spans().len() as usize);
    let left = cached(&data);
    assert!(left <= few(&layer), "{left} of {pages} when it was read");
    drop(layer);
    drop(store);

    // The next process compares checksums first.
    let store = open();
    let layer = sample.reopen(&store).unwrap();
    assert_eq!(sample.check(&layer), layer.spans().len() as usize);
    let left = cached(&data);
    assert!(left <= few(&layer), "{left} of {pages} after a restart");

    // The control: what is read past the store stays.
    let _ = fs::read(&data).unwrap();
    assert!(cached(&data) >= pages);
}
