//! Containers in user namespaces: their layers are shown with translated owners.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::Path;

use soci_layer::{IdMaps, IdRange, LayerRefusal};
use tonic::Code;

use crate::client::{Labels, assert_code, labels};
use crate::double::Behaviour;
use crate::fixture::{Machine, nest};

const UID: &str = "containerd.io/snapshot/uidmapping";
const GID: &str = "containerd.io/snapshot/gidmapping";

fn maps() -> Labels {
    labels(&[(UID, "0:100000:1000"), (GID, "0:200000:500,500:5:1")])
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

#[tokio::test]
async fn lazy_layers_are_mounted_once_more_with_the_maps_and_go_with_the_snapshot() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    machine.lazy_layer("two");
    daemon.pull_lazily("sha256:1", "", "one").await;
    daemon.pull_lazily("sha256:2", "sha256:1", "two").await;
    let mounts = daemon
        .prepare_with("container", "sha256:2", maps())
        .await
        .unwrap();
    let at = |name: &str| machine.snapshots().join(name).join("fs");
    let lower = format!("lowerdir={}:{}", at("2_3").display(), at("1_3").display());
    assert!(mounts[0].options.contains(&lower), "{mounts:?}");
    assert_eq!(daemon.mounts("container").await.unwrap(), mounts);
    assert_eq!(machine.mounted().len(), 4);
    // Root of the container owns its upper directory.
    assert_eq!(owner(&at("3")), (100_000, 200_000));

    let expected = IdMaps {
        uid: vec![IdRange {
            container: 0,
            host: 100_000,
            length: 1000,
        }],
        gid: vec![
            IdRange {
                container: 0,
                host: 200_000,
                length: 500,
            },
            IdRange {
                container: 500,
                host: 5,
                length: 1,
            },
        ],
    };
    let requests = machine.layers.requests.lock().clone();
    let mapped: Vec<_> = requests
        .iter()
        .filter(|r| r.view.id_maps.is_some())
        .collect();
    assert_eq!(mapped.len(), 2);
    for request in mapped {
        assert_eq!(request.view.id_maps.as_ref(), Some(&expected));
        assert_eq!(request.namespace, "testing");
    }
    // A container without maps sees the layers themselves.
    let plain = daemon.prepare("plain", "sha256:2").await.unwrap();
    let lower = format!("lowerdir={}:{}", at("2").display(), at("1").display());
    assert!(plain[0].options.contains(&lower), "{plain:?}");
    assert_eq!(machine.mounted().len(), 4);

    daemon.remove("container").await.unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1", "2", "4"]);
    assert_eq!(machine.mounted().len(), 2);
}

#[tokio::test]
async fn mounts_with_maps_come_back_after_a_restart_and_orphans_are_swept() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    daemon
        .prepare_with("container", "sha256:1", maps())
        .await
        .unwrap();
    let mounts = daemon.mounts("container").await.unwrap();
    for unmount_all in [false, true] {
        daemon.stop(unmount_all).await;
        assert_eq!(machine.mounted().len(), if unmount_all { 0 } else { 2 });
        // Left by a crash: a directory of a snapshot that was never recorded.
        fs::create_dir_all(machine.snapshots().join("1_77/fs")).unwrap();
        machine.layers.requests.lock().clear();
        daemon = machine.start().await;
        let requests = machine.layers.requests.lock().clone();
        let mapped: Vec<_> = requests
            .iter()
            .filter(|r| r.view.id_maps.is_some())
            .collect();
        assert_eq!(mapped.len(), 1);
        assert!(mapped[0].mountpoint.ends_with("snapshots/1_2/fs"));
        assert_eq!(daemon.mounts("container").await.unwrap(), mounts);
        assert_eq!(machine.mounted().len(), 2);
        daemon.cleanup().await;
        assert_eq!(machine.directories(), ["1", "1_2", "2"]);
    }
    // The labels can change afterwards; the mounts keep the maps of the Prepare.
    let mut info = daemon.stat("container").await.unwrap();
    info.labels.remove(UID);
    daemon.update(info, &[]).await.unwrap();
    assert_eq!(daemon.mounts("container").await.unwrap(), mounts);
}

#[tokio::test]
async fn a_mount_with_maps_that_fails_leaves_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    machine.lazy_layer("two");
    daemon.pull_lazily("sha256:1", "", "one").await;
    daemon.pull_lazily("sha256:2", "sha256:1", "two").await;
    let refusal = LayerRefusal::failed("no");
    machine.layers.set("one", Behaviour::Refuse(refusal));
    let failed = daemon.prepare_with("container", "sha256:2", maps()).await;
    assert_code(&failed, Code::Unavailable);
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1", "2"]);
    assert_eq!(machine.mounted().len(), 2);
    assert_eq!(daemon.names(&[]).await, ["sha256:1", "sha256:2"]);
}

/// A layer with the difficult cases of owners.
fn fill(folder: &Path) {
    fs::create_dir(folder.join("dir")).unwrap();
    fs::write(folder.join("dir/suid"), "suid").unwrap();
    lchown(folder.join("dir/suid"), Some(7), Some(500)).unwrap();
    chmod(&folder.join("dir/suid"), 0o6755);
    fs::write(folder.join("dir/capable"), "c").unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(
        folder.join("dir/capable"),
        "security.capability",
        capability,
        flags,
    )
    .unwrap();
    fs::write(folder.join("linked"), "linked").unwrap();
    fs::hard_link(folder.join("linked"), folder.join("dir/link")).unwrap();
    symlink("dir/suid", folder.join("symlink")).unwrap();
    lchown(folder.join("symlink"), Some(5000), Some(5000)).unwrap();
    chmod(&folder.join("dir"), 0o1770);
}

fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn check(root: &Path) {
    let mode = |name: &str| fs::symlink_metadata(root.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(owner(&root.join("dir")), (100_000, 200_000));
    assert_eq!(mode("dir"), 0o1770);
    assert_eq!(owner(&root.join("dir/suid")), (100_007, 5));
    assert_eq!(mode("dir/suid"), 0o6755);
    assert_eq!(fs::read(root.join("dir/suid")).unwrap(), b"suid");
    assert_eq!(owner(&root.join("linked")), (100_000, 200_000));
    assert_eq!(owner(&root.join("dir/link")), (100_000, 200_000));
    // Not an id of the container.
    assert_eq!(owner(&root.join("symlink")), (65534, 65534));
    let mut capability = [0; 64];
    let path = root.join("dir/capable");
    let length = rustix::fs::getxattr(path, "security.capability", &mut capability).unwrap();
    assert_eq!(length, 20);
}

#[tokio::test]
async fn an_unpacked_layer_among_lazy_ones_is_copied_with_the_maps() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    machine
        .layer(&daemon, "unpacked", "sha256:1", |folder| {
            fill(folder);
            // A whiteout and an opaque directory, as an unpacked layer has them.
            fs::create_dir(folder.join("opaque")).unwrap();
        })
        .await;
    let unpacked = machine.snapshots().join("2/fs");
    let device = rustix::fs::Mode::empty();
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, unpacked.join("one"), kind, device, 0).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(
        unpacked.join("opaque"),
        "trusted.overlay.opaque",
        b"y",
        flags,
    )
    .unwrap();

    let mounts = daemon
        .prepare_with("container", "unpacked", maps())
        .await
        .unwrap();
    let copy = machine.snapshots().join("2_3/fs");
    check(&copy);
    let stat = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
    assert_eq!(stat("linked").ino(), stat("dir/link").ino());
    assert!(stat("one").file_type().is_char_device());
    assert_eq!(stat("one").rdev(), 0);
    assert_eq!(
        stat("dir/suid").mtime_nsec(),
        fs::metadata(unpacked.join("dir/suid"))
            .unwrap()
            .mtime_nsec()
    );
    let mut mark = [0; 8];
    let opaque = copy.join("opaque");
    assert_eq!(
        rustix::fs::getxattr(opaque, "trusted.overlay.opaque", &mut mark).unwrap(),
        1
    );
    let (merged, mounted) = machine.mount(&mounts, "merged");
    check(&merged);
    assert!(!merged.join("one").exists());
    drop(mounted);
    // The layer itself is unchanged.
    assert_eq!(owner(&unpacked.join("dir/suid")), (7, 500));

    daemon.remove("container").await.unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1", "2"]);
}

#[tokio::test]
async fn without_lazy_layers_the_merged_root_is_chowned() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", fill).await;
    machine
        .layer(&daemon, "top", "base", |folder| {
            fs::write(folder.join("top"), "top").unwrap();
        })
        .await;
    let mounts = daemon
        .prepare_with("container", "top", maps())
        .await
        .unwrap();
    let (merged, mounted) = machine.mount(&mounts, "merged");
    check(&merged);
    assert_eq!(owner(&merged.join("top")), (100_000, 200_000));
    assert_eq!(owner(&merged), (100_000, 200_000));
    drop(mounted);
    // Nothing is mounted in between, and there are no further directories.
    assert!(machine.mounted().is_empty());
    assert_eq!(machine.directories(), ["1", "2", "3"]);
    assert_eq!(owner(&machine.snapshots().join("1/fs/dir/suid")), (7, 500));

    let mounts = daemon.prepare_with("empty", "", maps()).await.unwrap();
    assert_eq!(owner(mounts[0].source.as_ref()), (100_000, 200_000));
}

#[tokio::test]
async fn malformed_maps_are_an_invalid_argument_and_make_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    for bad in ["x", "0:1", "0:1:0", "0:1:2,1:9:1", "0:4294967295:1"] {
        for key in [UID, GID] {
            let mut given = maps();
            given.insert(key.to_owned(), bad.to_owned());
            let refused = daemon.prepare_with("container", "sha256:1", given).await;
            assert_code(&refused, Code::InvalidArgument);
            let message = refused.unwrap_err().message().to_owned();
            assert!(message.contains(key), "{message}");
        }
    }
    assert_eq!(machine.directories(), ["1"]);
}

/// Depth of folders that no recursion survives, and no path reaches.
const DEEP: usize = 100_000;

/// Depth that no path reaches, and at which overlayfs still copies up in reasonable time.
const DEEP_IN_OVERLAY: usize = 4_000;

/// The owner of the folder at the end of a way of as many folders.
fn deepest_owner(top: &Path, depth: usize) -> (u32, u32) {
    let mut descent = soci_dirtree::Descent::open(top).unwrap();
    while descent.enter("d").is_ok() {}
    let stat = rustix::fs::fstat(descent.directory()).unwrap();
    assert_eq!(descent.depth(), depth);
    (stat.st_uid, stat.st_gid)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_a_hundred_thousand_folders_deep_get_owners_and_go() {
    let machine = Machine::in_memory();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    machine
        .layer(&daemon, "on-lazy", "sha256:1", |folder| nest(folder, DEEP))
        .await;
    machine
        .layer(&daemon, "alone", "", |folder| nest(folder, DEEP_IN_OVERLAY))
        .await;
    let copied = daemon.prepare_with("copied", "on-lazy", maps()).await;
    copied.unwrap();
    let copy = machine.snapshots().join("2_4/fs");
    assert_eq!(deepest_owner(&copy, DEEP), (100_000, 200_000));
    let merged = daemon.prepare_with("merged", "alone", maps()).await;
    merged.unwrap();
    let upper = machine.snapshots().join("5/fs");
    assert_eq!(deepest_owner(&upper, DEEP_IN_OVERLAY), (100_000, 200_000));
    for key in ["copied", "merged", "on-lazy", "alone"] {
        daemon.remove(key).await.unwrap();
    }
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1"]);
}

#[tokio::test]
async fn ids_that_containerd_translated_are_not_translated_again() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    // As containerd 2 does without the capability: a copy with other owners, then the container.
    let copy = "sha256:1-100000-200000";
    daemon.prepare("copy-remap", "sha256:1").await.unwrap();
    daemon.commit(copy, "copy-remap").await.unwrap();
    let status = daemon
        .prepare_with("container", copy, maps())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let line = "capabilities = [\"remap-ids\", \"multi-remap-ids\"]";
    assert!(status.message().contains(line), "{}", status.message());
    // containerd 2.1 names it by a digest, and begins one of lazy layers in vain.
    let digest = format!("sha256:{}", "a1".repeat(32));
    let status = daemon
        .prepare(&format!("ns/7/{digest}-remap"), "sha256:1")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(line), "{}", status.message());
    daemon.prepare("base", "").await.unwrap();
    daemon.commit("unpacked", "base").await.unwrap();
    let (copying, copy_of_unpacked) = (format!("ns/7/{digest}-remap"), format!("ns/8/{digest}"));
    daemon.prepare(&copying, "unpacked").await.unwrap();
    daemon.commit(&copy_of_unpacked, &copying).await.unwrap();
    let status = daemon
        .prepare_with("container", &copy_of_unpacked, maps())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(line), "{}", status.message());
    // Without maps it is used as it is, and a snapshot of another name is another thing.
    daemon.prepare("plain", copy).await.unwrap();
    daemon.prepare("other-remap", "sha256:1").await.unwrap();
    daemon
        .commit("sha256:1-100000-7", "other-remap")
        .await
        .unwrap();
    daemon
        .prepare_with("mapped", "sha256:1-100000-7", maps())
        .await
        .unwrap();
}
