//! The services on the socket, over real gRPC. Needs root and FUSE.

use std::path::Path;

use crate::daemon::DaemonDirs;
use rustix::process::Signal;
use soci_snapshotter::api::v1::snapshots_client::SnapshotsClient;
use soci_snapshotter::api::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

async fn channel(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display()))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", "default".parse().unwrap());
    request
}

#[tokio::test]
async fn health_checks_answer_serving() {
    let place = DaemonDirs::new();
    let _daemon = place.start();
    let mut health = HealthClient::new(channel(&place.socket()).await);
    for service in ["", "containerd.services.snapshots.v1.Snapshots"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        assert_eq!(
            health.check(request).await.unwrap().into_inner().status,
            1,
            "{service:?}"
        );
    }
}

/// A pipe that has no room left, and its reader.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    use rustix::fs::{OFlags, fcntl_setfl};
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, b"x").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

#[tokio::test]
async fn a_daemon_whose_log_is_not_read_starts_serves_and_ends() {
    let place = DaemonDirs::new();
    let (reader, writer) = full_pipe();
    let mut command = place.command();
    let mut daemon = command.stderr(writer).spawn().unwrap();
    let begin = std::time::Instant::now();
    let mut client = loop {
        let socket = Endpoint::from_shared(format!("unix://{}", place.socket().display()));
        match socket.unwrap().connect().await {
            Ok(channel) => break SnapshotsClient::new(channel),
            Err(error) => {
                assert!(begin.elapsed().as_secs() < 60, "{error}");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    };
    for key in 0..200 {
        let prepare = PrepareSnapshotRequest {
            key: format!("k{key}"),
            ..Default::default()
        };
        client.prepare(in_namespace(prepare)).await.unwrap();
    }
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    drop(reader);
}

#[tokio::test]
async fn snapshots_outlive_the_daemon_and_an_idle_client_does_not_delay_its_end() {
    let place = DaemonDirs::new();
    let mut daemon = place.start();
    let mut client = SnapshotsClient::new(channel(&place.socket()).await);
    let prepare = PrepareSnapshotRequest {
        key: "k".to_owned(),
        ..Default::default()
    };
    let mounts = client
        .prepare(in_namespace(prepare))
        .await
        .unwrap()
        .into_inner()
        .mounts;
    assert_eq!((mounts.len(), mounts[0].r#type.as_str()), (1, "bind"));
    assert!(Path::new(&mounts[0].source).starts_with(place.path("root/snapshotter/snapshots")));

    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let cut = daemon
        .lines
        .iter()
        .any(|line| line["msg"].as_str().unwrap().contains("cut off"));
    assert!(!cut, "{:#?}", daemon.lines);

    let _daemon = place.start();
    let mut client = SnapshotsClient::new(channel(&place.socket()).await);
    let stat = StatSnapshotRequest {
        key: "k".to_owned(),
        ..Default::default()
    };
    client.stat(in_namespace(stat.clone())).await.unwrap();
    let remove = RemoveSnapshotRequest {
        key: "k".to_owned(),
        ..Default::default()
    };
    client.remove(in_namespace(remove)).await.unwrap();
    assert_eq!(
        client.stat(in_namespace(stat)).await.unwrap_err().code(),
        Code::NotFound
    );
}
