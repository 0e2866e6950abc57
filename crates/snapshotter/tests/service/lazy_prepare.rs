//! Prepare with a target: the layer is mounted lazily and committed, or left to the client untouched.

use std::fs;
use std::sync::Arc;

use soci_layer::LayerRefusal;
use soci_snapshotter::LayerMode;
use soci_snapshotter::api::v1::Kind;
use tokio::sync::Notify;
use tonic::Code;

use crate::client::{assert_code, labels, layer_labels};
use crate::double::Behaviour;
use crate::fixture::Machine;
use crate::mounting::tree;

#[tokio::test]
async fn a_lazy_layer_is_committed_under_its_target_and_answers_already_exists() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    machine.lazy_layer("two");
    daemon.pull_lazily("sha256:1", "", "one").await;
    daemon.pull_lazily("sha256:2", "sha256:1", "two").await;

    let request = machine.layers.requests.lock()[0].clone();
    assert_eq!(request.namespace, "testing");
    assert_eq!(request.labels, layer_labels("sha256:1", "one"));
    assert_eq!(request.mountpoint, machine.snapshots().join("1/fs"));

    let two = daemon.stat("sha256:2").await.unwrap();
    assert_eq!(
        (two.kind(), two.parent.as_str()),
        (Kind::Committed, "sha256:1")
    );
    let mut expected = layer_labels("sha256:2", "two");
    expected.extend(labels(&[
        ("containerd.io/snapshot/remote", "remote snapshot"),
        (
            "containerd.io/snapshot/remote/has.soci.index.digest",
            "true",
        ),
        ("containerd.io/snapshot/remote/namespace", "testing"),
    ]));
    assert_eq!(two.labels, expected);
    // The key is free again; the snapshot is found the way containerd looks for it.
    assert_code(&daemon.stat("extract sha256:2").await, Code::NotFound);
    let look_up = "labels.\"containerd.io/snapshot.ref\"==sha256:2,parent==\"sha256:1\"";
    assert_eq!(daemon.names(&[look_up]).await, ["sha256:2"]);
    let usage = daemon.usage("sha256:2").await.unwrap();
    assert_eq!((usage.size, usage.inodes), (0, 0));

    let layers = daemon.snapshotter.layers().await.unwrap();
    assert_eq!(layers.len(), 2);
    assert!(
        layers
            .iter()
            .all(|layer| layer.mode == LayerMode::Lazy && layer.reason.is_none())
    );
    assert_eq!(layers[1].layer.as_deref(), Some("two"));
    assert_eq!(layers[1].image.as_deref(), Some("registry/image:tag"));
}

#[tokio::test]
async fn a_refused_layer_is_left_to_the_client_empty_and_unmounted() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let folder = machine.lazy_layer("folder");
    let refusals = [
        (
            "no-index",
            Behaviour::Refuse(LayerRefusal::not_indexed("404")),
        ),
        (
            "no-ztoc",
            Behaviour::Refuse(LayerRefusal::no_ztoc("layer 3")),
        ),
        (
            "below-min-size",
            Behaviour::Refuse(LayerRefusal::BelowMinSize {
                size: 1,
                minimum: 2,
            }),
        ),
        (
            "missing-label",
            Behaviour::Refuse(LayerRefusal::missing_label("l")),
        ),
        (
            "invalid-label",
            Behaviour::Refuse(LayerRefusal::invalid_label("l", "r")),
        ),
        ("failed", Behaviour::RefuseDirty),
        ("failed", Behaviour::RefuseMounted(folder.clone())),
        ("failed", Behaviour::Panic),
    ];
    for (index, (code, behaviour)) in refusals.into_iter().enumerate() {
        machine.layers.set("layer", behaviour);
        let [key, target] = [format!("key-{index}"), format!("target-{index}")];
        let mounts = daemon
            .prepare_layer(&key, "", &target, "layer")
            .await
            .unwrap();
        assert_eq!(mounts[0].options, ["rw", "rbind"]);
        assert!(tree(mounts[0].source.as_ref()).is_empty(), "{code}");
        assert!(machine.mounted().is_empty(), "{code}");

        // The client unpacks and commits; the snapshot has no label of ours.
        fs::write(format!("{}/file", mounts[0].source), "unpacked").unwrap();
        let given = layer_labels(&target, "layer");
        assert_eq!(daemon.stat(&key).await.unwrap().labels, given);
        daemon
            .commit_with(&target, &key, given.clone())
            .await
            .unwrap();
        assert_eq!(daemon.stat(&target).await.unwrap().labels, given);
        assert_eq!(machine.contents(&daemon, &target).await, ["file=unpacked"]);

        let layers = daemon.snapshotter.layers().await.unwrap();
        let layer = layers.iter().find(|layer| layer.name == target).unwrap();
        assert_eq!(layer.mode, LayerMode::Deferred);
        assert_eq!(layer.reason.as_ref().unwrap().code, code);
    }
    assert!(folder.join("folder").exists());
}

#[tokio::test]
async fn a_target_that_is_committed_is_not_mounted_again() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("target", "", "one").await;
    let again = daemon.prepare_layer("other key", "", "target", "one").await;
    assert_code(&again, Code::AlreadyExists);
    assert_eq!(machine.layers.requests.lock().len(), 1);
    assert_eq!(machine.directories(), ["1"]);
    assert_eq!(daemon.names(&[]).await, ["target"]);
}

#[tokio::test]
async fn a_target_committed_on_another_parent_is_no_obstacle() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("top");
    machine
        .layer(&daemon, "unpacked by another", "", |_| ())
        .await;
    machine.layer(&daemon, "base", "", |_| ()).await;
    daemon
        .pull_lazily("target", "unpacked by another", "top")
        .await;
    daemon.pull_lazily("target", "base", "top").await;
    let look_up = "labels.\"containerd.io/snapshot.ref\"==target,parent==\"base\"";
    let found = daemon.list(&[look_up]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_ne!(found[0].name, "target");
    assert_eq!(machine.mounted().len(), 2);
}

#[tokio::test]
async fn prepares_of_one_target_at_once_mount_it_once() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    machine.lazy_layer("one");
    let prepares = (0..50).map(|index| {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move {
            daemon
                .prepare_layer(&format!("key-{index}"), "", "target", "one")
                .await
        })
    });
    for prepare in prepares.collect::<Vec<_>>() {
        assert_code(&prepare.await.unwrap(), Code::AlreadyExists);
    }
    assert_eq!(machine.layers.requests.lock().len(), 1);
    assert_eq!(daemon.names(&[]).await, ["target"]);
    assert_eq!(machine.mounted().len(), 1);
}

#[tokio::test]
async fn prepares_of_many_targets_at_once_all_succeed() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    machine.lazy_layer("one");
    let prepares = (0..50).map(|index| {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move {
            daemon
                .pull_lazily(&format!("target-{index}"), "", "one")
                .await
        })
    });
    for prepare in prepares.collect::<Vec<_>>() {
        prepare.await.unwrap();
    }
    assert_eq!(daemon.names(&[]).await.len(), 50);
    assert_eq!(machine.mounted().len(), 50);
    assert_eq!(machine.directories().len(), 50);
}

/// A layer whose mount waits. Returns a signal that it was requested, and one that lets it continue.
fn waiting_layer(machine: &Machine, behaviour: Behaviour) -> (Arc<Notify>, Arc<Notify>) {
    let [asked, go_on] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let wait = Behaviour::Wait(asked.clone(), go_on.clone(), Box::new(behaviour));
    machine.layers.set("slow", wait);
    (asked, go_on)
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_a_consistent_state() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    let folder = machine.lazy_layer("one");
    let behaviours = [
        Behaviour::Lazy(folder, Default::default()),
        Behaviour::Refuse(LayerRefusal::not_indexed("none")),
    ];
    for (index, behaviour) in behaviours.into_iter().enumerate() {
        let target = format!("target-{index}");
        let (asked, go_on) = waiting_layer(&machine, behaviour);
        let call = {
            let (daemon, target) = (Arc::clone(&daemon), target.clone());
            tokio::spawn(async move { daemon.prepare_layer("key", "", &target, "slow").await })
        };
        asked.notified().await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        // A sweep must not delete the directory of a layer that is not recorded yet.
        daemon.cleanup().await;
        assert_eq!(machine.directories().len(), index + 1);
        // The abort was sent over the same connection before these calls: the server has dropped the
        // handler by now.
        for _ in 0..2 {
            daemon.names(&[]).await;
        }
        go_on.notify_one();
        // This waits for the lock of the target, and with it for the end of the first.
        machine
            .layers
            .set("slow", Behaviour::Refuse(LayerRefusal::not_indexed("none")));
        let next = daemon.prepare_layer("key", "", &target, "slow").await;
        if index == 0 {
            // Mounted and committed nevertheless: the retry finds it.
            assert_code(&next, Code::AlreadyExists);
            assert_eq!(daemon.names(&[]).await, ["target-0"]);
        } else {
            // Nothing was left: the same key can be used.
            next.unwrap();
            assert_eq!(daemon.names(&[]).await, ["key", "target-0"]);
        }
    }
    daemon.cleanup().await;
    assert_eq!(machine.directories().len(), 2);
    assert_eq!(machine.mounted().len(), 1);
}

#[tokio::test]
async fn a_parent_removed_during_the_mount_fails_the_prepare_and_leaves_nothing() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    let folder = machine.lazy_layer("one");
    machine.layer(&daemon, "base", "", |_| ()).await;
    let lazy = Behaviour::Lazy(folder, Default::default());
    let (asked, go_on) = waiting_layer(&machine, lazy);
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
    assert!(machine.mounted().is_empty());
    assert!(machine.directories().is_empty());
}
