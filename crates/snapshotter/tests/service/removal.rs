//! Removal deletes the metadata, Cleanup the directories. Directories of other programs are kept.

use std::fs;
use std::time::Duration;

use tonic::Code;

use crate::client::assert_code;
use crate::fixture::{Machine, exists, nest};

#[tokio::test]
async fn the_disk_is_freed_at_cleanup_and_ids_are_not_used_again() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("a", "").await.unwrap();
    daemon.prepare("b", "").await.unwrap();
    daemon.remove("b").await.unwrap();
    assert_code(&daemon.stat("b").await, Code::NotFound);
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1"]);
    let mounts = daemon.prepare("b", "").await.unwrap();
    assert!(mounts[0].source.ends_with("/snapshots/3/fs"), "{mounts:?}");
}

#[tokio::test]
async fn the_disk_is_freed_soon_even_without_a_cleanup_call() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("a", "").await.unwrap();
    daemon.remove("a").await.unwrap();
    while !machine.directories().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_removed_lazy_snapshot_is_unmounted_and_its_files_are_not_touched() {
    let machine = Machine::new();
    let layer = machine.lazy_layer("layer");
    let daemon = machine.start().await;
    daemon.pull_lazily("target", "", "layer").await;
    assert_eq!(machine.mounted().len(), 1);
    daemon.remove("target").await.unwrap();
    daemon.cleanup().await;
    assert!(machine.mounted().is_empty());
    assert!(machine.directories().is_empty());
    assert_eq!(fs::read_to_string(layer.join("layer")).unwrap(), "layer");
}

#[tokio::test]
async fn directories_without_a_snapshot_are_swept_unless_they_are_foreign() {
    let machine = Machine::new();
    // Left there by another program before our first start.
    for name in ["7", "new-123", "3_4"] {
        fs::create_dir_all(machine.snapshots().join(name).join("fs")).unwrap();
    }
    let daemon = machine.start().await;
    let mounts = daemon.prepare("a", "").await.unwrap();
    assert!(mounts[0].source.ends_with("/snapshots/8/fs"), "{mounts:?}");
    // It appears as a whole: the sweeper may already be at work.
    fs::create_dir_all(machine.path("left/fs/deep/er")).unwrap();
    fs::rename(machine.path("left"), machine.snapshots().join("9")).unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["3_4", "7", "8", "new-123"]);
    daemon.kill().await;

    // Left by a crash before the metadata was written; mounted on top.
    let orphan = machine.snapshots().join("12/fs");
    fs::create_dir_all(&orphan).unwrap();
    let layer = machine.lazy_layer("layer");
    crate::double::bind(&layer, &orphan, false);
    let daemon = machine.start().await;
    let mounts = daemon.prepare("b", "").await.unwrap();
    assert!(mounts[0].source.ends_with("/snapshots/13/fs"), "{mounts:?}");
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["13", "3_4", "7", "8", "new-123"]);
    assert!(exists(&layer.join("layer")));
}

#[tokio::test]
async fn usage_counts_the_upper_directory_and_is_kept_at_the_commit() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "base", "", |root| {
            fs::write(root.join("big"), vec![1; 256 << 10]).unwrap();
            fs::File::open(root.join("big"))
                .unwrap()
                .sync_all()
                .unwrap();
        })
        .await;
    let base = daemon.usage("base").await.unwrap();
    assert_eq!(base.inodes, 2);
    assert!((256 << 10..512 << 10).contains(&base.size), "{base:?}");
    daemon.prepare("active", "base").await.unwrap();
    assert_eq!(daemon.usage("active").await.unwrap().inodes, 1);
    fs::create_dir(machine.snapshots().join("2/fs/dir")).unwrap();
    assert_eq!(daemon.usage("active").await.unwrap().inodes, 2);
    daemon.view("view", "base").await.unwrap();
    let view = daemon.usage("view").await.unwrap();
    assert_eq!((view.size, view.inodes), (0, 0));
}

/// Depth of folders that no recursion survives.
const DEEP: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_a_hundred_thousand_levels_deep_is_removed_and_no_call_is_delayed() {
    let machine = Machine::in_memory();
    let daemon = machine.start().await;
    daemon.prepare("deep", "").await.unwrap();
    nest(&machine.snapshots().join("1/fs"), DEEP);
    let usage = daemon.usage("deep").await.unwrap();
    assert_eq!(usage.inodes, 1 + DEEP as i64);
    daemon.remove("deep").await.unwrap();
    // A daemon that was stopped, or died, before the removal comes back and serves.
    daemon.stop(false).await;
    let daemon = machine.start().await;
    daemon.prepare("other", "").await.unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["2"]);
    daemon.stat("other").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_deleted_keeps_neither_a_start_nor_other_deletions_up() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for key in ["a", "b"] {
        daemon.prepare(key, "").await.unwrap();
    }
    // A mount that another mount namespace would not see, below what is deleted.
    let inner = machine.snapshots().join("1/fs/inner/mounted");
    fs::create_dir_all(&inner).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &inner, "tmpfs", flags, None).unwrap();
    for key in ["a", "b"] {
        daemon.remove(key).await.unwrap();
    }
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1"]);
    daemon.stop(false).await;
    let daemon = machine.start().await;
    daemon.prepare("c", "").await.unwrap();
    daemon.cleanup().await;
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::DETACH).unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["3"]);
}
