//! Bad requests get the status codes of containerd's own snapshotters, and change nothing.

use soci_snapshotter::api::v1::{PrepareSnapshotRequest, UpdateSnapshotRequest};
use tonic::{Code, Request};

use crate::client::{Labels, assert_code, labels, layer_labels};
use crate::fixture::Machine;

#[tokio::test]
async fn unknown_names_are_not_found() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    assert_code(&daemon.stat("x").await, Code::NotFound);
    assert_code(&daemon.mounts("x").await, Code::NotFound);
    assert_code(&daemon.usage("x").await, Code::NotFound);
    assert_code(&daemon.remove("x").await, Code::NotFound);
    assert_code(&daemon.commit("y", "x").await, Code::NotFound);
    assert_code(&daemon.prepare("y", "x").await, Code::NotFound);
    assert_code(&daemon.view("y", "x").await, Code::NotFound);
    assert!(machine.directories().is_empty());
}

#[tokio::test]
async fn only_a_committed_snapshot_can_be_a_parent() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("active", "").await.unwrap();
    daemon.view("view", "").await.unwrap();
    for parent in ["active", "view"] {
        assert_code(&daemon.prepare("y", parent).await, Code::InvalidArgument);
        assert_code(&daemon.view("y", parent).await, Code::InvalidArgument);
        let layer = daemon.prepare_layer("y", parent, "target", "layer").await;
        assert_code(&layer, Code::InvalidArgument);
    }
    assert_eq!(machine.directories(), ["1", "2"]);
}

#[tokio::test]
async fn only_an_active_snapshot_can_be_committed_and_only_to_a_free_name() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    daemon.view("view", "base").await.unwrap();
    daemon.prepare("active", "base").await.unwrap();
    assert_code(
        &daemon.commit("new", "view").await,
        Code::FailedPrecondition,
    );
    assert_code(
        &daemon.commit("new", "base").await,
        Code::FailedPrecondition,
    );
    assert_code(&daemon.commit("base", "active").await, Code::AlreadyExists);
    assert_code(
        &daemon.commit("active", "active").await,
        Code::AlreadyExists,
    );
    assert_code(&daemon.mounts("base").await, Code::FailedPrecondition);
    daemon.commit("new", "active").await.unwrap();
}

#[tokio::test]
async fn names_are_not_paths_but_must_exist_and_be_of_sane_length() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for key in ["", &"x".repeat(40 << 10)] {
        assert_code(&daemon.prepare(key, "").await, Code::InvalidArgument);
        assert_code(&daemon.view(key, "").await, Code::InvalidArgument);
    }
    for key in [
        "/",
        "../../etc",
        "a/b/c",
        "k\0k",
        "1",
        "ü",
        &"x".repeat(32 << 10),
    ] {
        daemon.prepare(key, "").await.unwrap();
        assert_eq!(daemon.names(&[]).await, [key]);
        assert_code(&daemon.commit("", key).await, Code::InvalidArgument);
        daemon.remove(key).await.unwrap();
    }
}

#[tokio::test]
async fn labels_beyond_4096_bytes_are_refused_everywhere() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let huge = labels(&[("key", &"v".repeat(4094))]);
    let most = labels(&[("key", &"v".repeat(4093))]);
    assert_code(
        &daemon.prepare_with("a", "", huge.clone()).await,
        Code::InvalidArgument,
    );
    daemon.prepare_with("a", "", most.clone()).await.unwrap();
    assert_code(
        &daemon.commit_with("b", "a", huge.clone()).await,
        Code::InvalidArgument,
    );
    let mut info = daemon.stat("a").await.unwrap();
    assert_eq!(info.labels, most);
    info.labels = huge.clone();
    assert_code(&daemon.update(info, &[]).await, Code::InvalidArgument);
    let mut layer = layer_labels("target", "layer");
    layer.extend(huge);
    assert_code(
        &daemon.prepare_with("c", "", layer).await,
        Code::InvalidArgument,
    );
    assert!(machine.layers.requests.lock().is_empty());
}

#[tokio::test]
async fn malformed_filters_are_invalid_arguments() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for filter in ["name=x", "name==", "name,", "=="] {
        assert_code(&daemon.list(&["name", filter]).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_layer_without_a_namespace_is_refused_and_makes_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("layer");
    let prepare = |labels: Labels| PrepareSnapshotRequest {
        key: "key".to_owned(),
        labels,
        ..Default::default()
    };
    let layer = prepare(layer_labels("target", "layer"));
    let mut client = daemon.client.clone();
    assert_code(
        &client.prepare(layer.clone()).await,
        Code::FailedPrecondition,
    );
    let mut empty = Request::new(layer);
    empty
        .metadata_mut()
        .insert("containerd-namespace", "".parse().unwrap());
    assert_code(&client.prepare(empty).await, Code::FailedPrecondition);
    assert!(machine.layers.requests.lock().is_empty());
    assert!(machine.directories().is_empty());
    // Everything else works without one.
    client.prepare(prepare(Labels::new())).await.unwrap();
}

#[tokio::test]
async fn an_update_of_nothing_is_an_invalid_argument() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let nothing = UpdateSnapshotRequest::default();
    assert_code(
        &daemon.client.clone().update(nothing).await,
        Code::InvalidArgument,
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_leaves_no_snapshot() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    // Takes the directory of the next id.
    let obstacle = machine.snapshots().join("2");
    std::fs::write(&obstacle, "").unwrap();
    assert_code(&daemon.prepare("key", "base").await, Code::Internal);
    assert_code(&daemon.stat("key").await, Code::NotFound);
    daemon.prepare("key", "base").await.unwrap();
    daemon.remove("key").await.unwrap();
    std::fs::remove_file(obstacle).unwrap();

    // The parent's directory is gone: there is no owner to inherit.
    std::fs::remove_dir_all(machine.snapshots().join("1")).unwrap();
    assert_code(&daemon.prepare("key", "base").await, Code::Internal);
    assert_code(&daemon.stat("key").await, Code::NotFound);
    daemon.cleanup().await;
    assert_eq!(machine.directories(), Vec::<String>::new());
}

#[tokio::test]
async fn no_snapshot_has_the_empty_name() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    assert_code(&daemon.stat("").await, Code::NotFound);
    assert_code(&daemon.mounts("").await, Code::NotFound);
    assert_code(&daemon.usage("").await, Code::NotFound);
    assert_code(&daemon.remove("").await, Code::NotFound);
    assert_code(&daemon.commit("name", "").await, Code::NotFound);
    let unnamed = soci_snapshotter::api::v1::Info::default();
    assert_code(&daemon.update(unnamed, &["labels"]).await, Code::NotFound);
}

#[tokio::test]
async fn a_snapshot_is_not_its_own_parent_nor_committed_to_a_name_with_children() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    assert_code(&daemon.prepare("self", "self").await, Code::NotFound);
    machine.layer(&daemon, "base", "", |_| ()).await;
    daemon.prepare("child", "base").await.unwrap();
    daemon.prepare("late", "").await.unwrap();
    assert_code(&daemon.commit("base", "late").await, Code::AlreadyExists);
    assert_code(&daemon.remove("base").await, Code::FailedPrecondition);
    assert_eq!(daemon.stat("child").await.unwrap().parent, "base");
    assert_eq!(daemon.names(&[]).await, ["base", "child", "late"]);
}

#[tokio::test]
async fn labels_of_unknown_keys_are_kept_and_an_empty_target_is_none() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let odd = labels(&[
        ("", "the empty key"),
        ("containerd.io/snapshot/remote/no-such-key", "x"),
        ("../..", "a/b\nc"),
        ("ü", "\u{1f980}"),
    ]);
    daemon.prepare_with("odd", "", odd.clone()).await.unwrap();
    assert_eq!(daemon.stat("odd").await.unwrap().labels, odd);
    let empty = layer_labels("", "layer");
    daemon.prepare_with("none", "", empty).await.unwrap();
    assert!(machine.layers.requests.lock().is_empty());
}

#[tokio::test]
async fn a_layer_with_a_bad_key_target_or_parent_makes_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("layer");
    let long = "x".repeat(40 << 10);
    for (key, parent, target, code) in [
        ("", "", "target", Code::InvalidArgument),
        (&long, "", "target", Code::InvalidArgument),
        // Longer than a label can be.
        ("key", "", &long, Code::InvalidArgument),
        ("key", "absent", "target", Code::NotFound),
        ("key", "key", "target", Code::NotFound),
        ("key", &long, "target", Code::NotFound),
    ] {
        let answer = daemon.prepare_layer(key, parent, target, "layer").await;
        assert_code(&answer, code);
    }
    assert!(machine.layers.requests.lock().is_empty());
    assert!(machine.directories().is_empty());
    assert!(daemon.names(&[]).await.is_empty());
}
