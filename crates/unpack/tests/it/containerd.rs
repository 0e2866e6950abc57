//! What is unpacked here is what containerd unpacks, entry by entry. Needs root, containerd,
//! docker-registry and overlayfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use soci_layer::LowerLayer;
use soci_testkit::listing::{self, Listing};
use soci_testkit::{
    Containerd, ContainerdOptions, ImageBuilder, Layer, Registry, TestRoot, image::OciImage,
};
use soci_unpack::{ApplyOptions, LowerDirectory, apply, decompress};

/// 2025-01-01: what is later was made while unpacking.
const NEW: i64 = 1_735_689_600;

fn base() -> Layer {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    Layer::new()
        .dir(".")
        .mode(0o701)
        .owner(3, 4)
        .dir("usr/lib")
        .mode(0o711)
        .symlink("lib", "usr/lib")
        .text("lib/through-link", "1")
        .dir("srv")
        .mode(0o2770)
        .owner(11, 12)
        .xattr("user.note", b"n")
        .text("srv/a", "a")
        .text("srv/one/two/below-setgid", "")
        .dir("old")
        .text("old/one", "1")
        .text("old/two", "2")
        .dir("tmp")
        .mode(0o1777)
        .text("bin/suid", "s")
        .mode(0o6755)
        .owner(1, 2)
        .text("bin/capable", "c")
        .mode(0o755)
        .xattr("security.capability", capability)
        .xattr("trusted.forged", b"y")
        .xattr("user.kept", b"k")
        .text("nano", "n")
        .pax("mtime", b"1700000000.123456789")
        .text("before-1970", "")
        .pax("mtime", b"-5")
        .text("big-ids", "")
        .owner(3_000_000_000, 3_000_000_001)
        .fifo("fifo")
        .char_device("null", 1, 3)
        .mode(0o666)
        .block_device("disk", 259, 70_000)
        .text("x", "linked")
        .mode(0o640)
        .hardlink("hard/one", "x")
        .mode(0o600)
        .owner(9, 9)
        .hardlink("hard/two", "hard/one")
        .mode(0o600)
        .owner(9, 9)
        .text("renamed-1", "")
        .pax("path", b"/absolute")
        .text("renamed-2", "")
        .pax("path", b"../../out/../escaped")
        .text("./dotted//twice", "")
        .text(&format!("long/{}", "n".repeat(200)), "")
        .symlink("dangling", "../../../nowhere")
        .text("dangling/inside", "")
}

fn upper() -> Layer {
    Layer::new()
        .text("srv/implied", "")
        .text("srv/one/two/implied", "")
        .dir("team")
        .mode(0o2770)
        .owner(11, 12)
        .text("team/one/two/below-setgid", "")
        .text("before/one/two", "")
        .dir("before")
        .mode(0o2770)
        .owner(11, 12)
        .text("before/new/one", "")
        .text("usr/lib/implied", "")
        .text("lib/implied", "")
        .whiteout("srv/a")
        .opaque("old")
        .text("old/three", "3")
        .whiteout("nano")
        .text("tmp", "a file now")
        .dir("x")
        .mode(0o750)
        .text("x/below", "")
        .symlink("bin/suid", "capable")
        .text("late", "1")
        .text("late", "2")
        .dir("late")
        .text("late/below", "3")
        .text("late", "4")
        .whiteout("whiteout-first")
        .text("whiteout-first", "")
        .dir("whiteout-of-a-directory")
        .text("name with spaces", "")
        .dir("empty")
        .mtime(5)
}

fn unpack(image: &OciImage, number: usize, into: &Path, below: &[PathBuf]) {
    let hex = image.layers[number].digest.hex();
    let blob = fs::File::open(image.dir.join("blobs/sha256").join(hex)).unwrap();
    fs::create_dir(into).unwrap();
    let lower = below.iter().rev().cloned();
    let options = ApplyOptions {
        lower: lower
            .map(|path| Box::new(LowerDirectory(path)) as Box<dyn LowerLayer>)
            .collect(),
        ..ApplyOptions::default()
    };
    apply(decompress(blob).unwrap(), into, &options, &|| false).unwrap();
}

/// Where containerd's own snapshotter put the layers, lowest first.
fn containerds(containerd: &Containerd, layers: usize) -> Vec<PathBuf> {
    let snapshots = containerd
        .root()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let mut ids: Vec<u32> = fs::read_dir(&snapshots)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids.len(), layers);
    ids.iter()
        .map(|id| snapshots.join(id.to_string()).join("fs"))
        .collect()
}

fn without_new_times(mut listing: Listing) -> Listing {
    for file in listing.values_mut() {
        let mut columns: Vec<&str> = file.line.split('|').collect();
        let seconds: i64 = columns[4].split('.').next().unwrap().parse().unwrap();
        if seconds > NEW {
            columns[4] = "new";
        }
        file.line = columns.join("|");
    }
    listing
}

#[test]
fn layers_are_unpacked_as_by_the_containerd_beside_us() {
    let root = TestRoot::new().unwrap();
    let image = ImageBuilder::new()
        .layer(base())
        .layer(upper())
        .layer(
            Layer::new()
                .text("srv/deeper/third", "3")
                .text("old/third", ""),
        )
        .write(&root.dir("layout").unwrap(), "latest")
        .unwrap();
    let registry = Registry::start().unwrap();
    registry
        .push_layout(&image.dir, "latest", "compared")
        .unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let reference = registry.reference("compared:latest");
    containerd
        .ctr("default")
        .pull(&reference, "overlayfs")
        .unwrap();

    let theirs = containerds(&containerd, 3);
    let mut ours: Vec<PathBuf> = Vec::new();
    for (number, theirs) in theirs.iter().enumerate() {
        let folder = root.path().join(format!("unpacked-{number}"));
        unpack(&image, number, &folder, &ours);
        ours.push(folder.clone());
        // What the layer says of its root is ignored.
        let root = |path: &Path| {
            let stat = fs::metadata(path).unwrap();
            (stat.mode(), stat.uid(), stat.gid())
        };
        assert_eq!(root(&folder), root(theirs));
        let seen = without_new_times(listing::of(&folder));
        let expected = without_new_times(listing::of(theirs));
        let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&seen), names(&expected), "layer {number}");
        for (path, expected) in &expected {
            assert_eq!(&seen[path], expected, "layer {number}: {path}");
        }
    }
}
