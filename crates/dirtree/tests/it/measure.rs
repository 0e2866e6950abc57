//! Measuring.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use soci_dirtree::{measure, remove_path};

use crate::tree::{DEEP, confined, file, in_memory, nest};

/// Ends the other thread of a test, also if an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn files_links_and_folders_are_counted_once() {
    let root = in_memory();
    let empty = measure(root.path()).unwrap();
    assert_eq!(empty.inodes, 1);
    fs::create_dir(root.path().join("folder")).unwrap();
    fs::write(root.path().join("folder/file"), vec![7; 100_000]).unwrap();
    let linked = root.path().join("folder/file");
    for number in 0..5 {
        fs::hard_link(&linked, root.path().join(format!("link-{number}"))).unwrap();
    }
    symlink("/", root.path().join("outside")).unwrap();
    let full = measure(root.path()).unwrap();
    assert_eq!(full.inodes, 4);
    let allocated = fs::metadata(&linked).unwrap().blocks() * 512;
    assert!(full.bytes >= empty.bytes + allocated && full.bytes < empty.bytes + 2 * allocated);
}

#[test]
fn a_tree_that_no_path_reaches_is_measured_to_its_end() {
    let root = in_memory();
    let top = root.path().join("top");
    fs::create_dir(&top).unwrap();
    let deepest = nest(&top, DEEP);
    file(&deepest, "large", 1 << 20);
    let path = top.clone();
    let usage = confined(move || measure(&path).unwrap());
    // With the root, a file in every thousandth folder, and the large one.
    assert_eq!(usage.inodes, 1 + DEEP as u64 + DEEP as u64 / 1000 + 1);
    assert!(usage.bytes >= 1 << 20);
    remove_path(&top).unwrap();
}

#[test]
fn wide_folders_on_a_deep_way_are_measured_whole() {
    let root = in_memory();
    let mut at = root.path().to_owned();
    let (levels, wide) = (40_u64, 1200_u64);
    for _ in 0..levels {
        for number in 0..wide {
            let name = format!("{number:0>40}");
            if number % 100 == 0 {
                fs::create_dir(at.join(name)).unwrap();
            } else {
                fs::write(at.join(name), "").unwrap();
            }
        }
        at.push("next");
        fs::create_dir(&at).unwrap();
    }
    let usage = measure(root.path()).unwrap();
    assert_eq!(usage.inodes, 1 + levels * (wide + 1));
}

#[test]
fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
    let root = in_memory();
    let outside = in_memory();
    for number in 0..1000 {
        fs::write(outside.path().join(number.to_string()), "").unwrap();
    }
    let [folder, link] = ["folder", "link"].map(|name| root.path().join(name));
    fs::create_dir(&folder).unwrap();
    symlink(outside.path(), &link).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let at = rustix::fs::CWD;
                rustix::fs::renameat_with(at, &folder, at, &link, flags).unwrap();
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..1000 {
            let usage = measure(root.path()).unwrap();
            assert!(usage.inodes <= 5, "{usage:?}");
        }
    });
}

#[test]
fn a_tree_whose_deep_folders_move_is_measured_to_an_end() {
    let root = in_memory();
    let deep = nest(root.path(), 60);
    for name in ["a", "b", "c"] {
        rustix::fs::mkdirat(&deep, name, rustix::fs::Mode::RWXU).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (from, to) in [("a", "b/a"), ("b/a", "c/a"), ("c/a", "a")] {
                    rustix::fs::renameat(&deep, from, &deep, to).unwrap();
                }
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..300 {
            let usage = measure(root.path()).unwrap();
            assert!((34..80).contains(&usage.inodes), "{usage:?}");
        }
    });
}
