//! Files in stacked layers: the cases of containerd's public conformance suite for snapshotters.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use tonic::Code;

use crate::client::assert_code;
use crate::fixture::Machine;

#[tokio::test]
async fn an_updated_file_hides_the_one_below() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "one", "", |root| {
            fs::write(root.join("foo"), "old").unwrap();
            fs::write(root.join("same"), "same").unwrap();
        })
        .await;
    machine
        .layer(&daemon, "two", "one", |root| {
            fs::write(root.join("foo"), "new").unwrap()
        })
        .await;
    machine.layer(&daemon, "three", "two", |_| ()).await;
    assert_eq!(
        machine.contents(&daemon, "one").await,
        ["foo=old", "same=same"]
    );
    assert_eq!(
        machine.contents(&daemon, "three").await,
        ["foo=new", "same=same"]
    );
}

#[tokio::test]
async fn a_removed_directory_stays_removed_and_is_empty_when_made_again() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "one", "", |root| {
            fs::create_dir_all(root.join("dir/sub")).unwrap();
            fs::write(root.join("dir/file"), "x").unwrap();
        })
        .await;
    machine
        .layer(&daemon, "two", "one", |root| {
            fs::remove_dir_all(root.join("dir")).unwrap()
        })
        .await;
    machine
        .layer(&daemon, "three", "two", |root| {
            fs::create_dir(root.join("dir")).unwrap();
            fs::write(root.join("dir/new"), "y").unwrap();
        })
        .await;
    assert!(machine.contents(&daemon, "two").await.is_empty());
    assert_eq!(
        machine.contents(&daemon, "three").await,
        ["dir/", "dir/new=y"]
    );
}

#[tokio::test]
async fn deleted_and_moved_lower_files_are_gone_above() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "one", "", |root| {
            fs::create_dir(root.join("dir")).unwrap();
            fs::write(root.join("dir/moved"), "m").unwrap();
            fs::write(root.join("deleted"), "d").unwrap();
        })
        .await;
    machine
        .layer(&daemon, "two", "one", |root| {
            fs::rename(root.join("dir/moved"), root.join("here")).unwrap();
            fs::remove_file(root.join("deleted")).unwrap();
        })
        .await;
    assert_eq!(machine.contents(&daemon, "two").await, ["dir/", "here=m"]);
}

#[tokio::test]
async fn owners_and_modes_survive_the_commit() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "one", "", |root| {
            for name in ["d1", "d2"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            fs::set_permissions(root.join("d1"), fs::Permissions::from_mode(0o1777)).unwrap();
            fs::write(root.join("d2/file"), "").unwrap();
            chown(root.join("d2/file"), Some(1000), Some(1001)).unwrap();
            chown(root, Some(77), Some(78)).unwrap();
        })
        .await;
    machine
        .layer(&daemon, "two", "one", |root| {
            chown(root.join("d2/file"), Some(2000), Some(2001)).unwrap();
            fs::set_permissions(root.join("d2"), fs::Permissions::from_mode(0o700)).unwrap();
        })
        .await;
    let mounts = daemon.prepare("container", "two").await.unwrap();
    let (root, _mounted) = machine.mount(&mounts, "container");
    let look = |name: &str| {
        let found = fs::metadata(root.join(name)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(look("d1"), (0, 0, 0o1777));
    assert_eq!(look("d2"), (0, 0, 0o700));
    assert_eq!(look("d2/file").0, 2000);
    // A snapshot inherits the owner of its parent's root.
    assert_eq!(look(""), (77, 78, 0o755));
}

#[tokio::test]
async fn a_view_cannot_be_written() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "one", "", |root| {
            fs::write(root.join("f"), "1").unwrap()
        })
        .await;
    machine
        .layer(&daemon, "two", "one", |root| {
            fs::write(root.join("g"), "2").unwrap()
        })
        .await;
    for parent in ["", "one", "two"] {
        let key = format!("view-{parent}");
        let mounts = daemon.view(&key, parent).await.unwrap();
        let (root, _mounted) = machine.mount(&mounts, &key);
        let error = fs::write(root.join("new"), "x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{parent}");
    }
}

#[tokio::test]
async fn a_snapshot_of_128_layers_can_be_mounted() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let mut parent = String::new();
    for index in 0..128 {
        let name = format!("layer-{index}");
        let key = format!("{name}-active");
        let mounts = daemon.prepare(&key, &parent).await.unwrap();
        // The additions of this layer go into its upper directory.
        let upper = match mounts[0].r#type.as_str() {
            "bind" => mounts[0].source.clone(),
            _ => mounts[0].options[1]
                .strip_prefix("upperdir=")
                .unwrap()
                .to_owned(),
        };
        fs::write(format!("{upper}/file-{index}"), "").unwrap();
        fs::write(format!("{upper}/latest"), index.to_string()).unwrap();
        daemon.commit(&name, &key).await.unwrap();
        parent = name;
    }
    let contents = machine.contents(&daemon, &parent).await;
    assert_eq!(contents.len(), 129);
    assert!(contents.contains(&"latest=127".to_owned()));
    let mounts = daemon.prepare("container", &parent).await.unwrap();
    let (root, _mounted) = machine.mount(&mounts, "container");
    fs::write(root.join("file-0"), "written").unwrap();
    assert_eq!(fs::read_to_string(root.join("latest")).unwrap(), "127");
}

#[tokio::test]
async fn layers_that_are_committed_onto_their_parents_show_all_of_them() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let layers = ["one", "two", "three"];
    // All at once, without parents, as containerd prepares for a snapshotter that can rebase.
    for name in layers {
        let mounts = daemon.prepare(name, "").await.unwrap();
        fs::write(std::path::Path::new(&mounts[0].source).join(name), name).unwrap();
    }
    daemon.commit_onto("", "sha256:one", "one").await.unwrap();
    // An active parent, one that does not exist, and another than that of the Prepare.
    let active = daemon.commit_onto("three", "sha256:two", "two").await;
    assert_code(&active, Code::InvalidArgument);
    let missing = daemon.commit_onto("sha256:none", "sha256:two", "two").await;
    assert_code(&missing, Code::NotFound);
    daemon
        .commit_onto("sha256:one", "sha256:two", "two")
        .await
        .unwrap();
    daemon.prepare("upper", "sha256:two").await.unwrap();
    let differs = daemon
        .commit_onto("sha256:one", "sha256:upper", "upper")
        .await;
    assert_code(&differs, Code::InvalidArgument);
    daemon
        .commit_onto("sha256:two", "sha256:upper", "upper")
        .await
        .unwrap();
    daemon
        .commit_onto("sha256:two", "sha256:three", "three")
        .await
        .unwrap();
    assert_eq!(
        machine.contents(&daemon, "sha256:three").await,
        ["one=one", "three=three", "two=two"]
    );
    let info = daemon.stat("sha256:three").await.unwrap();
    assert_eq!(info.parent, "sha256:two");
    assert_code(&daemon.remove("sha256:two").await, Code::FailedPrecondition);
}
