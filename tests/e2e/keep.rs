//! What is stored stays within its limit, and goes with its image. Needs root, FUSE, containerd,
//! docker-registry and the two programs.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, indexed, left_behind, pull, run, stack, status, wait_until,
};
use soci_testkit::image::{ImageBuilder, Layer, busybox_layer};
use soci_testkit::process::mounts_below;
use soci_testkit::{Content, SociCli, Stack, TestRoot, container_id};

const LIMIT: u64 = 16 << 20;
const FILE: u64 = 11 << 20;

fn content(seed: u64) -> Content {
    Content::Noise { seed, length: FILE }
}

/// An image whose command reads a file of its own, which prints its checksum.
fn image(stack: &Stack, name: &str, seed: u64) -> (String, String) {
    let layout = TestRoot::new().unwrap();
    let data = Layer::new().dir("data").file("data/large", content(seed));
    ImageBuilder::new()
        .layer(busybox_layer().unwrap())
        .layer(data)
        .command(["/bin/sha256sum", "/data/large"])
        .write(layout.path(), "image")
        .unwrap();
    let digest = soci_oci::Digest::of(&content(seed).to_vec());
    let printed = format!("{}  /data/large\n", digest.hex());
    (indexed(stack, layout.path(), name), printed)
}

/// Allocated bytes below a directory, itself included.
fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let below: u64 = entries.map(|entry| allocated(&entry.unwrap().path())).sum();
    metadata.blocks() * 512 + below
}

/// The stored layer that is largest on disk.
fn largest(layers: &Path) -> (PathBuf, u64) {
    let folders = std::fs::read_dir(layers).unwrap();
    let folders = folders.map(|folder| folder.unwrap().path());
    let sized = folders.map(|folder| (allocated(&folder), folder));
    let (bytes, folder) = sized.max().unwrap();
    (folder, bytes)
}

/// Compressed and stored bytes of an image's layer of data.
fn fetched(stack: &Stack, reference: &str) -> (u64, u64) {
    let status = status(&stack.daemon);
    let images = status["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["reference"] == reference);
    let layer = &image.unwrap()["layers"][1];
    (
        layer["sizeBytes"].as_u64().unwrap(),
        layer["fetchedBytes"].as_u64().unwrap(),
    )
}

fn is_within_limit(stack: &Stack) -> Result<(), String> {
    let status = status(&stack.daemon);
    let store = &status["store"];
    assert_eq!(store["limitBytes"].as_u64(), Some(LIMIT));
    match store["sizeBytes"].as_u64().unwrap() <= LIMIT {
        true => Ok(()),
        false => Err(store.to_string()),
    }
}

/// Sum of what containerd has as the usage of committed snapshots.
fn usage(stack: &Stack) -> u64 {
    let snapshots = ["snapshots", "--snapshotter", "soci", "usage", "-b"];
    let output = stack.containerd.ctr(NAMESPACE).output(snapshots).unwrap();
    let rows = output.lines().filter(|row| row.starts_with("sha256:"));
    rows.map(|row| {
        let size = row.split_whitespace().nth(1).unwrap();
        size.parse::<u64>().unwrap()
    })
    .sum()
}

#[test]
fn what_is_stored_keeps_its_limit_and_goes_with_its_image() {
    let config = format!("{NO_BACKGROUND}[layer_store]\nmax_size_bytes = {LIMIT}\n");
    let stack = stack(&config);
    let layers = stack.daemon.root().join("soci/layers");
    let (a, sum_a) = image(&stack, "a", 1);
    let (b, sum_b) = image(&stack, "b", 2);
    pull(&stack, &a);
    pull(&stack, &b);
    assert_eq!(run(&stack, &a, &[]), sum_a);
    let (size, stored) = fetched(&stack, &a);
    assert_eq!(stored, size);

    // The image without a container makes room for the one with a container.
    let ctr = stack.containerd.ctr(NAMESPACE);
    let kept = container_id();
    let kept = kept.as_str();
    let create = ["containers", "create", "--snapshotter", "soci", &b, kept];
    ctr.output(create).unwrap();
    assert_eq!(ctr.start_task(kept).unwrap(), sum_b);
    let (size, stored) = fetched(&stack, &b);
    assert_eq!(stored, size, "a container reads it");
    // The first container may still have been there at first: the store shrinks afterwards then.
    wait_until("the store is within its limit", PATIENCE, || {
        is_within_limit(&stack)
    });
    let (size, stored) = fetched(&stack, &a);
    assert!(stored < size, "{stored} of {size}");
    assert!(status(&stack.daemon)["store"]["evictedBytes"].as_u64() > Some(0));
    wait_until("disk and usage agree", PATIENCE, || {
        let folders = std::fs::read_dir(&layers).unwrap();
        let folders = folders.map(|folder| folder.unwrap().path());
        let ours = folders.filter(|folder| !folder.ends_with(".removed"));
        let on_disk: u64 = ours.map(|folder| allocated(&folder)).sum();
        let used = usage(&stack);
        assert!(on_disk < LIMIT + (2 << 20), "{on_disk}");
        match used == on_disk {
            true => Ok(()),
            false => Err(format!("{used} reported, {on_disk} on disk")),
        }
    });

    // Two containers read more than the limit: both are served, and the store shrinks afterwards.
    assert_eq!(run(&stack, &a, &[]), sum_a);
    let (size, stored) = fetched(&stack, &b);
    assert_eq!(stored, size, "it was read a moment ago");
    wait_until("the store is within its limit", PATIENCE, || {
        is_within_limit(&stack)
    });

    // A process has a file of a removed image open.
    ctr.output(["tasks", "rm", kept]).unwrap_or_default();
    ctr.output(["containers", "rm", kept]).unwrap();
    let mounts = mounts_below(&stack.daemon.root()).unwrap().into_iter();
    let large = mounts.map(|mount| mount.join("data/large"));
    let large = large.filter(|path| path.exists());
    let mut open = large.map(|path| std::fs::File::open(path).unwrap());
    let (one, two) = (open.next().unwrap(), open.next().unwrap());
    assert!(largest(&layers).1 > FILE / 2);
    for image in [&a, &b] {
        ctr.output(["images", "rm", "--sync", image]).unwrap();
    }
    wait_until("the space is free under readers", PATIENCE, || {
        let (folder, bytes) = largest(&layers);
        match bytes < 1 << 20 {
            true => Ok(()),
            false => Err(format!("{bytes} in {}", folder.display())),
        }
    });
    for file in [&one, &two] {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, FILE / 2).unwrap();
        let truth = |seed| content(seed).range(FILE / 2, 4096);
        assert!(bytes == truth(1) || bytes == truth(2), "wrong bytes");
    }
    drop((one, two));
    wait_until("nothing is left", PATIENCE, || {
        let left = left_behind(&stack);
        match left.is_empty() {
            true => Ok(()),
            false => Err(left.join(", ")),
        }
    });

    // What another program left.
    let junk = [
        layers.join("junk"),
        stack.daemon.root().join("snapshotter/snapshots/new-12"),
    ];
    for folder in &junk {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("data"), vec![7; 100_000]).unwrap();
    }
    let shown = gc(&stack, &["--dry-run"]);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(junk.iter().all(|folder| folder.exists()));
    let freed = gc(&stack, &[]);
    assert!(
        freed.iter().all(|left| left["removed"] == true),
        "{freed:?}"
    );
    assert!(!junk.iter().any(|folder| folder.exists()));
    assert!(gc(&stack, &[]).is_empty());
}

fn gc(stack: &Stack, flags: &[&str]) -> Vec<serde_json::Value> {
    let socket = stack.daemon.socket().display().to_string();
    let mut arguments = vec!["gc", "--json", "--snapshotter-address", &socket];
    arguments.extend(flags);
    let output = SociCli::standalone().unwrap().output(arguments).unwrap();
    let found: serde_json::Value = serde_json::from_str(&output).unwrap();
    found["leftovers"].as_array().unwrap().clone()
}
