//! Names, kinds and labels: the cases of containerd's public conformance suite, with all kinds of
//! snapshots together, and names that are used again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use soci_snapshotter::api::v1::{Info, Kind};
use tonic::Code;

use crate::client::{Labels, assert_code, labels};
use crate::fixture::{Daemon, Machine};

/// Name, kind and parent of one snapshot of each kind.
const FAMILY: [(&str, Kind, &str); 6] = [
    ("c1", Kind::Committed, ""),
    ("c2", Kind::Committed, "c1"),
    ("a1", Kind::Active, "c2"),
    ("a2", Kind::Active, ""),
    ("v1", Kind::View, "c2"),
    ("v2", Kind::View, ""),
];

async fn family(daemon: &Daemon) {
    for (name, kind, parent) in FAMILY {
        match kind {
            Kind::Committed => {
                let key = format!("{name}-active");
                daemon.prepare(&key, parent).await.unwrap();
                daemon.commit(name, &key).await.unwrap();
            }
            Kind::Active => drop(daemon.prepare(name, parent).await.unwrap()),
            _ => drop(daemon.view(name, parent).await.unwrap()),
        }
    }
}

fn time(stamp: Option<prost_types::Timestamp>) -> SystemTime {
    let stamp = stamp.unwrap();
    let seconds = Duration::from_secs(stamp.seconds.try_into().unwrap());
    UNIX_EPOCH + seconds + Duration::from_nanos(stamp.nanos.try_into().unwrap())
}

#[tokio::test]
async fn update_labels_of_every_kind_and_nothing_else_about_it() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let begin = SystemTime::now();
    family(&daemon).await;
    let end = SystemTime::now();
    for (name, kind, parent) in FAMILY {
        let before = daemon.stat(name).await.unwrap();
        assert!((begin..=end).contains(&time(before.created_at)), "{name}");
        assert_eq!(before.created_at, before.updated_at, "{name}");
        let unchanged = |info: &Info| {
            assert_eq!(
                (info.name.as_str(), info.kind(), info.parent.as_str()),
                (name, kind, parent)
            );
            assert_eq!(info.created_at, before.created_at, "{name}");
        };
        unchanged(&before);

        let given = |pairs: &[(&str, &str)]| Info {
            parent: "absent".to_owned(),
            labels: labels(pairs),
            ..before.clone()
        };
        let begin = SystemTime::now();
        let all = [("l1", "v1"), ("l2", "v2"), ("l3", "v3")];
        let updated = daemon.update(given(&all), &[]).await.unwrap();
        assert!((begin..=SystemTime::now()).contains(&time(updated.updated_at)));
        assert_eq!(updated.labels, labels(&all), "{name}");
        unchanged(&updated);

        let some = [("l1", "updated"), ("l4", "not named")];
        let mask = ["labels.l1", "labels.l2"];
        let updated = daemon.update(given(&some), &mask).await.unwrap();
        assert_eq!(updated.labels, labels(&[("l1", "updated"), ("l3", "v3")]));

        let updated = daemon.update(given(&some[1..]), &["labels"]).await.unwrap();
        assert_eq!(updated.labels, labels(&some[1..]), "{name}");
        let refused = daemon.update(given(&[]), &["parent"]).await;
        assert_code(&refused, Code::InvalidArgument);
        let after = daemon.stat(name).await.unwrap();
        assert_eq!(after, updated);
        unchanged(&after);
    }
}

#[tokio::test]
async fn remove_makes_names_free_for_any_other_kind_and_parent() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.prepare("active", "").await.unwrap();
    daemon.commit("committed", "active").await.unwrap();
    daemon.prepare("reused", "committed").await.unwrap();
    daemon.remove("reused").await.unwrap();
    daemon.view("reused", "committed").await.unwrap();
    daemon.remove("reused").await.unwrap();
    daemon.prepare("reused", "").await.unwrap();
    daemon.remove("committed").await.unwrap();
    daemon.commit("committed", "reused").await.unwrap();
    let info = daemon.stat("committed").await.unwrap();
    assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(daemon.names(&[]).await, ["committed"]);
    // The name of an active snapshot that was committed is free as well.
    daemon.prepare("active", "committed").await.unwrap();
}

#[tokio::test]
async fn walk_gives_what_each_filter_of_the_suite_selects() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let root = ("containerd.io/gc.root", "walk");
    let labelled = |value: &str| labels(&[("l", value), root]);
    let plain = labels(&[root]);
    let committed = async |name: &str, with: Labels| {
        let key = format!("{name}-tmp");
        daemon.prepare_with(&key, "", plain.clone()).await.unwrap();
        daemon.commit_with(name, &key, with).await.unwrap();
    };
    daemon
        .prepare_with("a-np", "", plain.clone())
        .await
        .unwrap();
    committed("p", plain.clone()).await;
    daemon.prepare_with("a", "p", plain.clone()).await.unwrap();
    daemon.view_with("v", "p", plain.clone()).await.unwrap();
    committed("p-wl", labelled("1")).await;
    daemon
        .prepare_with("a-wl", "p-wl", labelled("2"))
        .await
        .unwrap();
    daemon
        .view_with("v-wl", "p-wl", labelled("3"))
        .await
        .unwrap();
    daemon
        .prepare_with("a-np-wl", "", labelled("2"))
        .await
        .unwrap();
    // Must not be returned for any filter below.
    daemon.prepare("other", "").await.unwrap();

    let by_root = "labels.\"containerd.io/gc.root\"==walk";
    let and = |filter: &str| format!("{filter},{by_root}");
    for (filters, expected) in [
        (
            vec![by_root.to_owned()],
            &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"][..],
        ),
        (vec![and("kind==active")], &["a", "a-np", "a-np-wl", "a-wl"]),
        (vec![and("kind==view")], &["v", "v-wl"]),
        (vec![and("kind==committed")], &["p", "p-wl"]),
        (
            vec!["name==p".into(), "name==a-np-wl".into()],
            &["a-np-wl", "p"],
        ),
        (vec!["name==a-wl,labels.l".into()], &["a-wl"]),
        (vec!["parent==p".into()], &["a", "v"]),
        (vec![and("parent!=\"\"")], &["a", "a-wl", "v", "v-wl"]),
        (
            vec!["labels.l".into()],
            &["a-np-wl", "a-wl", "p-wl", "v-wl"],
        ),
        (vec!["labels.l==2".into()], &["a-np-wl", "a-wl"]),
    ] {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        assert_eq!(daemon.names(&filters).await, expected, "{filters:?}");
    }
}
