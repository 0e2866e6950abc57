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
use soci_unpack::{ApplyError, ApplyOptions, LowerDirectory, apply, decompress};

use crate::generated_layer;

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

fn unpack(
    image: &OciImage,
    number: usize,
    into: &Path,
    below: &[PathBuf],
) -> Result<(), ApplyError> {
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
    apply(decompress(blob).unwrap(), into, &options, &|| false).map(drop)
}

/// Where containerd's own snapshotter keeps layers, lowest first.
fn containerds(containerd: &Containerd) -> Vec<PathBuf> {
    let snapshots = containerd
        .root()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let Ok(entries) = fs::read_dir(&snapshots) else {
        return Vec::new();
    };
    // What is unpacked has a temporary name at first.
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut ids: Vec<u32> = names.filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    let folder = |id: &u32| snapshots.join(id.to_string()).join("fs");
    ids.iter().map(folder).collect()
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

    let theirs = containerds(&containerd);
    assert_eq!(theirs.len(), 3);
    let mut ours: Vec<PathBuf> = Vec::new();
    for (number, theirs) in theirs.iter().enumerate() {
        let folder = root.path().join(format!("unpacked-{number}"));
        unpack(&image, number, &folder, &ours).unwrap();
        assert_same(&folder, theirs, &format!("layer {number}"));
        ours.push(folder);
    }
}

/// What a layer says of its root is ignored.
fn assert_same(ours: &Path, theirs: &Path, layer: &str) {
    let root = |path: &Path| {
        let stat = fs::metadata(path).unwrap();
        (stat.mode(), stat.uid(), stat.gid())
    };
    assert_eq!(root(ours), root(theirs), "{layer}");
    let seen = without_new_times(listing::of(ours));
    let expected = without_new_times(listing::of(theirs));
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&seen), names(&expected), "{layer}");
    for (path, expected) in &expected {
        assert_eq!(&seen[path], expected, "{layer}: {path}");
    }
}

/// Layers that no build tool would write: what containerd unpacks is unpacked here, to the same files.
/// containerd refuses more of them: where a layer below has a file on the way to an implied directory, for
/// a whiteout of what the same layer has, and when a directory whose time it sets last was replaced.
/// `SOCI_TEST_GENERATED_LAYERS=1000..2000` are other seeds than those of each run.
#[test]
fn generated_layers_are_unpacked_as_by_containerd() {
    let seeds = std::env::var("SOCI_TEST_GENERATED_LAYERS").unwrap_or_else(|_| "0..32".to_owned());
    let (first, end) = seeds.split_once("..").unwrap();
    let root = TestRoot::new().unwrap();
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let mut unpacked = 0;
    for seed in first.parse::<u64>().unwrap()..end.parse().unwrap() {
        let mut random = fastrand::Rng::with_seed(seed);
        let image = ImageBuilder::new()
            .layer(generated_layer::layer(&mut random, true))
            .layer(generated_layer::layer(&mut random, false))
            .write(&root.dir(&format!("layout-{seed}")).unwrap(), "latest")
            .unwrap();
        let repository = format!("generated-{seed}");
        registry
            .push_layout(&image.dir, "latest", &repository)
            .unwrap();
        let before = containerds(&containerd);
        let reference = registry.reference(&format!("{repository}:latest"));
        let pulled = containerd.ctr("default").pull(&reference, "overlayfs");
        let mut ours: Vec<PathBuf> = Vec::new();
        let refused = (0..image.layers.len()).find_map(|number| {
            let folder = root.path().join(format!("unpacked-{seed}-{number}"));
            let result = unpack(&image, number, &folder, &ours);
            ours.push(folder);
            result.err()
        });
        match (refused, pulled) {
            (None, Ok(_)) => {}
            (Some(refused), Ok(_)) => panic!("seed {seed}: only refused here: {refused}"),
            (_, Err(_)) => continue,
        }
        unpacked += 1;
        let mut theirs = containerds(&containerd);
        theirs.retain(|folder| !before.contains(folder));
        assert_eq!(theirs.len(), ours.len(), "seed {seed}");
        for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_same(ours, theirs, &format!("seed {seed}, layer {number}"));
        }
    }
    println!("{unpacked} images of the seeds {seeds} were unpacked");
    assert!(unpacked > 0, "none of the images can be unpacked");
}
