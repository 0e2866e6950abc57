//! Prepare of a layer that is pulled with all layers of its image: committed without the label of an
//! index, never left to the client, ended by the removal of its snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use soci_layer::LayerRefusal;
use soci_snapshotter::LayerMode;
use tokio::sync::Notify;
use tonic::Code;

use crate::client::{assert_code, labels, layer_labels};
use crate::double::{Layers, Unpacking};
use crate::fixture::Machine;

fn eager() -> LayerRefusal {
    LayerRefusal::Eager {
        reason: "enable = true".to_owned(),
    }
}

#[tokio::test]
async fn a_layer_of_an_eager_image_is_committed_without_the_label_of_an_index() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let unpacking = Unpacking::File("file", "content");
    machine.layers.set_unpacking("layer", eager(), unpacking);
    for (key, parent, target) in [("a", "", "lower"), ("b", "lower", "upper")] {
        let answer = daemon.prepare_layer(key, parent, target, "layer").await;
        assert_code(&answer, Code::AlreadyExists);
        let info = daemon.stat(target).await.unwrap();
        let mut expected = layer_labels(target, "layer");
        expected.extend(labels(&[(
            "containerd.io/snapshot/remote/namespace",
            "testing",
        )]));
        assert_eq!(info.labels, expected);
    }
    let requests = machine.layers.unpack_requests.lock().clone();
    let committed = requests[1].eager.clone().unwrap();
    assert!(committed.contains("lower") && !committed.contains("another"));
    let layers = daemon.snapshotter.layers().await.unwrap();
    assert!(layers.iter().all(|layer| layer.mode == LayerMode::Local));
    assert_eq!(layers[0].reason.as_ref().unwrap().code, "parallel-pull");
    // Both Prepares were announced before anything else, and the removal of a layer is as well.
    let announced = machine.layers.announced.lock().clone();
    assert_eq!(announced, ["lower", "upper"]);
    daemon.remove("upper").await.unwrap();
    let removed: Vec<BTreeMap<_, _>> = machine.layers.removed.lock().clone();
    assert_eq!(removed[0]["containerd.io/snapshot.ref"], "upper");
}

#[tokio::test]
async fn a_failure_of_an_eager_image_is_the_error_of_the_prepare() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for unpacking in [Unpacking::HalfWay, Unpacking::Panic] {
        machine.layers.set_unpacking("layer", eager(), unpacking);
        let answer = daemon.prepare_layer("key", "", "target", "layer").await;
        assert_code(&answer, Code::Unavailable);
        let message = answer.unwrap_err().message().to_owned();
        assert!(
            message.starts_with("cannot pull and unpack the layer: "),
            "{message}"
        );
        assert!(daemon.names(&[]).await.is_empty());
        assert!(machine.directories().is_empty());
    }
    let unpacking = Unpacking::File("file", "content");
    machine.layers.set_unpacking("layer", eager(), unpacking);
    let again = daemon.prepare_layer("key", "", "target", "layer").await;
    assert_code(&again, Code::AlreadyExists);
}

/// An interest that notes as it ends whether its layer is committed.
struct Noting {
    layers: Arc<Layers>,
    committed: Arc<Mutex<Option<bool>>>,
}

impl Drop for Noting {
    fn drop(&mut self) {
        let requests = self.layers.unpack_requests.lock();
        let committed = requests[0].eager.as_ref().unwrap();
        *self.committed.lock() = Some(committed.contains("target"));
    }
}

#[tokio::test]
async fn the_interest_in_an_eager_image_lasts_until_its_layer_is_committed() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let committed: Arc<Mutex<Option<bool>>> = Arc::default();
    *machine.layers.interest.lock() = Some(Box::new(Noting {
        layers: machine.layers.clone(),
        committed: committed.clone(),
    }));
    let unpacking = Unpacking::File("file", "content");
    machine.layers.set_unpacking("layer", eager(), unpacking);
    let answer = daemon.prepare_layer("key", "", "target", "layer").await;
    assert_code(&answer, Code::AlreadyExists);
    assert_eq!(*committed.lock(), Some(true));
}

#[tokio::test]
async fn removing_the_snapshot_of_a_layer_in_work_ends_the_work() {
    let machine = Machine::new();
    let daemon = Arc::new(machine.start().await);
    let asked = Arc::new(Notify::new());
    let wait = Unpacking::Wait(asked.clone(), Arc::default());
    machine.layers.set_unpacking("slow", eager(), wait);
    let call = {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { daemon.prepare_layer("key", "", "target", "slow").await })
    };
    asked.notified().await;
    daemon.remove("key").await.unwrap();
    assert_code(&call.await.unwrap(), Code::Cancelled);
    assert!(daemon.names(&[]).await.is_empty());
    assert!(machine.directories().is_empty());
    assert_code(&daemon.remove("key").await, Code::NotFound);
}
