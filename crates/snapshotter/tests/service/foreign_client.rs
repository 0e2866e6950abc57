//! The client that another project generates from the upstream protos works with our service: names
//! and field numbers are right on the wire.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots as upstream;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;

use crate::client::labels;
use crate::fixture::Machine;

#[tokio::test]
async fn every_call_and_field_is_understood_by_the_upstream_client() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let channel = containerd_client::connect(machine.path("socket"))
        .await
        .unwrap();
    let mut client = SnapshotsClient::new(channel);
    let text = str::to_owned;
    let sent = HashMap::from([(text("label"), text("value"))]);

    let prepare = |key, parent| upstream::PrepareSnapshotRequest {
        snapshotter: text("soci"),
        key: text(key),
        parent: text(parent),
        labels: sent.clone(),
    };
    let prepared = client
        .prepare(prepare("key", ""))
        .await
        .unwrap()
        .into_inner();
    let ours = daemon.mounts("key").await.unwrap();
    assert_eq!(prepared.mounts.len(), 1);
    assert_eq!(prepared.mounts[0].r#type, ours[0].r#type);
    assert_eq!(prepared.mounts[0].source, ours[0].source);
    assert_eq!(prepared.mounts[0].options, ours[0].options);

    let commit = upstream::CommitSnapshotRequest {
        snapshotter: text("soci"),
        name: text("name"),
        key: text("key"),
        labels: sent.clone(),
    };
    client.commit(commit).await.unwrap();
    let view = upstream::ViewSnapshotRequest {
        snapshotter: text("soci"),
        key: text("view"),
        parent: text("name"),
        labels: sent.clone(),
    };
    let viewed = client.view(view).await.unwrap().into_inner().mounts;
    let mounts = upstream::MountsRequest {
        snapshotter: text("soci"),
        key: text("view"),
    };
    assert_eq!(
        client.mounts(mounts).await.unwrap().into_inner().mounts,
        viewed
    );

    let stat = upstream::StatSnapshotRequest {
        snapshotter: text("soci"),
        key: text("view"),
    };
    let info = client.stat(stat).await.unwrap().into_inner().info.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str()), ("view", "name"));
    assert_eq!(info.kind(), upstream::Kind::View);
    assert_eq!(info.labels, sent);
    let ours = daemon.stat("view").await.unwrap();
    let [theirs, expected] = [
        (info.created_at, ours.created_at),
        (info.updated_at, ours.updated_at),
    ]
    .map(|(theirs, ours)| {
        (
            theirs.map(|t| (t.seconds, t.nanos)),
            ours.map(|t| (t.seconds, t.nanos)),
        )
    });
    assert_eq!(theirs.0, theirs.1);
    assert_eq!(expected.0, expected.1);

    let update = upstream::UpdateSnapshotRequest {
        snapshotter: text("soci"),
        info: Some(upstream::Info {
            labels: HashMap::from([(text("label"), text("new"))]),
            ..info
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![text("labels.label")],
        }),
    };
    client.update(update).await.unwrap();
    assert_eq!(
        daemon.stat("view").await.unwrap().labels,
        labels(&[("label", "new")])
    );

    let list = upstream::ListSnapshotsRequest {
        snapshotter: text("soci"),
        filters: vec![text("kind==committed")],
    };
    let mut stream = client.list(list).await.unwrap().into_inner();
    let batch = stream.message().await.unwrap().unwrap();
    assert_eq!(batch.info.len(), 1);
    assert_eq!(batch.info[0].kind(), upstream::Kind::Committed);

    let usage = upstream::UsageRequest {
        snapshotter: text("soci"),
        key: text("name"),
    };
    assert_eq!(client.usage(usage).await.unwrap().into_inner().inodes, 1);
    let remove = upstream::RemoveSnapshotRequest {
        snapshotter: text("soci"),
        key: text("view"),
    };
    client.remove(remove).await.unwrap();
    let cleanup = upstream::CleanupRequest {
        snapshotter: text("soci"),
    };
    client.cleanup(cleanup).await.unwrap();
    assert_eq!(machine.directories(), ["1"]);
}
