//! zTOCs made to cost as much as they can: memory and steps are bounded before they are taken.

use std::collections::BTreeMap;

use soci_layer::OverlayXattr;
use soci_layerfs::{Cancelled, Tree, TreeError, TreeOptions};
use soci_meter::Measure;
use soci_ztoc::{FileMetadata, FileType};

fn entry(name: impl Into<Vec<u8>>, file_type: FileType) -> FileMetadata {
    FileMetadata {
        name: name.into(),
        file_type,
        uncompressed_offset: 512,
        uncompressed_size: 0,
        linkname: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        uname: Vec::new(),
        gname: Vec::new(),
        mod_time: "2024-01-01T00:00:00Z".to_owned(),
        devmajor: 0,
        devminor: 0,
        xattrs: Vec::new(),
    }
}

fn build(toc: &[FileMetadata]) -> Result<Tree, TreeError> {
    Tree::build(toc, 1 << 20, TreeOptions::default())
}

fn xattr(name: String, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (
        format!("SCHILY.xattr.user.{name}").into_bytes(),
        value.to_vec(),
    )
}

#[test]
fn links_of_forty_long_targets_each_are_refused_by_their_steps() {
    // Each entry's parent leads through 38 links of 2,000 parts.
    let target = |next: usize| format!("{}l{next}", "./".repeat(100).as_str());
    let mut toc: Vec<_> = (0..38)
        .map(|at| {
            let mut link = entry(format!("l{at}"), FileType::Symlink);
            let parts = "d/../".repeat(700);
            link.linkname = match at {
                37 => b"d".to_vec(),
                _ => format!("{parts}{}", target(at + 1)).into_bytes(),
            };
            link
        })
        .collect();
    toc.push(entry("d/f", FileType::Reg));
    for at in 0..20_000 {
        // Other parents each time, so that none is remembered.
        toc.push(entry(format!("l{}/f{at}", at % 2), FileType::Reg));
    }
    let refused = build(&toc).unwrap_err();
    let TreeError::TooMuch(over) = &refused else {
        panic!("{refused}");
    };
    assert_eq!(over.measure, Measure::Steps);
}

#[test]
fn deep_paths_of_honest_layers_take_no_more_steps_than_they_may() {
    let folder = "node_modules/package/".repeat(20);
    let toc: Vec<_> = (0..50_000)
        .map(|at| entry(format!("{folder}{}/f{at}", at % 997), FileType::Reg))
        .collect();
    build(&toc).unwrap();
}

/// The last value of an attribute counts if a file has several entries, and merging them costs as much
/// as there are.
#[test]
fn attributes_of_many_entries_of_one_file_are_merged_by_name() {
    let mut toc = vec![entry("d", FileType::Dir)];
    let mut expected = BTreeMap::new();
    for round in 0_u32..300 {
        let mut again = entry("d", FileType::Dir);
        for at in 0..50 {
            let name = format!("n{}", (round * 7 + at) % 500);
            expected.insert(
                format!("user.{name}").into_bytes(),
                round.to_le_bytes().to_vec(),
            );
            again.xattrs.push(xattr(name, &round.to_le_bytes()));
        }
        toc.push(again);
    }
    let tree = build(&toc).unwrap();
    let directory = tree.find(b"d").unwrap();
    let found: BTreeMap<_, _> = tree
        .xattrs(directory)
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    assert_eq!(found, expected);
    for (name, value) in &expected {
        assert_eq!(tree.xattr(directory, name), Some(value.as_slice()));
    }
    assert_eq!(tree.xattr(directory, b"user.none"), None);
}

/// Bounded before any is kept twice: the records of both entries in memory, what stays of them by what a
/// file may have.
#[test]
fn two_hundred_thousand_attributes_of_one_file_are_refused() {
    let mut directory = entry("d", FileType::Dir);
    directory.xattrs = (0..200_000)
        .map(|at| xattr(format!("n{at}"), b"v"))
        .collect();
    let toc = [directory.clone(), directory];
    let refused = build(&toc).unwrap_err();
    assert!(
        matches!(&refused, TreeError::TooManyXattrs { name, most: 65_536 } if name == "/d"),
        "{refused}"
    );
    let options = TreeOptions {
        memory: 4 << 20,
        memory_key: Some("limits.tree_bytes"),
        ..TreeOptions::default()
    };
    let refused = soci_layerfs_error(Tree::build(&toc, 1 << 20, options).unwrap_err());
    assert!(refused.contains("4194304 bytes"), "{refused}");
}

/// The last value of each counts, however many records there are.
#[test]
fn two_hundred_thousand_records_of_one_file_are_merged() {
    let mut toc = vec![entry("d", FileType::Dir)];
    for round in 0_u32..400 {
        let mut again = entry("d", FileType::Dir);
        let value = round.to_le_bytes();
        again.xattrs = (0..500).map(|at| xattr(format!("n{at}"), &value)).collect();
        toc.push(again);
    }
    let tree = build(&toc).unwrap();
    let directory = tree.find(b"d").unwrap();
    assert_eq!(tree.xattrs(directory).count(), 500);
    let last = 399_u32.to_le_bytes();
    assert!(tree.xattrs(directory).all(|(_, value)| value == last));
}

#[test]
fn a_file_has_at_most_64_kib_of_attributes() {
    let with = |count: usize, size: usize| {
        let mut file = entry("a/file", FileType::Reg);
        file.xattrs = (0..count)
            .map(|at| xattr(format!("{at:04}"), &vec![b'v'; size]))
            .collect();
        build(&[file])
    };
    // user.0000 is nine bytes.
    let most = 65_536 / (9 + 55);
    assert_eq!(with(most, 55).unwrap().xattrs(3).count(), most);
    let refused = with(most + 1, 55).unwrap_err();
    assert!(
        matches!(&refused, TreeError::TooManyXattrs { name, most: 65_536 } if name == "/a/file"),
        "{refused}"
    );
    assert!(matches!(
        with(1, 1 << 20),
        Err(TreeError::TooManyXattrs { .. })
    ));
}

/// With them a layer would hide or replace what those below have.
#[test]
fn marks_of_overlayfs_that_a_layer_brings_are_not_shown() {
    let (trusted, users) = ("trusted.overlay.opaque", "user.overlay.opaque");
    let record = |name: &str| (format!("SCHILY.xattr.{name}").into_bytes(), b"y".to_vec());
    let mut folder = entry("etc", FileType::Dir);
    folder.xattrs = vec![record(trusted), record("user.other"), record(users)];
    for mark in [OverlayXattr::Trusted, OverlayXattr::User] {
        let options = TreeOptions {
            overlay_xattr: mark,
            ..TreeOptions::default()
        };
        let tree = Tree::build(&[folder.clone()], 1 << 20, options).unwrap();
        let folder = tree.find(b"etc").unwrap();
        assert!(tree.xattr(folder, b"user.other").is_some());
        assert_eq!(tree.xattr(folder, trusted.as_bytes()), None);
        // To overlayfs that looks for the other one it is an attribute like any.
        let users = tree.xattr(folder, users.as_bytes());
        assert_eq!(users.is_some(), mark == OverlayXattr::Trusted);
    }
}

#[test]
fn memory_is_refused_before_it_is_taken() {
    let toc: Vec<_> = (0..10_000)
        .map(|at| entry(format!("f{at}"), FileType::Reg))
        .collect();
    let with = |memory| {
        let options = TreeOptions {
            memory,
            memory_key: Some("limits.tree_bytes"),
            ..TreeOptions::default()
        };
        Tree::build(&toc, 1 << 20, options)
    };
    let refused = soci_layerfs_error(with(512 << 10).unwrap_err());
    assert!(
        refused.contains("524288 bytes") && refused.contains("limits.tree_bytes"),
        "{refused}"
    );
    let tree = with(4 << 20).unwrap();
    assert!(tree.memory() < 1 << 20, "{}", tree.memory());
}

fn soci_layerfs_error(error: TreeError) -> String {
    match error {
        TreeError::TooMuch(over) => over.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_build_that_no_caller_waits_for_stops() {
    let cancelled = Cancelled::default();
    let toc: Vec<_> = (0..1000)
        .map(|at| entry(format!("f{at}"), FileType::Reg))
        .collect();
    let options = TreeOptions {
        cancelled: cancelled.clone(),
        ..TreeOptions::default()
    };
    Tree::build(&toc, 1 << 20, options.clone()).unwrap();
    cancelled.set();
    let stopped = Tree::build(&toc, 1 << 20, options).unwrap_err();
    assert_eq!(stopped, TreeError::Cancelled);
}

/// The path of a file for the log is found by as many searches as it has parts.
#[test]
fn paths_are_found_in_deep_trees_with_links() {
    let deep = "d/".repeat(1000);
    let mut toc = Vec::new();
    for at in 0..2000 {
        toc.push(entry(format!("{deep}f{at}"), FileType::Reg));
        let mut link = entry(format!("a{at}"), FileType::Hardlink);
        link.linkname = format!("{deep}f{at}").into_bytes();
        toc.push(link);
    }
    let tree = build(&toc).unwrap();
    for name in ["a0", "a1", "a1999"] {
        let ino = tree.find(name.as_bytes()).unwrap();
        // Its first name, breadth first, is the one in the root.
        assert_eq!(tree.path(ino), format!("/{name}").into_bytes());
        assert_eq!(tree.attr(ino).unwrap().nlink, 2);
    }
    let directory = tree.find(deep.as_bytes()).unwrap();
    assert_eq!(
        tree.path(directory),
        format!("/{}", deep.trim_end_matches('/')).into_bytes()
    );
    for unknown in [0, tree.len() + 1, u64::MAX] {
        assert_eq!(tree.path(unknown), b"/");
    }
}

/// 300 paths of 2,000 parts among 62,000 directories.
#[test]
fn the_paths_of_all_files_of_a_deep_and_wide_tree_are_found() {
    let deep = "d/".repeat(2000);
    let mut toc: Vec<_> = (0..60_000)
        .map(|at| entry(format!("w{at}"), FileType::Dir))
        .collect();
    toc.extend((0..300).map(|at| entry(format!("{deep}f{at}"), FileType::Reg)));
    let tree = build(&toc).unwrap();
    for at in 0..300 {
        let path = format!("/{deep}f{at}");
        let ino = tree.find(path.as_bytes()).unwrap();
        assert_eq!(tree.path(ino), path.as_bytes());
    }
}
