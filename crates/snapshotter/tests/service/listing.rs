//! List: containerd's filter language on real snapshots, and containerd's look-up after each lazy
//! Prepare.

use tonic::Code;

use crate::client::{assert_code, labels};
use crate::fixture::{Daemon, Machine};

async fn family(machine: &Machine, daemon: &Daemon) {
    machine.layer(daemon, "base", "", |_| ()).await;
    let committed = labels(&[("containerd.io/snapshot.ref", "sha256:1"), ("tier", "mid")]);
    daemon.prepare("key", "base").await.unwrap();
    daemon
        .commit_with("middle", "key", committed)
        .await
        .unwrap();
    daemon
        .prepare_with("active", "middle", labels(&[("tier", "top")]))
        .await
        .unwrap();
    daemon.view("view", "middle").await.unwrap();
}

#[tokio::test]
async fn walk_every_field_and_operator_selects() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    family(&machine, &daemon).await;
    for (filters, expected) in [
        (&[][..], &["active", "base", "middle", "view"][..]),
        (&[""], &["active", "base", "middle", "view"]),
        (&["kind==committed"], &["base", "middle"]),
        (&["kind==active"], &["active"]),
        (&["kind==view"], &["view"]),
        (&["kind!=committed"], &["active", "view"]),
        (&["kind==unknown"], &[]),
        (&["name==base"], &["base"]),
        (&["name==absent"], &[]),
        (&["name==base", "name==view"], &["base", "view"]),
        (&["name==base,kind==active"], &[]),
        (&["name~=/^.{4}$/"], &["base", "view"]),
        (&["parent==middle"], &["active", "view"]),
        (&["parent==\"\""], &["base"]),
        (&["parent==absent"], &[]),
        (&["parent==base", "parent==\"\""], &["base", "middle"]),
        (&["labels.tier"], &["active", "middle"]),
        (&["labels.tier==mid"], &["middle"]),
        (&["labels.tier!=mid"], &["active", "base", "view"]),
        (
            &["labels.\"tier\"~=/^(top|mid)$/,kind==committed"],
            &["middle"],
        ),
        (
            &["labels.\"containerd.io/snapshot.ref\"==sha256:1,parent==\"base\""],
            &["middle"],
        ),
        (
            &["labels.\"containerd.io/snapshot.ref\"==sha256:1,parent==\"\""],
            &[],
        ),
        (&["labels.\"containerd.io/snapshot.ref\"==sha256:2"], &[]),
        (
            &["labels.containerd.\"io/snapshot\".ref==\"sha256:1\""],
            &["middle"],
        ),
        (&["nonsense"], &[]),
    ] {
        assert_eq!(daemon.names(filters).await, expected, "{filters:?}");
    }
}

#[tokio::test]
async fn the_indexes_follow_removal_and_update() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    family(&machine, &daemon).await;
    let by_target = "labels.\"containerd.io/snapshot.ref\"==sha256:1";
    let mut info = daemon.stat("middle").await.unwrap();
    info.labels = labels(&[("containerd.io/snapshot.ref", "sha256:2")]);
    daemon
        .update(info, &["labels.containerd.io/snapshot.ref"])
        .await
        .unwrap();
    assert!(daemon.names(&[by_target]).await.is_empty());
    let new = "labels.\"containerd.io/snapshot.ref\"==sha256:2";
    assert_eq!(daemon.names(&[new]).await, ["middle"]);
    daemon.remove("view").await.unwrap();
    assert_eq!(daemon.names(&["parent==middle"]).await, ["active"]);
    daemon.remove("active").await.unwrap();
    daemon.remove("middle").await.unwrap();
    assert!(daemon.names(&[new]).await.is_empty());
    assert!(daemon.names(&["parent==base"]).await.is_empty());
}

#[tokio::test]
async fn an_invalid_regular_expression_matches_nothing() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    family(&machine, &daemon).await;
    assert!(daemon.names(&["name~=/(/"]).await.is_empty());
    assert_code(&daemon.list(&["name~=/x"]).await, Code::InvalidArgument);
}
