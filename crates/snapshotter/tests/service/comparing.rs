//! Comparing snapshots, as `nerdctl commit` does: lazy layers answer requests for extended attributes.

use soci_layer::LayerRefusal;
use tonic::Code;

use crate::client::assert_code;
use crate::double::Behaviour;
use crate::fixture::{Daemon, Machine};

/// The name that containerd gives the view of a parent.
const VIEW: &str = "sha256:2-parent-view-123-AbC_";

async fn two_layers(machine: &Machine) -> Daemon {
    let daemon = machine.start().await;
    machine.lazy_layer("one");
    daemon.pull_lazily("sha256:1", "", "one").await;
    machine.layer(&daemon, "sha256:2", "sha256:1", |_| ()).await;
    daemon
}

fn lower(machine: &Machine, names: [&str; 2]) -> String {
    let at = names.map(|name| {
        machine
            .snapshots()
            .join(name)
            .join("fs")
            .display()
            .to_string()
    });
    format!("lowerdir={}", at.join(":"))
}

#[tokio::test]
async fn a_compared_container_and_the_view_of_its_parent_have_lazy_layers_that_answer() {
    let machine = Machine::new();
    let mut daemon = two_layers(&machine).await;
    let shared = lower(&machine, ["2", "1"]);
    let container = daemon.prepare("container", "sha256:2").await.unwrap();
    assert!(container[0].options.contains(&shared), "{container:?}");
    // Other views, such as nerdctl's of the volumes of an image, do not count.
    let other = daemon.view("volumes", "sha256:2").await.unwrap();
    assert!(other[0].options.contains(&shared), "{other:?}");
    assert_eq!(daemon.mounts("container").await.unwrap(), container);

    let view = daemon.view(VIEW, "sha256:2").await.unwrap();
    assert!(
        view[0].options.contains(&lower(&machine, ["2", "1-5"])),
        "{view:?}"
    );
    let compared = daemon.mounts("container").await.unwrap();
    assert!(
        compared[0].options.contains(&lower(&machine, ["2", "1-3"])),
        "{compared:?}"
    );
    let requests = machine.layers.requests.lock().clone();
    let answering: Vec<_> = requests.iter().filter(|r| r.view.answer_xattrs).collect();
    assert_eq!(answering.len(), 2, "{requests:?}");
    assert_eq!(machine.mounted().len(), 3);

    // A restart restores all of it.
    for unmount_all in [false, true] {
        daemon.stop(unmount_all).await;
        daemon = machine.start().await;
        assert_eq!(daemon.mounts(VIEW).await.unwrap(), view);
        assert_eq!(daemon.mounts("container").await.unwrap(), compared);
        assert_eq!(machine.mounted().len(), 3);
    }

    // The container keeps its own mounts, which it may use, until it is removed.
    daemon.remove(VIEW).await.unwrap();
    daemon.cleanup().await;
    assert_eq!(daemon.mounts("container").await.unwrap(), compared);
    assert_eq!(machine.mounted().len(), 2);
    daemon.remove("container").await.unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1", "2", "4"]);
    // A container that is started now uses the shared mounts.
    let next = daemon.prepare("next", "sha256:2").await.unwrap();
    assert!(next[0].options.contains(&shared), "{next:?}");
    assert_eq!(daemon.mounts("next").await.unwrap(), next);
}

#[tokio::test]
async fn a_layer_that_cannot_be_mounted_again_fails_the_comparison_alone() {
    let machine = Machine::new();
    let daemon = two_layers(&machine).await;
    let container = daemon.prepare("container", "sha256:2").await.unwrap();
    machine
        .layers
        .set("one", Behaviour::Refuse(LayerRefusal::failed("no")));
    assert_code(&daemon.view(VIEW, "sha256:2").await, Code::Unavailable);
    assert_eq!(machine.directories(), ["1", "2", "3"]);
    assert_eq!(daemon.mounts("container").await.unwrap(), container);
}
