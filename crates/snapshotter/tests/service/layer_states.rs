//! The states of image layers for `soci status` and metrics.

use soci_layer::LayerRefusal;
use soci_snapshotter::{LayerCounts, LayerMode};

use crate::client::{Labels, layer_labels};
use crate::double::Behaviour;
use crate::fixture::Machine;

#[tokio::test]
async fn a_layer_is_known_by_image_and_reason_whatever_the_client_commits() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let refusal = LayerRefusal::no_ztoc("layer 3");
    machine.layers.set("small", Behaviour::Refuse(refusal));
    let mut labels = layer_labels("sha256:1", "small");
    for (key, value) in [
        ("containerd.io/snapshot/cri.manifest-digest", "sha256:m"),
        ("containerd.io/snapshot/remote/soci.size", "42"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    daemon.prepare_with("key", "", labels).await.unwrap();
    daemon
        .commit_with("sha256:1", "key", Labels::new())
        .await
        .unwrap();
    let layers = daemon.snapshotter.layers().await.unwrap();
    let [layer] = &layers[..] else {
        panic!("{layers:?}");
    };
    assert_eq!(layer.mode, LayerMode::Deferred);
    assert_eq!(layer.image.as_deref(), Some("registry/image:tag"));
    assert_eq!(layer.manifest.as_deref(), Some("sha256:m"));
    assert_eq!(layer.layer.as_deref(), Some("small"));
    assert_eq!(layer.size, Some(42));
    assert_eq!(layer.reason.as_ref().unwrap().code, "no-ztoc");
}

#[tokio::test]
async fn layers_are_counted_by_how_they_are_provided_and_refusals_by_reason() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let counts = || daemon.snapshotter.layer_counts();
    assert_eq!(counts().await.unwrap(), LayerCounts::default());
    machine.lazy_layer("lazy");
    daemon.pull_lazily("sha256:1", "", "lazy").await;
    let refusal = LayerRefusal::not_indexed("404");
    machine.layers.set("other", Behaviour::Refuse(refusal));
    daemon
        .prepare_layer("key", "sha256:1", "sha256:2", "other")
        .await
        .unwrap();
    let expected = LayerCounts {
        lazy: 1,
        local: 0,
        deferred: 1,
    };
    assert_eq!(counts().await.unwrap(), expected);
    assert_eq!(counts().await.unwrap(), expected, "from memory");
    daemon.remove("key").await.unwrap();
    let expected = LayerCounts {
        deferred: 0,
        ..expected
    };
    assert_eq!(counts().await.unwrap(), expected);
    let refusals = daemon.snapshotter.refusals();
    let of = |code: &str| refusals.iter().find(|(c, _)| *c == code).unwrap().1;
    assert_eq!((of("no-index"), of("failed")), (1, 0));
}
