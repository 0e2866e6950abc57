//! Metadata: the cases of containerd's public conformance suite for snapshotters.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use soci_snapshotter::api::v1::{Info, Kind};
use tonic::Code;

use crate::client::{Labels, assert_code, labels};
use crate::fixture::Machine;
use crate::mounting::tree;

#[tokio::test]
async fn basic_a_layer_on_a_layer_shows_both_and_removal_goes_from_the_top() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "base", "", |root| {
            fs::write(root.join("foo"), "foo").unwrap();
            fs::create_dir_all(root.join("a/b/c")).unwrap();
        })
        .await;
    assert_eq!(daemon.stat("base").await.unwrap().kind(), Kind::Committed);
    assert_code(&daemon.stat("base-active").await, Code::NotFound);

    let mounts = daemon.prepare("next", "base").await.unwrap();
    {
        let (root, _mounted) = machine.mount(&mounts, "next");
        assert_eq!(tree(&root), ["a/", "a/b/", "a/b/c/", "foo=foo"]);
        fs::write(root.join("foo"), "bar").unwrap();
        fs::write(root.join("bar"), "bar").unwrap();
        fs::remove_dir_all(root.join("a/b")).unwrap();
    }
    let active = daemon.stat("next").await.unwrap();
    assert_eq!(
        (active.kind(), active.parent.as_str()),
        (Kind::Active, "base")
    );
    daemon.commit("top", "next").await.unwrap();
    let top = daemon.stat("top").await.unwrap();
    assert_eq!((top.kind(), top.parent.as_str()), (Kind::Committed, "base"));

    let listed = daemon.list(&[]).await.unwrap();
    assert_eq!(listed, [daemon.stat("base").await.unwrap(), top]);
    assert_eq!(
        machine.contents(&daemon, "top").await,
        ["a/", "bar=bar", "foo=bar"]
    );

    let refused = daemon.remove("base").await;
    assert_code(&refused, Code::FailedPrecondition);
    assert!(refused.unwrap_err().message().contains("remove"));
    daemon.remove("top").await.unwrap();
    daemon.remove("base").await.unwrap();
    assert!(daemon.list(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn stat_returns_name_parent_kind_labels_and_times() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let given = labels(&[("containerd.io/gc.root", "now"), ("empty", "")]);
    let kept = labels(&[("containerd.io/gc.root", "now")]);
    daemon.prepare_with("key", "", given.clone()).await.unwrap();
    let active = daemon.stat("key").await.unwrap();
    assert_eq!((active.name.as_str(), active.parent.as_str()), ("key", ""));
    assert_eq!(active.kind(), Kind::Active);
    assert_eq!(active.labels, kept);
    assert_eq!(active.created_at, active.updated_at);
    assert!(active.created_at.is_some());

    // The labels of the commit replace those of the active snapshot.
    daemon.commit("name", "key").await.unwrap();
    let committed = daemon.stat("name").await.unwrap();
    assert_eq!(committed.kind(), Kind::Committed);
    assert_eq!(committed.labels, Labels::new());
    assert!(committed.created_at.unwrap().seconds >= active.created_at.unwrap().seconds);

    daemon.view("view", "name").await.unwrap();
    let view = daemon.stat("view").await.unwrap();
    assert_eq!((view.kind(), view.parent.as_str()), (Kind::View, "name"));
}

#[tokio::test]
async fn transitivity_a_grandparent_is_reached_through_the_parent() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "a", "", |_| ()).await;
    machine.layer(&daemon, "b", "a", |_| ()).await;
    let b = daemon.stat("b").await.unwrap();
    assert_eq!(b.parent, "a");
    assert_eq!(daemon.stat(&b.parent).await.unwrap().parent, "");
}

#[tokio::test]
async fn a_key_in_use_can_neither_be_prepared_nor_viewed() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    daemon.prepare("active", "base").await.unwrap();
    daemon.view("view", "base").await.unwrap();
    for key in ["active", "view", "base"] {
        assert_code(&daemon.prepare(key, "base").await, Code::AlreadyExists);
        assert_code(&daemon.view(key, "base").await, Code::AlreadyExists);
        assert_code(&daemon.prepare(key, "").await, Code::AlreadyExists);
    }
    assert_eq!(machine.directories(), ["1", "2", "3"]);
}

#[tokio::test]
async fn update_changes_what_the_mask_names_and_nothing_else() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let before = labels(&[("a", "1"), ("b", "2"), ("c", "3")]);
    daemon.prepare_with("key", "", before).await.unwrap();
    let created = daemon.stat("key").await.unwrap();
    let update = |pairs: &[(&str, &str)]| Info {
        name: "key".to_owned(),
        parent: "ignored".to_owned(),
        kind: Kind::Committed.into(),
        labels: labels(pairs),
        ..Default::default()
    };

    let new = update(&[("a", "new"), ("b", "ignored"), ("d", "")]);
    let updated = daemon
        .update(new, &["labels.a", "labels.c", "labels.d"])
        .await
        .unwrap();
    assert_eq!(updated.labels, labels(&[("a", "new"), ("b", "2")]));
    assert_eq!(
        (updated.kind(), updated.parent.as_str()),
        (Kind::Active, "")
    );
    assert_eq!(updated.created_at, created.created_at);
    assert_ne!(updated.updated_at, created.updated_at);
    assert_eq!(daemon.stat("key").await.unwrap(), updated);

    let all = daemon
        .update(update(&[("x", "y")]), &["labels"])
        .await
        .unwrap();
    assert_eq!(all.labels, labels(&[("x", "y")]));
    let without_mask = daemon.update(update(&[("z", "w")]), &[]).await.unwrap();
    assert_eq!(without_mask.labels, labels(&[("z", "w")]));

    for path in ["parent", "kind", "name", "label", "labels."] {
        let refused = daemon
            .update(update(&[("q", "q")]), &["labels.z", path])
            .await;
        if path == "labels." {
            // The label with the empty key.
            refused.unwrap();
        } else {
            assert_code(&refused, Code::InvalidArgument);
            assert_eq!(
                daemon.stat("key").await.unwrap().labels,
                without_mask.labels
            );
        }
    }
    let absent = Info {
        name: "absent".to_owned(),
        ..Default::default()
    };
    assert_code(&daemon.update(absent, &["labels"]).await, Code::NotFound);
}

#[tokio::test]
async fn remove_frees_the_key_at_once() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("key", "").await.unwrap();
    daemon.remove("key").await.unwrap();
    assert_code(&daemon.remove("key").await, Code::NotFound);
    assert_code(&daemon.mounts("key").await, Code::NotFound);
    let mounts = daemon.prepare("key", "").await.unwrap();
    assert_eq!(mounts, daemon.mounts("key").await.unwrap());
}

#[tokio::test]
async fn an_intermediate_snapshot_cannot_be_removed() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    machine.layer(&daemon, "middle", "base", |_| ()).await;
    daemon.prepare("top", "middle").await.unwrap();
    for name in ["base", "middle"] {
        assert_code(&daemon.remove(name).await, Code::FailedPrecondition);
    }
    for name in ["top", "middle", "base"] {
        daemon.remove(name).await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_can_be_looked_up_while_all_are_listed() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for index in 0..250 {
        daemon.prepare(&format!("key-{index}"), "").await.unwrap();
    }
    let mut stream = daemon
        .client
        .clone()
        .list(soci_snapshotter::api::v1::ListSnapshotsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut seen = 0;
    while let Some(batch) = stream.message().await.unwrap() {
        for info in batch.decode().unwrap() {
            assert_eq!(daemon.stat(&info.name).await.unwrap(), info);
            // A list shows the state at its beginning, whatever changes in the meantime.
            daemon.remove(&info.name).await.unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 250);
}

#[tokio::test]
async fn close_may_be_called_twice_and_ends_all_calls() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("key", "").await.unwrap();
    daemon.snapshotter.close(true).await;
    daemon.snapshotter.close(false).await;
    assert_code(&daemon.stat("key").await, Code::Unavailable);
    assert_code(&daemon.prepare("other", "").await, Code::Unavailable);
    assert_code(&daemon.list(&[]).await, Code::Unavailable);
}

#[tokio::test]
async fn the_root_of_a_snapshot_has_mode_0755_and_its_work_directory_0711() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let mounts = daemon.prepare("key", "").await.unwrap();
    let (root, _mounted) = machine.mount(&mounts, "key");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(root), 0o755);
    assert_eq!(mode(machine.snapshots().join("1/work")), 0o711);
    assert_eq!(mode(machine.snapshots().join("1")), 0o700);
    assert_eq!(mode(machine.snapshots()), 0o700);
}
