//! The rules by which entries become files, one by one.

use crate::support::{Layer, tree_of, ztoc_of};
use soci_layer::{IdMaps, IdRange};
use soci_layerfs::{Tree, TreeError, TreeOptions, TreeView};
use std::sync::Arc;

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let directory = tree.find(path.as_bytes()).unwrap();
    tree.readdir(directory, 2)
        .unwrap()
        .map(|entry| String::from_utf8(entry.name.to_vec()).unwrap())
        .collect()
}

fn mode(tree: &Tree, path: &str) -> u32 {
    tree.attr(tree.find(path.as_bytes()).unwrap()).unwrap().mode
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    let tree = Layer::new().tree().unwrap();
    assert_eq!(tree.len(), 1);
    assert_eq!(names(&tree, ""), Vec::<String>::new());
    assert_eq!(tree.root_attr().mode, 0o40755);
    assert_eq!(tree.root_attr().nlink, 2);
}

#[test]
fn an_entry_for_the_root_has_no_effect() {
    for root in ["./", ".", "/", "", "a/..", "./."] {
        let layer = Layer::new().dir(root, 0o700).file("a", b"");
        let tree = layer.tree().unwrap();
        let attr = tree.root_attr();
        assert_eq!((attr.mode, attr.uid, attr.gid), (0o40755, 0, 0), "{root:?}");
        assert_eq!(names(&tree, ""), ["a"], "{root:?}");
    }
}

#[test]
fn what_no_entry_describes_is_as_old_as_the_newest_entry() {
    let tree = Layer::new().file("a/b", b"").tree().unwrap();
    for path in ["", "a"] {
        let attr = tree.attr(tree.find(path.as_bytes()).unwrap()).unwrap();
        assert_eq!(attr.mtime, 1_700_000_000, "{path:?}");
    }
}

#[test]
fn names_never_lead_out_of_the_layer() {
    let layer = Layer::new()
        .file("../../up", b"")
        .file("/abs/./x/../y", b"")
        .file("z/../..", b"");
    let tree = layer.tree().unwrap();
    assert_eq!(names(&tree, ""), ["abs", "up"]);
    assert_eq!(names(&tree, "abs"), ["y"]);
    assert_eq!(tree.lookup(1, b".."), Some(1));
}

#[test]
fn the_last_entry_of_a_name_wins_whatever_its_kind() {
    let tree = Layer::new()
        .file("a/b", b"1")
        .file("a", b"file over directory")
        .file("c", b"")
        .dir("c", 0o711)
        .file("c/d", b"")
        .dir("e", 0o700)
        .file("e/kept", b"")
        .dir("e", 0o750)
        .tree()
        .unwrap();
    assert_eq!(tree.find(b"a/b"), None);
    assert_eq!(tree.extent(tree.find(b"a").unwrap()).unwrap().1, 19);
    assert_eq!(mode(&tree, "c"), 0o40711);
    assert_eq!(names(&tree, "c"), ["d"]);
    assert_eq!(mode(&tree, "e"), 0o40750);
    assert_eq!(names(&tree, "e"), ["kept"]);
    // Nothing is left of what was replaced.
    assert_eq!(tree.len(), 1 + 3 + 2);
}

#[test]
fn parents_that_are_links_are_followed_within_the_layer() {
    let tree = Layer::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/../lib")
        .symlink("out", "../../../made")
        .file("lib/one", b"")
        .file("abs/two", b"")
        .file("out/three", b"")
        .tree()
        .unwrap();
    assert_eq!(names(&tree, "usr/lib"), ["one", "two"]);
    assert_eq!(names(&tree, "made"), ["three"]);
    assert_eq!(mode(&tree, "lib") >> 12, 0o12);
    let looped = Layer::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", b"");
    assert!(matches!(looped.tree(), Err(TreeError::TooManyLinks { .. })));
}

#[test]
fn a_file_below_a_file_is_refused() {
    let layer = Layer::new().file("a", b"").file("a/b", b"");
    assert!(matches!(layer.tree(), Err(TreeError::NotADirectory { .. })));
}

#[test]
fn hard_links_share_what_they_name() {
    let tree = Layer::new()
        .symlink("s", "nowhere")
        .link("s2", "./s", 0o777)
        .file("f", b"x")
        .link("d/g", "/f", 0o600)
        .link("h", "d/g", 0o640)
        .tree()
        .unwrap();
    assert_eq!(tree.find(b"s"), tree.find(b"s2"));
    assert_eq!(
        tree.readlink(tree.find(b"s2").unwrap()),
        Some(&b"nowhere"[..])
    );
    let file = tree.find(b"f").unwrap();
    assert_eq!(tree.find(b"d/g"), Some(file));
    assert_eq!(tree.find(b"h"), Some(file));
    let attr = tree.attr(file).unwrap();
    // As containerd: the last link's metadata is the file's.
    assert_eq!((attr.nlink, attr.mode), (3, 0o100_640));
}

#[test]
fn a_replaced_link_target_lives_on_under_its_other_name() {
    let layer = Layer::new()
        .file("a", b"old")
        .link("b", "a", 0o644)
        .file("a", b"newer");
    let tree = layer.tree().unwrap();
    let (a, b) = (tree.find(b"a").unwrap(), tree.find(b"b").unwrap());
    assert_eq!(tree.extent(a).unwrap().1, 5);
    assert_eq!(tree.extent(b).unwrap().1, 3);
    assert_eq!(tree.attr(b).unwrap().nlink, 1);
}

#[test]
fn a_hard_link_to_nothing_refuses_the_layer() {
    for layer in [
        Layer::new().link("a", "missing", 0o644),
        Layer::new().link("a", "no/dir", 0o644),
        Layer::new().file("a", b"").link("a", "a", 0o644),
        Layer::new().link("a", "/", 0o644),
    ] {
        assert!(matches!(layer.tree(), Err(TreeError::LinkTarget { .. })));
    }
    let layer = Layer::new().dir("d", 0o755).link("a", "d", 0o644);
    assert!(matches!(
        layer.tree(),
        Err(TreeError::LinkToDirectory { .. })
    ));
}

#[test]
fn whiteouts_are_devices_and_their_names_never_show() {
    let tree = Layer::new()
        .file("d/.wh.gone", b"")
        .file("d/.wh.kept", b"")
        .file("d/kept", b"")
        .file("o/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1.2", b"hidden")
        .file(".wh..wh.aufs", b"")
        .file("d/.wh.", b"")
        .file("d/.wh..", b"")
        .file("d/.wh...", b"")
        .link("shown", ".wh..wh.plnk/1.2", 0o644)
        .tree()
        .unwrap();
    assert_eq!(names(&tree, ""), ["d", "o", "shown"]);
    assert_eq!(names(&tree, "d"), ["gone", "kept"]);
    let gone = tree.attr(tree.find(b"d/gone").unwrap()).unwrap();
    assert_eq!((gone.mode, gone.rdev, gone.nlink), (0o20000, 0, 1));
    assert_eq!(mode(&tree, "d/kept"), 0o100_644);
    let opaque = tree.find(b"o").unwrap();
    assert_eq!(
        tree.xattr(opaque, b"trusted.overlay.opaque"),
        Some(&b"y"[..])
    );
    let shown = tree.attr(tree.find(b"shown").unwrap()).unwrap();
    assert_eq!((shown.size, shown.nlink), (6, 1));
}

#[test]
fn ids_are_mapped_where_a_map_is_given() {
    let tar = Layer::new().file("a", b"").tar();
    let range = |host| IdRange {
        container: 0,
        host,
        length: 10,
    };
    let id_maps = IdMaps {
        uid: vec![range(1000)],
        gid: vec![IdRange {
            container: 5,
            ..range(7)
        }],
    };
    let tree = Arc::new(tree_of(&ztoc_of(&tar), TreeOptions::default()).unwrap());
    let plain = TreeView::from(tree.clone());
    let mapped = plain.clone().with_id_maps(Some(id_maps));
    let file = tree.find(b"a").unwrap();
    let owner = |attr: soci_fuse::Attr| (attr.uid, attr.gid);
    assert_eq!(owner(mapped.attr(file).unwrap()), (1000, 65534));
    assert_eq!(owner(mapped.root_attr()), (1000, 65534));
    assert_eq!(owner(plain.root_attr()), (0, 0));
    // All views share the tree.
    assert!(Arc::ptr_eq(mapped.tree(), &tree));
}

#[test]
fn a_file_beyond_the_tar_is_refused() {
    let mut ztoc = ztoc_of(&Layer::new().file("a", b"x").tar());
    ztoc.toc[0].uncompressed_size = u64::MAX;
    let built = tree_of(&ztoc, TreeOptions::default());
    assert!(matches!(built, Err(TreeError::BadExtent { .. })));
}

/// Two bytes of a name can stand for a directory that takes a hundred times as much memory.
#[test]
fn a_layer_of_implied_directories_only_is_refused() {
    // Names as PAX allows them: as long as a path can be.
    let deep = |number: usize| format!("{number}/{}f", "d/".repeat(2000));
    let mut ztoc = ztoc_of(&Layer::new().file("f", b"x").tar());
    let entry = ztoc.toc[0].clone();
    ztoc.toc = (0..100)
        .map(|number| {
            let mut entry = entry.clone();
            entry.name = deep(number).into_bytes();
            entry
        })
        .collect();
    let error = tree_of(&ztoc, TreeOptions::default()).unwrap_err();
    assert!(
        matches!(error, TreeError::TooManyDirectories { .. }),
        "{error}"
    );
    // One is fine, and so are layers without any entry for a directory.
    ztoc.toc.truncate(1);
    tree_of(&ztoc, TreeOptions::default()).unwrap();
    ztoc.toc = (0..10_000)
        .map(|number| {
            let mut entry = entry.clone();
            entry.name = format!("a/{number}/b/c/d/e/f").into_bytes();
            entry
        })
        .collect();
    tree_of(&ztoc, TreeOptions::default()).unwrap();
    // No kernel takes a longer path.
    ztoc.toc.truncate(1);
    ztoc.toc[0].name = format!("{}f", "d/".repeat(3000)).into_bytes();
    tree_of(&ztoc, TreeOptions::default()).unwrap_err();
}

#[test]
fn the_numbering_is_the_same_for_all_who_read_the_ztoc() {
    let make = || {
        Layer::new()
            .file("b/x", b"")
            .file("a", b"")
            .link("c", "a", 0o644)
    };
    let (one, two) = (make().tree().unwrap(), make().tree().unwrap());
    assert_eq!(one.numbering_checksum(), two.numbering_checksum());
    let other = make().file("d", b"").tree().unwrap();
    assert_ne!(one.numbering_checksum(), other.numbering_checksum());
    // Version 1, pinned: root, then a directory's entries by name.
    let numbers = ["a", "b", "c", "b/x"].map(|path| one.find(path.as_bytes()));
    assert_eq!(numbers, [Some(2), Some(3), Some(2), Some(4)]);
    assert_eq!(soci_layerfs::NUMBERING_VERSION, 1);
    let pinned = "sha256:cc4223184be015782fe1c9d340de43f59ec1eea0ec13603a2d5cf85adff057cf";
    assert_eq!(one.numbering_checksum().to_string(), pinned);
}

#[test]
fn the_path_of_an_inode_is_known_for_the_log() {
    let tree = Layer::new()
        .file("a/b/c", b"")
        .file("z", b"")
        .tree()
        .unwrap();
    assert_eq!(tree.path(tree.find(b"a/b/c").unwrap()), b"/a/b/c");
    assert_eq!(tree.path(1), b"/");
}

/// Any order and nesting of a few names and kinds builds or is refused; never a panic, and what was
/// built can be walked.
mod arbitrary {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_sequence_of_entries_is_built_or_refused(
            steps in proptest::collection::vec(
                (0_u8..5, "[ab./w]{0,6}", "[ab./]{0,5}"), 0..20)
        ) {
            let mut layer = Layer::new();
            for (kind, name, target) in &steps {
                let name = name.replace('w', ".wh.");
                layer = match kind {
                    0 => layer.file(&name, b"x"),
                    1 => layer.dir(&name, 0o755),
                    2 => layer.symlink(&name, target),
                    3 => layer.link(&name, target, 0o644),
                    _ => layer.file(&format!("{name}/.wh..wh..opq"), b""),
                };
            }
            if let Ok(tree) = layer.tree() {
                walk(&tree, 1, 0);
            }
        }
    }

    fn walk(tree: &Tree, ino: u64, depth: usize) {
        assert!(depth < 100);
        let entries: Vec<_> = tree.readdir(ino, 2).unwrap().collect();
        assert!(entries.windows(2).all(|pair| pair[0].name < pair[1].name));
        for entry in entries {
            assert!(!entry.name.starts_with(b".wh."));
            assert_eq!(tree.lookup(ino, entry.name), Some(entry.ino));
            assert!(tree.attr(entry.ino).unwrap().nlink > 0);
            if tree.is_directory(entry.ino) {
                walk(tree, entry.ino, depth + 1);
            }
        }
    }
}
