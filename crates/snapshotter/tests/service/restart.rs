//! A start finds all snapshots, after a stop or a crash, and mounts lazy layers again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use soci_layer::{LayerRefusal, Purpose};
use soci_snapshotter::{LayerMode, SnapshotterError};
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::Code;

use crate::client::{assert_code, labels};
use crate::double::Behaviour;
use crate::fixture::{Machine, exists};

#[tokio::test]
async fn after_a_crash_every_acknowledged_snapshot_is_there() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine
        .layer(&daemon, "base", "", |root| {
            fs::write(root.join("f"), "1").unwrap()
        })
        .await;
    daemon
        .prepare_with("active", "base", labels(&[("k", "v")]))
        .await
        .unwrap();
    daemon.prepare("gone", "base").await.unwrap();
    daemon.remove("gone").await.unwrap();
    let before = daemon.list(&[]).await.unwrap();
    let usage = daemon.usage("base").await.unwrap();
    let mounts = daemon.mounts("active").await.unwrap();
    daemon.kill().await;

    let daemon = machine.start().await;
    assert_eq!(daemon.list(&[]).await.unwrap(), before);
    assert_eq!(daemon.usage("base").await.unwrap(), usage);
    assert_eq!(daemon.mounts("active").await.unwrap(), mounts);
    assert_eq!(machine.contents(&daemon, "base").await, ["f=1"]);
    assert_code(&daemon.remove("base").await, Code::FailedPrecondition);
}

#[tokio::test]
async fn stopping_leaves_or_unmounts_the_mounts_as_the_signal_requests() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("target", "", "one").await;
    daemon.stop(false).await;
    assert_eq!(machine.mounted().len(), 1);

    let daemon = machine.start().await;
    assert_eq!(machine.mounted().len(), 1);
    daemon.stop(true).await;
    assert!(machine.mounted().is_empty());
    assert!(exists(&machine.snapshots().join("1/fs")));
}

#[tokio::test]
async fn lazy_layers_are_mounted_again_with_the_labels_of_their_prepare() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for layer in ["one", "two"] {
        machine.lazy_layer(layer);
    }
    daemon.pull_lazily("l1", "", "one").await;
    daemon.pull_lazily("l2", "l1", "two").await;
    // Clients can change every label; what is needed to mount the layer is stored beside them.
    let mut info = daemon.stat("l1").await.unwrap();
    info.labels.clear();
    daemon.update(info, &[]).await.unwrap();
    let mut first = std::mem::take(&mut *machine.layers.requests.lock());
    daemon.kill().await;

    let daemon = machine.start().await;
    let mut second = std::mem::take(&mut *machine.layers.requests.lock());
    first.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    second.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    for request in &mut first {
        request.purpose = Purpose::Restore;
        // A provider keeps what it needs of the layers below.
        request.parents.clear();
    }
    assert_eq!(first, second);
    // The stale mounts of the first daemon were unmounted first.
    assert_eq!(machine.mounted().len(), 2);
    assert_eq!(
        machine.contents(&daemon, "l2").await,
        ["one=one", "two=two"]
    );
    let layers = daemon.snapshotter.layers().await.unwrap();
    assert!(layers.iter().all(|layer| layer.mode == LayerMode::Lazy));
}

#[tokio::test]
async fn a_layer_that_cannot_be_mounted_again_is_marked_unless_all_are_required() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for layer in ["good", "bad"] {
        machine.lazy_layer(layer);
    }
    daemon.pull_lazily("bad target", "", "bad").await;
    daemon.pull_lazily("good target", "", "good").await;
    daemon.stop(true).await;
    let bad = machine.layers.behaviours.lock().remove("bad").unwrap();
    for behaviour in [
        Behaviour::Refuse(LayerRefusal::failed("registry unreachable")),
        Behaviour::Panic,
    ] {
        machine.layers.set("bad", behaviour);
        let Err(error) = machine.open(true).await else {
            panic!("started with a broken layer");
        };
        assert!(
            matches!(&error, SnapshotterError::Restore { .. }),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains("bad target"), "{text}");
        assert!(text.contains("require_all_mounts"), "{text}");
    }

    let daemon = machine.start_with(false).await;
    assert_eq!(
        machine.mounted(),
        [fs::canonicalize(machine.snapshots()).unwrap().join("2/fs")]
    );
    let refused = daemon.prepare("container", "bad target").await;
    assert_code(&refused, Code::Unavailable);
    daemon.prepare("container", "good target").await.unwrap();

    // Nothing was lost: the layer returns with the registry.
    machine.layers.set("bad", bad);
    assert_eq!(machine.contents(&daemon, "bad target").await, ["bad=bad"]);
    assert_eq!(machine.mounted().len(), 2);
}

#[tokio::test]
async fn one_of_two_hundred_layers_that_takes_for_ever_keeps_no_other_down() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for number in 0..200 {
        let layer = format!("layer{number}");
        machine.lazy_layer(&layer);
        let target = format!("{layer} target");
        daemon.pull_lazily(&target, "", &layer).await;
    }
    daemon.stop(true).await;
    let good = machine.layers.behaviours.lock().remove("layer7").unwrap();
    let (requested, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let waits = Behaviour::Wait(requested.clone(), proceed.clone(), Box::new(good));
    machine.layers.set("layer7", waits);

    let opened = machine.open_within(false, Duration::from_millis(50)).await;
    let daemon = machine.serve(opened.unwrap()).await;
    requested.notified().await;
    for number in (0..200).filter(|&number| number != 7) {
        let layer = format!("layer{number}");
        let contents = machine.contents(&daemon, &format!("{layer} target")).await;
        assert_eq!(contents, [format!("{layer}={layer}")]);
    }
    assert_eq!(daemon.snapshotter.broken_layers(), 1);
    assert!(
        timeout(Duration::ZERO, daemon.snapshotter.restored())
            .await
            .is_err()
    );

    // A container that needs it waits: no event shows that its call has come so far.
    let target = "layer7 target";
    let mut waiting = Box::pin(daemon.prepare("waiting", target));
    assert!(
        timeout(Duration::from_millis(100), &mut waiting)
            .await
            .is_err()
    );
    proceed.notify_one();
    waiting.await.unwrap();
    daemon.snapshotter.restored().await;
    assert_eq!(daemon.snapshotter.broken_layers(), 0);
    assert_eq!(machine.contents(&daemon, target).await, ["layer7=layer7"]);
    daemon.stop(true).await;
}

#[tokio::test]
async fn more_layers_that_take_for_ever_than_are_restored_at_a_time_keep_no_other_down() {
    const SLOW: u64 = 20;
    let machine = Machine::new();
    let daemon = machine.start().await;
    for number in 0..100 {
        let layer = format!("layer{number}");
        machine.lazy_layer(&layer);
        let target = format!("{layer} target");
        daemon.pull_lazily(&target, "", &layer).await;
    }
    daemon.stop(true).await;
    // Every fifth, so that others come behind the first sixteen in whichever order.
    let mut signals = Vec::new();
    for number in 0..SLOW {
        let layer = format!("layer{}", number * 5);
        let good = machine.layers.behaviours.lock().remove(&layer).unwrap();
        let (requested, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let waits = Behaviour::Wait(requested.clone(), proceed.clone(), Box::new(good));
        machine.layers.set(&layer, waits);
        signals.push((requested, proceed));
    }

    // No container needs any: that would have them restored ahead of the others.
    let opened = machine.open_within(false, Duration::ZERO).await;
    let daemon = machine.serve(opened.unwrap()).await;
    let restored = async {
        for (requested, _) in &signals {
            requested.notified().await;
        }
        while daemon.snapshotter.broken_layers() > SLOW {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let restored = timeout(Duration::from_mins(5), restored).await;
    let left = daemon.snapshotter.broken_layers();
    restored.unwrap_or_else(|_| panic!("{left} of 100 layers are not restored"));
    assert_eq!(left, SLOW);
    for (_, proceed) in &signals {
        proceed.notify_one();
    }
    daemon.snapshotter.restored().await;
    assert_eq!(daemon.snapshotter.broken_layers(), 0);
    assert_eq!(machine.mounted().len(), 100);
    daemon.stop(true).await;
}

#[tokio::test]
async fn a_layer_that_is_removed_while_it_is_being_restored_leaves_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("target", "", "one").await;
    daemon.stop(true).await;
    let good = machine.layers.behaviours.lock().remove("one").unwrap();
    let (requested, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let waits = Behaviour::Wait(requested.clone(), proceed.clone(), Box::new(good));
    machine.layers.set("one", waits);
    let opened = machine.open_within(false, Duration::ZERO).await.unwrap();
    let daemon = machine.serve(opened).await;
    requested.notified().await;
    daemon.remove("target").await.unwrap();
    daemon.cleanup().await;
    assert!(exists(&machine.snapshots().join("1")));
    proceed.notify_one();
    daemon.snapshotter.restored().await;
    daemon.cleanup().await;
    assert!(!exists(&machine.snapshots().join("1")));
    assert_eq!(machine.mounted().len(), 0);
    assert_eq!(daemon.snapshotter.broken_layers(), 0);
    daemon.stop(true).await;
}

#[tokio::test]
async fn a_mount_point_that_vanished_is_made_again() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("target", "", "one").await;
    daemon.stop(true).await;
    fs::remove_dir_all(machine.snapshots().join("1")).unwrap();
    let daemon = machine.start().await;
    assert_eq!(machine.contents(&daemon, "target").await, ["one=one"]);
}

#[tokio::test]
async fn the_reason_why_a_layer_is_not_lazy_survives() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon
        .prepare_layer("key", "", "target", "unknown layer")
        .await
        .unwrap();
    daemon.commit("target", "key").await.unwrap();
    daemon.kill().await;
    let daemon = machine.start().await;
    let layers = daemon.snapshotter.layers().await.unwrap();
    assert_eq!(layers.len(), 1);
    let reason = layers[0].reason.as_ref().unwrap();
    assert_eq!(reason.code, "no-index");
    assert!(reason.text.contains("unknown layer"), "{reason:?}");
}

#[tokio::test]
async fn a_root_that_cannot_be_used_is_a_clear_error() {
    let machine = Machine::new();
    fs::write(machine.root(), "a file").unwrap();
    let Err(error) = machine.open(true).await else {
        panic!("opened a file as a directory");
    };
    assert!(error.to_string().contains("root/snapshots"), "{error}");
    fs::remove_file(machine.root()).unwrap();

    fs::create_dir(machine.root()).unwrap();
    fs::write(machine.root().join("metadata.redb"), [7; 5000]).unwrap();
    let Err(error) = machine.open(true).await else {
        panic!("opened garbage as a database");
    };
    assert!(error.to_string().contains("metadata.redb"), "{error}");
    assert_eq!(
        fs::read(machine.root().join("metadata.redb")).unwrap(),
        [7; 5000]
    );
    let mode = fs::metadata(machine.snapshots())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
}
