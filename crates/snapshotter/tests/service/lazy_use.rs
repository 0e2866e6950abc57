//! Containers on lazy layers: the mounts show the layers, the owner of a root is inherited without
//! access to the mount, and a layer that cannot be served is an error before a container starts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use soci_layer::{MountedInfo, UseRefusal};
use tonic::Code;

use crate::client::assert_code;
use crate::double::Behaviour;
use crate::fixture::Machine;
use crate::mounting::tree;

#[tokio::test]
async fn a_container_sees_lazy_and_plain_layers_merged() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    machine.lazy_layer("three");
    daemon.pull_lazily("l1", "", "one").await;
    machine
        .layer(&daemon, "l2", "l1", |root| {
            assert_eq!(tree(root), ["one=one"]);
            fs::write(root.join("two"), "two").unwrap();
        })
        .await;
    daemon.pull_lazily("l3", "l2", "three").await;
    let expected = ["one=one", "three=three", "two=two"];
    assert_eq!(machine.contents(&daemon, "l3").await, expected);
    // A view of a single lazy layer is a bind mount of it.
    let view = daemon.view("view", "l1").await.unwrap();
    assert_eq!(view[0].r#type, "bind");
    assert_eq!(
        view[0].source,
        machine.snapshots().join("1/fs").display().to_string()
    );

    let mounts = daemon.prepare("container", "l3").await.unwrap();
    let (root, _mounted) = machine.mount(&mounts, "container");
    assert_eq!(tree(&root), expected);
    fs::write(root.join("one"), "changed").unwrap();
    assert_eq!(machine.contents(&daemon, "l3").await, expected);
}

#[tokio::test]
async fn the_owner_of_a_lazy_root_is_the_one_that_the_provider_returned() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let folder = machine.lazy_layer("one");
    // Not the result of a stat of the mount.
    let root = MountedInfo {
        uid: 123,
        gid: 456,
        mode: 0o755,
    };
    machine.layers.set("one", Behaviour::Lazy(folder, root));
    daemon.pull_lazily("target", "", "one").await;
    daemon.prepare("container", "target").await.unwrap();
    let upper = fs::metadata(machine.snapshots().join("2/fs")).unwrap();
    assert_eq!((upper.uid(), upper.gid()), (123, 456));
}

#[tokio::test]
async fn nothing_starts_on_a_layer_that_cannot_be_served() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("lazy", "", "one").await;
    machine.layer(&daemon, "top", "lazy", |_| ()).await;
    daemon.prepare("before", "top").await.unwrap();
    assert!(
        machine
            .layers
            .checked
            .lock()
            .contains(&machine.snapshots().join("1/fs"))
    );

    *machine.layers.broken.lock() = Some("connection lost".to_owned());
    let refused = daemon.prepare("container", "top").await;
    assert_code(&refused, Code::Unavailable);
    assert!(refused.unwrap_err().message().contains("connection lost"));
    assert_code(&daemon.view("view", "top").await, Code::Unavailable);
    assert_code(&daemon.mounts("before").await, Code::Unavailable);
    let deferred = daemon
        .prepare_layer("layer", "top", "target", "no such layer")
        .await;
    assert_code(&deferred, Code::Unavailable);
    // A failed Prepare leaves its key free.
    assert_eq!(daemon.names(&[]).await, ["before", "lazy", "top"]);
    // Snapshots without the layer still work.
    daemon.stat("top").await.unwrap();
    daemon.prepare("other", "").await.unwrap();

    *machine.layers.broken.lock() = None;
    daemon.prepare("container", "top").await.unwrap();
}

/// containerd shares a chain between images: only the use of it can be refused.
#[tokio::test]
async fn no_prepare_view_or_mounts_is_answered_on_a_layer_whose_use_is_refused() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("lazy", "", "one").await;
    machine.layer(&daemon, "top", "lazy", |_| ()).await;
    daemon.prepare("before", "top").await.unwrap();
    machine.layers.uses.lock().clear();

    for (refusal, code) in [
        (
            UseRefusal::Forged {
                reason: "mounted for app:a, not what app:b names".to_owned(),
            },
            Code::FailedPrecondition,
        ),
        (
            UseRefusal::Unverified {
                reason: "app:a, app:b: cannot verify".to_owned(),
                source: Arc::new(std::io::Error::other("no route")),
            },
            Code::Unavailable,
        ),
    ] {
        *machine.layers.unusable.lock() = Some(refusal);
        let refused = daemon.prepare("container", "top").await;
        assert_code(&refused, code);
        let text = refused.unwrap_err().message().to_owned();
        assert!(text.contains("app:a") && text.contains("app:b"), "{text}");
        assert_code(&daemon.view("view", "top").await, code);
        assert_code(&daemon.mounts("before").await, code);
        assert_eq!(daemon.names(&[]).await, ["before", "lazy", "top"]);
    }
    // Each names both layers, nearest first, and where the lazy one is mounted.
    let uses = std::mem::take(&mut *machine.layers.uses.lock());
    let existed: Vec<_> = uses.iter().map(|chain| chain.admitted_before).collect();
    assert_eq!(existed, [false, false, true, false, false, true]);
    let at = machine.snapshots().join("1/fs");
    for chain in uses {
        let layers: Vec<_> = chain.layers.iter().map(|layer| &layer.mountpoint).collect();
        assert_eq!(layers, [&None, &Some(at.clone())]);
    }

    *machine.layers.unusable.lock() = None;
    daemon.prepare("container", "top").await.unwrap();
}
