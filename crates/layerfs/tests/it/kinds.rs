//! The golden layers appear as containerd unpacked them, seen without FUSE and through a mount with
//! the same assertions. The mount needs root and /dev/fuse; the merged view needs overlayfs.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use soci_fetch::testing::MemoryLayer;
use soci_fuse::Operation;
use soci_layerfs::{LayerMountOptions, TreeOptions, TreeView};
use soci_oci::Digest;
use soci_testkit::listing::{self, File, Listing, assert_same, line};

use crate::support::direct::{Direct, u32_at, u64_at};
use crate::support::golden;
use crate::support::{Mount, run, tree_of};

fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
}

/// The listing as requests and replies give it.
fn direct_listing(client: &Direct, node: u64, path: &str, listing: &mut Listing) {
    for (name, ino) in client.list(node, 512, false) {
        if name == b"." || name == b".." {
            continue;
        }
        assert_eq!(client.lookup(node, &name), Some(ino));
        let path = format!("{path}/{}", String::from_utf8(name).unwrap());
        let attr = client.ask(ino, Operation::GetAttr).unwrap();
        let attr = &attr[16..];
        let (size, mode) = (u64_at(attr, 8), u32_at(attr, 60));
        let target = client.ask(ino, Operation::ReadLink).unwrap_or_default();
        let regular = mode >> 12 == 0o10;
        let content = regular.then(|| client.read(ino, 0, u32::MAX).unwrap());
        let mut xattrs = BTreeMap::new();
        let list = client.ask(ino, Operation::ListXattr { size: 4096 });
        for name in names(&list.unwrap()) {
            let size = 4096;
            let value = client.ask(ino, Operation::GetXattr { name, size }).unwrap();
            xattrs.insert(String::from_utf8(name.to_vec()).unwrap(), value);
        }
        let file = File {
            line: line(
                mode,
                u32_at(attr, 68),
                u32_at(attr, 72),
                size,
                i64::try_from(u64_at(attr, 32)).unwrap(),
                u32_at(attr, 52),
                u64::from(u32_at(attr, 64)),
                std::str::from_utf8(&target).unwrap(),
            ),
            sha256: content.as_deref().map(sha256),
            xattrs,
        };
        listing.insert(path.clone(), file);
        if mode >> 12 == 0o04 {
            direct_listing(client, ino, &path, listing);
        }
    }
}

#[test]
fn golden_layers_appear_as_containerd_unpacks_them_without_fuse() {
    for number in [1, 2] {
        let golden = golden::layer(number);
        let tree = tree_of(&golden.ztoc, TreeOptions::default()).unwrap();
        let data = Arc::new(MemoryLayer::new(golden.tar));
        let client = Direct::new(Arc::new(tree), data);
        let mut listing = Listing::new();
        direct_listing(&client, soci_fuse::ROOT_ID, ".", &mut listing);
        assert_same(&listing, &golden.listing);
    }
}

#[test]
fn golden_layers_appear_as_containerd_unpacks_them_through_a_mount() {
    for number in [1, 2] {
        let golden = golden::layer(number);
        let mount = Mount::new(&golden.ztoc, golden.tar, LayerMountOptions::default());
        // Twice: from the server, then from the kernel's caches.
        for _ in 0..2 {
            let listing = listing::of(&mount.path(""));
            assert_same(&listing, &golden.listing);
        }
    }
}

#[test]
fn hard_links_share_an_inode_and_devices_have_their_numbers() {
    let golden = golden::layer(1);
    let mount = Mount::new(&golden.ztoc, golden.tar, LayerMountOptions::default());
    let stat = |name: &str| mount.path(name).symlink_metadata().unwrap();
    assert_eq!(stat("data/a").ino(), stat("data/hard1").ino());
    assert_eq!(stat("data/a").ino(), stat("data/hard2").ino());
    assert_ne!(stat("data/a").ino(), stat("data/random").ino());
    let null = stat("dev/null");
    assert_eq!(
        (
            rustix::fs::major(null.rdev()),
            rustix::fs::minor(null.rdev())
        ),
        (1, 3)
    );
    let sda = stat("dev/sda");
    assert_eq!(
        (rustix::fs::major(sda.rdev()), rustix::fs::minor(sda.rdev())),
        (8, 0)
    );
    // Devices are honoured: this is the real /dev/null.
    assert_eq!(std::fs::read(mount.path("dev/null")).unwrap(), b"");
    assert_eq!(stat("data/tail").blocks(), 8);
    assert_eq!(stat("data/tail").blksize(), 4096);
    assert_eq!(stat("etc/empty").blocks(), 0);
    assert_eq!(stat("data/text").blocks(), 500_000_u64.div_ceil(4096) * 8);
}

#[test]
fn disabled_xattrs_hide_all_but_the_opaque_mark() {
    let options = TreeOptions {
        disable_xattrs: true,
        ..TreeOptions::default()
    };
    let mark = soci_layer::OverlayXattr::Trusted;
    let tree = |number, options: &TreeOptions| {
        let tree = tree_of(&golden::layer(number).ztoc, options.clone());
        TreeView::from(Arc::new(tree.unwrap()))
    };
    // Built without them, or hidden in a tree that another image shows whole.
    let shown = TreeOptions::default();
    for first in [tree(1, &options), tree(1, &shown).without_xattrs(mark)] {
        assert!(!first.has_xattrs());
        let file = first.tree().find(b"xattr/file").unwrap();
        assert_eq!(first.xattrs(file).count(), 0);
    }
    assert!(tree(1, &shown).has_xattrs());
    for second in [tree(2, &options), tree(2, &shown).without_xattrs(mark)] {
        assert!(second.has_xattrs());
        let etc = second.tree().find(b"etc").unwrap();
        assert_eq!(
            second.xattr(etc, b"trusted.overlay.opaque"),
            Some(&b"y"[..])
        );
    }
}

#[test]
fn the_opaque_mark_is_the_users_where_overlay_wants_that() {
    let options = TreeOptions {
        overlay_xattr: soci_layer::OverlayXattr::User,
        ..TreeOptions::default()
    };
    let tree = tree_of(&golden::layer(2).ztoc, options).unwrap();
    let etc = tree.find(b"etc").unwrap();
    assert_eq!(tree.xattr(etc, b"user.overlay.opaque"), Some(&b"y"[..]));
    assert_eq!(tree.xattr(etc, b"trusted.overlay.opaque"), None);
}

/// Both layers merged by the kernel's overlayfs show what unpacking one over the other gives.
#[test]
fn overlayfs_over_both_mounts_shows_the_merged_image() {
    let (first, second) = (golden::layer(1), golden::layer(2));
    let mut expected: Listing = Listing::new();
    for (path, file) in &first.listing {
        let whiteout = |upper: &File| upper.line.starts_with("c|0|");
        let hidden = path.starts_with("./etc/") || second.listing.get(path).is_some_and(whiteout);
        if !hidden {
            expected.insert(path.clone(), file.clone());
        }
    }
    for (path, file) in &second.listing {
        if !file.line.starts_with("c|0|") {
            expected.insert(path.clone(), file.clone());
        }
    }
    // Overlay does not look for whiteouts in the listing of a directory that only one layer has:
    // on plain directories too the name is listed, and then not found.
    let line = "listed, but not there".to_owned();
    let ghost = File {
        line,
        ..File::default()
    };
    expected.insert("./gone/dir".to_owned(), ghost);
    let lower = Mount::new(&first.ztoc, first.tar, LayerMountOptions::default());
    let upper = Mount::new(&second.ztoc, second.tar, LayerMountOptions::default());
    let merged = upper.beside().join("merged");
    std::fs::create_dir(&merged).unwrap();
    let layers = format!(
        "lowerdir={}:{}",
        upper.path("").display(),
        lower.path("").display()
    );
    let merged_path = merged.to_str().unwrap();
    run(
        "mount",
        &["-t", "overlay", "overlay", "-o", &layers, merged_path],
    );
    let listing = listing::of(&merged);
    run("umount", &[merged_path]);
    let seen: Vec<_> = listing.keys().collect();
    assert_eq!(seen, expected.keys().collect::<Vec<_>>());
    for (path, expected) in &expected {
        let seen = &listing[path];
        assert_eq!(seen.sha256, expected.sha256, "{path}");
        // Type, mode, owner; overlay counts links and merges times in its own way.
        let head = |file: &File| file.line.split('|').take(3).collect::<Vec<_>>().join("|");
        assert_eq!(head(seen), head(expected), "{path}");
    }
}

#[test]
fn the_first_read_of_a_fifo_name_says_it_is_one() {
    let golden = golden::layer(1);
    let mount = Mount::new(&golden.ztoc, golden.tar, LayerMountOptions::default());
    let kind = mount
        .path("dev/fifo")
        .symlink_metadata()
        .unwrap()
        .file_type();
    assert!(kind.is_fifo());
    let target = std::fs::read_link(mount.path("dangling")).unwrap();
    assert_eq!(target.as_os_str().as_bytes(), b"no/such/file");
}
