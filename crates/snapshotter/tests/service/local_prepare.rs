//! Prepare of a layer that cannot be lazy: unpacked and committed by the snapshotter, or left to the
//! client without a trace of the attempt.

use std::fs;
use std::sync::Arc;

use soci_layer::{LayerRefusal, ParentLayer};
use soci_oci::Digest;
use soci_snapshotter::api::v1::Kind;
use soci_snapshotter::{LayerMode, RefusalReason};
use tokio::sync::Notify;
use tonic::Code;

use crate::client::{assert_code, labels, layer_labels};
use crate::double::{Behaviour, Unpacking};
use crate::fixture::Machine;
use crate::mounting::tree;

fn no_ztoc() -> LayerRefusal {
    LayerRefusal::no_ztoc("layer 3")
}

#[tokio::test]
async fn a_layer_that_cannot_be_lazy_is_unpacked_and_committed_under_its_target() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    machine.lazy_layer("base");
    daemon.pull_lazily("base target", "", "base").await;
    let below = LayerRefusal::BelowMinSize {
        size: 1,
        minimum: 2,
    };
    let refusals = [
        ("no-ztoc", no_ztoc()),
        ("below-min-size", below),
        ("failed", LayerRefusal::failed("zTOC damaged")),
        ("invalid-label", LayerRefusal::invalid_label("l", "r")),
    ];
    for (index, (code, refusal)) in refusals.into_iter().enumerate() {
        let unpacking = Unpacking::File("file", "content");
        machine.layers.set_unpacking("layer", refusal, unpacking);
        let target = format!("target-{index}");
        let answer = daemon
            .prepare_layer("key", "base target", &target, "layer")
            .await;
        assert_code(&answer, Code::AlreadyExists);
        let info = daemon.stat(&target).await.unwrap();
        assert_eq!(
            (info.kind(), info.parent.as_str()),
            (Kind::Committed, "base target")
        );
        // Without the label of lazy layers.
        let mut expected = layer_labels(&target, "layer");
        expected.extend(labels(&[
            (
                "containerd.io/snapshot/remote/has.soci.index.digest",
                "true",
            ),
            ("containerd.io/snapshot/remote/namespace", "testing"),
        ]));
        assert_eq!(info.labels, expected, "{code}");
        assert_code(&daemon.stat("key").await, Code::NotFound);
        let usage = daemon.usage(&target).await.unwrap();
        assert_eq!(usage.inodes, 2);
        assert!(usage.size > 0);
    }
    let request = machine.layers.unpack_requests.lock()[0].clone();
    assert_eq!(request.layer.namespace, "testing");
    assert_eq!(request.layer.labels, layer_labels("target-0", "layer"));
    assert_eq!(
        request.layer.parents,
        [ParentLayer {
            directory: machine.snapshots().join("1/fs"),
            lazy: true
        }]
    );

    // Reason and mode survive a restart.
    for _ in 0..2 {
        let layers = daemon.snapshotter.layers().await.unwrap();
        for (name, code) in [("target-0", "no-ztoc"), ("target-1", "below-min-size")] {
            let layer = layers.iter().find(|layer| layer.name == name).unwrap();
            assert_eq!(layer.mode, LayerMode::Local);
            assert_eq!(layer.reason.as_ref().unwrap().code, code);
        }
        let contents = machine.contents(&daemon, "target-0").await;
        assert_eq!(contents, ["base=base", "file=content"]);
        daemon.kill().await;
        daemon = machine.start().await;
    }
}

#[tokio::test]
async fn a_layer_of_an_image_without_index_is_never_unpacked_by_us() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.layers.set_unpacking(
        "layer",
        LayerRefusal::not_indexed("404"),
        Unpacking::File("file", "content"),
    );
    daemon
        .prepare_layer("key", "", "target", "layer")
        .await
        .unwrap();
    assert!(machine.layers.unpack_requests.lock().is_empty());
}

#[tokio::test]
async fn a_failed_unpacking_leaves_the_layer_to_the_client_without_a_trace() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for (index, unpacking) in [Unpacking::HalfWay, Unpacking::Panic]
        .into_iter()
        .enumerate()
    {
        machine.layers.set_unpacking("layer", no_ztoc(), unpacking);
        let [key, target] = [format!("key-{index}"), format!("target-{index}")];
        let mounts = daemon
            .prepare_layer(&key, "", &target, "layer")
            .await
            .unwrap();
        assert!(tree(mounts[0].source.as_ref()).is_empty());
        let given = layer_labels(&target, "layer");
        assert_eq!(daemon.stat(&key).await.unwrap().labels, given);
        let layers = daemon.snapshotter.layers().await.unwrap();
        let layer = layers.iter().find(|layer| layer.name == key).unwrap();
        assert_eq!(layer.mode, LayerMode::Deferred);
        // Why it is not lazy comes first, then why it is not unpacked.
        let RefusalReason { code, text } = layer.reason.as_ref().unwrap();
        assert_eq!(code, "no-ztoc");
        let second = ["disk full", "panicked"][index];
        assert!(text.contains("layer 3") && text.contains(second), "{text}");
    }
    // Remains of the attempt to mount the layer do not matter.
    machine
        .layers
        .set_unpacking("layer", no_ztoc(), Unpacking::File("file", "content"));
    machine.layers.set("layer", Behaviour::RefuseDirty);
    let answer = daemon.prepare_layer("key", "", "clean", "layer").await;
    assert_code(&answer, Code::AlreadyExists);
    assert_eq!(machine.contents(&daemon, "clean").await, ["file=content"]);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_unpacking_and_leaves_nothing() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    let [asked, go_on] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let wait = Unpacking::Wait(asked.clone(), go_on);
    machine.layers.set_unpacking("slow", no_ztoc(), wait);
    let call = {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { daemon.prepare_layer("key", "", "target", "slow").await })
    };
    asked.notified().await;
    // A sweep must not delete the directory of a layer that is not recorded yet.
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1"]);
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // The next Prepare waits until nothing of the first is left.
    let unpacking = Unpacking::File("file", "content");
    machine.layers.set_unpacking("slow", no_ztoc(), unpacking);
    let again = daemon.prepare_layer("key", "", "target", "slow").await;
    assert_code(&again, Code::AlreadyExists);
    assert_eq!(machine.contents(&daemon, "target").await, ["file=content"]);
    daemon.cleanup().await;
    assert_eq!(daemon.names(&[]).await, ["target"]);
    assert_eq!(machine.directories(), ["2"]);
}

#[tokio::test]
async fn a_parent_removed_during_the_unpacking_fails_the_prepare_and_leaves_nothing() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    machine.layer(&daemon, "base", "", |_| ()).await;
    let [asked, go_on] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let wait = Unpacking::Wait(asked.clone(), go_on.clone());
    machine.layers.set_unpacking("slow", no_ztoc(), wait);
    let call = {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { daemon.prepare_layer("key", "base", "target", "slow").await })
    };
    asked.notified().await;
    daemon.remove("base").await.unwrap();
    go_on.notify_one();
    assert_code(&call.await.unwrap(), Code::NotFound);
    daemon.cleanup().await;
    assert!(daemon.names(&[]).await.is_empty());
    assert!(machine.directories().is_empty());
}

#[tokio::test]
async fn closing_the_snapshotter_ends_an_unpacking() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    let asked = Arc::new(Notify::new());
    let wait = Unpacking::Wait(asked.clone(), Arc::default());
    machine.layers.set_unpacking("slow", no_ztoc(), wait);
    let call = {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { daemon.prepare_layer("key", "", "target", "slow").await })
    };
    asked.notified().await;
    daemon.snapshotter.close(false).await;
    // Left to the client: nothing is half-written.
    let mounts = call.await.unwrap().unwrap();
    assert!(tree(mounts[0].source.as_ref()).is_empty());
    assert!(fs::read_dir(&mounts[0].source).unwrap().next().is_none());
}

#[tokio::test]
async fn a_layer_that_does_not_belong_on_its_parent_is_left_to_the_client() {
    const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
    const PARENT: &str = "containerd.io/snapshot/parent-chain-id";
    let machine = Machine::new();
    let daemon = machine.start().await;
    let diff_ids = [b"1", b"2"].map(|text| Digest::of(text));
    let [base, own] = diff_ids.map(|digest| digest.to_string());
    let top = Digest::of(format!("{base} {own}").as_bytes()).to_string();
    machine.lazy_layer("base");
    machine.lazy_layer("top");
    // What containerd 2.3 sends for the lowest layer.
    let mut sent = layer_labels(&base, "base");
    sent.insert(DIFF_ID.to_owned(), base.clone());
    let lowest = daemon.prepare_with("lowest", "", sent).await;
    assert_code(&lowest, Code::AlreadyExists);

    let cases = [
        ("", own.as_str(), base.as_str(), "without-parent"),
        (
            base.as_str(),
            base.as_str(),
            base.as_str(),
            "foreign-labels",
        ),
        (base.as_str(), own.as_str(), own.as_str(), "foreign-labels"),
        (base.as_str(), "no digest", base.as_str(), "foreign-labels"),
    ];
    for (parent, diff_id, below, code) in cases {
        let mut sent = layer_labels(&top, "top");
        sent.insert(DIFF_ID.to_owned(), diff_id.to_owned());
        sent.insert(PARENT.to_owned(), below.to_owned());
        // Were it committed, its snapshot would hide or show another layer's files.
        let mounts = daemon.prepare_with("key", parent, sent).await.unwrap();
        // containerd's applier keeps what a layer deletes in an overlay alone.
        let options = mounts[0].options.join(",");
        assert_eq!(mounts[0].r#type, "overlay", "{code}");
        assert!(options.contains("upperdir="), "{options}");
        assert_eq!(options.contains("lowerdir="), !parent.is_empty());
        let layers = daemon.snapshotter.layers().await.unwrap();
        let left = layers.iter().find(|layer| layer.name == "key").unwrap();
        assert_eq!(left.mode, LayerMode::Deferred);
        assert_eq!(left.reason.as_ref().unwrap().code, code);
        daemon.remove("key").await.unwrap();
    }
    assert_eq!(machine.layers.unpack_requests.lock().len(), 0);

    let mut sent = layer_labels(&top, "top");
    sent.insert(DIFF_ID.to_owned(), own);
    sent.insert(PARENT.to_owned(), base.clone());
    let upper = daemon.prepare_with("upper", &base, sent).await;
    assert_code(&upper, Code::AlreadyExists);
}
