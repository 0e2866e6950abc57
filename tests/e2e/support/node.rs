//! The daemon with a registry, called as containerd would: without containerd, a test decides which calls
//! are made when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use soci_containerd::labels;
use soci_oci::{Descriptor, Digest, Index, Manifest};
use soci_snapshotter::api::types::Mount;
use soci_snapshotter::api::v1::snapshots_client::SnapshotsClient;
use soci_snapshotter::api::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use soci_testkit::image::small_image;
use soci_testkit::{
    Proxy, Registry, SociCli, SociDaemon, SociDaemonOptions, TestRoot, http_request,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// A daemon and its registry.
pub(crate) struct Node {
    pub(crate) daemon: SociDaemon,
    pub(crate) proxy: Proxy,
    pub(crate) registry: Registry,
}

/// An image in the registry, and the names that its layers get as snapshots.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) reference: String,
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Descriptor>,
    name: String,
}

impl Node {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(SociDaemonOptions::with_config(config))
    }

    pub(crate) fn start_with(options: SociDaemonOptions) -> Self {
        let registry = Registry::start().unwrap();
        // The proxy starts threads of its own, which an asynchronous test must be left for.
        let proxy = tokio::task::block_in_place(|| Proxy::start(registry.address())).unwrap();
        let daemon = SociDaemon::start(options).unwrap();
        Self {
            daemon,
            proxy,
            registry,
        }
    }

    /// Puts the small image into the registry, with an index or without, under a name of its own.
    pub(crate) fn small(&self, name: &str, indexed: bool) -> Image {
        let layout = TestRoot::new().unwrap();
        small_image(layout.path(), "small").unwrap();
        self.publish(layout.path(), name, indexed)
    }

    /// The same with an index whose topmost layer has no zTOC: we unpack it.
    pub(crate) fn small_partly(&self, name: &str) -> Image {
        let layout = TestRoot::new().unwrap();
        small_image(layout.path(), "small").unwrap();
        Image::publish_with(
            &self.registry,
            &self.proxy,
            layout.path(),
            name,
            Some("10000"),
        )
    }

    /// Puts the image `small` of a layout into the registry.
    pub(crate) fn publish(&self, layout: &Path, name: &str, indexed: bool) -> Image {
        Image::publish(&self.registry, &self.proxy, layout, name, indexed)
    }

    /// Pulls the small image lazily and prepares a container's snapshot; the roots of its layers, topmost
    /// first.
    pub(crate) async fn mounted(&self) -> (Client, Image, Vec<PathBuf>) {
        let image = self.small("small", true);
        let client = self.client().await;
        for layer in 0..image.layers.len() {
            let answer = client.pull_layer(&image, layer).await;
            assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
        }
        let mounts = client.prepare("box", &image.top()).await.unwrap();
        let roots = lower_directories(&mounts);
        assert_eq!(roots.len(), image.layers.len());
        (client, image, roots)
    }

    pub(crate) async fn client(&self) -> Client {
        Client::at(self.daemon.socket()).await
    }
}

impl Image {
    /// Puts the image `small` of a layout into a registry; `proxy` is in front of it.
    pub(crate) fn publish(
        registry: &Registry,
        proxy: &Proxy,
        layout: &Path,
        name: &str,
        indexed: bool,
    ) -> Self {
        Self::publish_with(registry, proxy, layout, name, indexed.then_some("0"))
    }

    fn publish_with(
        registry: &Registry,
        proxy: &Proxy,
        layout: &Path,
        name: &str,
        min_layer_size: Option<&str>,
    ) -> Self {
        let indexed = min_layer_size.is_some();
        if let Some(min_layer_size) = min_layer_size {
            let source = layout.display().to_string();
            let target = registry.docker_reference(&format!("{name}:soci"));
            let soci = SociCli::standalone().unwrap();
            soci.convert(&["--min-layer-size", min_layer_size], &source, &target)
                .unwrap();
        } else {
            registry.push_layout(layout, "small", name).unwrap();
        }
        let tag = if indexed { "soci" } else { "small" };
        let bytes = fetch_manifest(registry, name, tag);
        let manifest = match serde_json::from_slice::<Index>(&bytes) {
            Ok(index) if !index.manifests.is_empty() => {
                let image = index.manifests.iter().find(|m| m.artifact_type.is_none());
                image.unwrap().digest
            }
            _ => Digest::of(&bytes),
        };
        let parsed = fetch_manifest(registry, name, &manifest.to_string());
        let parsed: Manifest = serde_json::from_slice(&parsed).unwrap();
        Self {
            reference: proxy.reference(&format!("{name}:{tag}")),
            manifest,
            layers: parsed.layers,
            name: name.to_owned(),
        }
    }

    /// The snapshot name of a layer: a stand-in for its chain id.
    pub(crate) fn target(&self, layer: usize) -> String {
        format!("{}-chain-{layer}", self.name)
    }

    /// The name of the topmost layer.
    pub(crate) fn top(&self) -> String {
        self.target(self.layers.len() - 1)
    }

    pub(crate) fn parent(&self, layer: usize) -> String {
        layer
            .checked_sub(1)
            .map_or(String::new(), |below| self.target(below))
    }

    /// The labels of a pull, as CRI sends them.
    pub(crate) fn labels(&self, layer: usize) -> BTreeMap<String, String> {
        let above: Vec<_> = self.layers[layer..]
            .iter()
            .map(|layer| layer.digest.to_string())
            .collect();
        let mut all = super::cri_labels(
            &self.target(layer),
            &self.reference,
            &self.manifest.to_string(),
            &self.layers[layer].digest.to_string(),
        );
        all.insert(labels::IMAGE_LAYERS.to_owned(), above.join(","));
        all
    }
}

pub(crate) fn fetch_manifest(registry: &Registry, name: &str, tag: &str) -> Vec<u8> {
    let target = format!("/v2/{name}/manifests/{tag}");
    let accept = "application/vnd.oci.image.index.v1+json, \
                      application/vnd.oci.image.manifest.v1+json";
    let fields = [("Accept", accept)];
    let answer = http_request(registry.address(), "GET", &target, &fields, b"").unwrap();
    assert_eq!(answer.status, 200, "{target}");
    answer.body
}

/// The calls that containerd makes.
#[derive(Clone)]
pub(crate) struct Client(SnapshotsClient<Channel>);

impl Client {
    /// Connects to the daemon that listens on a socket.
    pub(crate) async fn at(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://socket");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self(SnapshotsClient::new(channel))
    }

    /// Prepares a layer with the labels of a pull.
    pub(crate) async fn pull_layer(
        &self,
        image: &Image,
        layer: usize,
    ) -> Result<Vec<Mount>, Status> {
        let key = format!("extract {}", image.target(layer));
        self.prepare_with(&key, &image.parent(layer), image.labels(layer))
            .await
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, BTreeMap::new()).await
    }

    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        self.prepare_in("e2e", key, parent, labels).await
    }

    /// Prepares a snapshot in a namespace of containerd.
    pub(crate) async fn prepare_in(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let mut request = Request::new(PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
            ..Default::default()
        });
        let namespace = namespace.parse().unwrap();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        Ok(self.0.clone().prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        Ok(self.0.clone().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self.0.clone().mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        };
        self.0.clone().commit(request).await.map(drop)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        self.0.clone().remove(request).await.map(drop)
    }

    pub(crate) async fn cleanup(&self) -> Result<(), Status> {
        let request = CleanupRequest::default();
        self.0.clone().cleanup(request).await.map(drop)
    }

    pub(crate) async fn list(&self) -> Result<Vec<Info>, Status> {
        let request = ListSnapshotsRequest::default();
        let mut stream = self.0.clone().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(batch) = stream.message().await? {
            infos.extend(batch.decode().unwrap());
        }
        Ok(infos)
    }
}

/// The lower directories of an overlay mount, topmost first.
pub(crate) fn lower_directories(mounts: &[Mount]) -> Vec<PathBuf> {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    let lower = options.filter_map(|option| option.strip_prefix("lowerdir="));
    lower
        .flat_map(|list| list.split(':'))
        .map(PathBuf::from)
        .collect()
}
