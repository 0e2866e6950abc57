//! Times calls over the unix socket with 10,000 snapshots in the database: Prepare and Mounts of a
//! container, List of everything, the look-up after a lazy Prepare, and reopening.
//!
//! `cargo bench -p soci-snapshotter`; the database is created in `$TMPDIR`. Root is not needed: the
//! provider mounts nothing.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use soci_layer::{LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError};
use soci_snapshotter::api::v1::snapshots_client::SnapshotsClient;
use soci_snapshotter::api::v1::{
    ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use soci_snapshotter::{Snapshotter, SnapshotterConfig, service};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Request};

const IMAGES: usize = 900;
const LAYERS: usize = 10;
const CONTAINERS: usize = 1_000;
const ROUNDS: usize = 500;

/// A provider that accepts everything and mounts nothing.
struct Nothing;

#[async_trait]
impl LayerProvider for Nothing {
    async fn mount(&self, _: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        Ok(MountedInfo::default())
    }
    async fn unmount(&self, _: &Path) -> Result<(), ProviderError> {
        Ok(())
    }
    async fn check(&self, _: &Path, _: &BTreeMap<String, String>) -> Result<(), ProviderError> {
        Ok(())
    }
}

fn chain_id(image: usize, layer: usize) -> String {
    format!("sha256:{image:032x}{layer:032x}")
}

/// As many bytes of labels as containerd sends.
fn layer_labels(image: usize, layer: usize) -> BTreeMap<String, String> {
    let digests: Vec<String> = (layer..LAYERS)
        .map(|above| chain_id(image, above))
        .collect();
    let image_ref = format!("123456789012.dkr.ecr.us-west-2.amazonaws.com/team/app-{image}:v1");
    [
        ("containerd.io/snapshot.ref", chain_id(image, layer)),
        ("containerd.io/snapshot/cri.image-ref", image_ref),
        (
            "containerd.io/snapshot/cri.layer-digest",
            chain_id(image, layer),
        ),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            chain_id(image, 99),
        ),
        ("containerd.io/snapshot/cri.image-layers", digests.join(",")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

async fn prepare(
    client: &mut SnapshotsClient<Channel>,
    key: String,
    parent: String,
    labels: BTreeMap<String, String>,
) -> Option<Code> {
    let mut request = Request::new(PrepareSnapshotRequest {
        snapshotter: "soci".to_owned(),
        key,
        parent,
        labels,
    });
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", "k8s.io".parse().unwrap());
    client
        .prepare(request)
        .await
        .err()
        .map(|status| status.code())
}

async fn fill(client: &SnapshotsClient<Channel>) {
    let mut tasks = tokio::task::JoinSet::new();
    for image in 0..IMAGES {
        let mut client = client.clone();
        tasks.spawn(async move {
            let mut parent = String::new();
            for layer in 0..LAYERS {
                let labels = layer_labels(image, layer);
                let key = format!("extract-{image}-{layer}");
                let code = prepare(&mut client, key, parent, labels).await;
                assert_eq!(code, Some(Code::AlreadyExists));
                parent = chain_id(image, layer);
            }
        });
    }
    tasks.join_all().await;
    let mut client = client.clone();
    for container in 0..CONTAINERS {
        let parent = chain_id(container % IMAGES, LAYERS - 1);
        let key = format!("container-{container}");
        let code = prepare(&mut client, key, parent, BTreeMap::new()).await;
        assert_eq!(code, None);
    }
}

async fn list(client: &mut SnapshotsClient<Channel>, filters: Vec<String>) -> usize {
    let snapshotter = "soci".to_owned();
    let request = ListSnapshotsRequest {
        snapshotter,
        filters,
    };
    let mut stream = client.list(request).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(batch) = stream.message().await.unwrap() {
        count += batch.decode().unwrap().len();
    }
    count
}

fn report(what: &str, target: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{what:<44} median {:>9.3?}  p99 {:>9.3?}  (target: {target})",
        at(50),
        at(99)
    );
}

/// The lower bound of a commit on this machine: writing a page and waiting for the disk.
fn time_fsync(directory: &Path) -> Vec<Duration> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(directory.join("fsync")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.sync_all().unwrap();
    (0..200)
        .map(|round| {
            let start = Instant::now();
            file.write_all_at(&[1; 4096], round % 256 * 4096).unwrap();
            file.sync_data().unwrap();
            start.elapsed()
        })
        .collect()
}

#[tokio::main]
async fn main() {
    let directory = tempfile::tempdir().unwrap();
    let config = SnapshotterConfig {
        root: directory.path().join("snapshotter"),
        require_all_mounts: true,
        restore_patience: Duration::ZERO,
        userxattr: false,
    };
    let opened = Snapshotter::open(config.clone(), Arc::new(Nothing)).await;
    let snapshotter = Arc::new(opened.unwrap());
    let socket = directory.path().join("socket");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let router = Server::builder().add_service(service(Arc::clone(&snapshotter)));
    let server = tokio::spawn(router.serve_with_incoming(incoming));
    let channel = Endpoint::from_static("http://socket")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    let mut client = SnapshotsClient::new(channel);

    let start = Instant::now();
    fill(&client).await;
    println!(
        "{} snapshots made in {:.1?}",
        IMAGES * LAYERS + CONTAINERS,
        start.elapsed()
    );
    report(
        "4 KiB write + fdatasync on this disk",
        "-",
        time_fsync(directory.path()),
    );

    let mut times = Vec::new();
    let mut removals = Vec::new();
    for round in 0..ROUNDS {
        let key = format!("bench-{round}");
        let parent = chain_id(round % IMAGES, LAYERS - 1);
        let start = Instant::now();
        assert_eq!(
            prepare(&mut client, key.clone(), parent, BTreeMap::new()).await,
            None
        );
        let snapshotter = "soci".to_owned();
        let request = MountsRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
        };
        client.mounts(request).await.unwrap();
        times.push(start.elapsed());
        let start = Instant::now();
        client
            .remove(RemoveSnapshotRequest { snapshotter, key })
            .await
            .unwrap();
        removals.push(start.elapsed());
    }
    report(
        "Prepare+Mounts of a container, 10 lazy layers",
        "2 ms",
        times,
    );
    report("Remove", "-", removals);

    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(
            list(&mut client, Vec::new()).await,
            IMAGES * LAYERS + CONTAINERS
        );
        times.push(start.elapsed());
    }
    report("List of all", "50 ms", times);

    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let [target, parent] = [5, 4].map(|layer| chain_id(round % IMAGES, layer));
        let filter =
            format!("labels.\"containerd.io/snapshot.ref\"=={target},parent==\"{parent}\"");
        let start = Instant::now();
        assert_eq!(list(&mut client, vec![filter]).await, 1);
        times.push(start.elapsed());
    }
    report("List by target and parent", "-", times);

    // The database after a crash: as it is on disk while it is open.
    let crashed = directory.path().join("crashed");
    std::fs::create_dir_all(&crashed).unwrap();
    let database = "metadata.redb";
    let size = std::fs::copy(config.root.join(database), crashed.join(database)).unwrap();
    let start = Instant::now();
    let after_crash = SnapshotterConfig {
        root: crashed,
        ..config.clone()
    };
    let reopened = Snapshotter::open(after_crash, Arc::new(Nothing)).await;
    let took = start.elapsed();
    drop(reopened.unwrap());
    println!("opened as after a crash, 9,000 lazy layers restored, in {took:.1?} ({size} bytes)");

    drop(client);
    snapshotter.close(false).await;
    server.abort();
    let _ = server.await;
    drop(snapshotter);
    let start = Instant::now();
    while Snapshotter::open(config.clone(), Arc::new(Nothing))
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!(
        "opened again, 9,000 lazy layers restored, in {:.1?}",
        start.elapsed()
    );
}
