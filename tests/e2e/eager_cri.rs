//! The configurations with which EKS AMIs and Bottlerocket pull eagerly, through containerd's CRI plugin
//! and the daemon's image service in front of it. Needs root, containerd with CRI and docker-registry.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::node::Client;
use crate::support::{cri_labels, lazy_mounts_below, left_below, wait_for_lines, wait_until};
use soci_containerd::labels;
use soci_oci::{Digest, Manifest};
use soci_testkit::image::{busybox_layer, pause_image};
use soci_testkit::{
    Auth, Containerd, ContainerdOptions, Content, Cri, CriOptions, ImageBuilder, Layer, OciImage,
    Proxy, Registry, SociDaemon, SociDaemonOptions, TestRoot,
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(120);
const USER: &str = "node";
const PASSWORD: &str = "correct-horse-battery";

/// The file of EKS AMIs, with this machine's containerd.
const EKS: &str = r#"[content_store]
  type = "containerd"
  namespace = "k8s.io"
  containerd_address = "CONTAINERD"

[pull_modes]
  [pull_modes.soci_v1]
    enable = false
  [pull_modes.soci_v2]
    enable = false
  [pull_modes.parallel_pull_unpack]
    enable = true
    max_concurrent_downloads_per_image = 20
    concurrent_download_chunk_size = "16mb"
    max_concurrent_unpacks_per_image = 12
    discard_unpacked_layers = true

[cri_keychain]
  enable_keychain = true
  image_service_path = "CONTAINERD"
"#;

/// The keys that Bottlerocket's settings are written to, with its defaults.
const BOTTLEROCKET: &str = r#"[cri_keychain]
enable_keychain = true
image_service_path = "CONTAINERD"

[content_store]
type = "containerd"
containerd_address = "CONTAINERD"

[pull_modes.soci_v1]
enable = false

[pull_modes.soci_v2]
enable = false

[pull_modes.parallel_pull_unpack]
enable = true
max_concurrent_downloads = -1
max_concurrent_downloads_per_image = 10
concurrent_download_chunk_size = "8mb"
max_concurrent_unpacks = -1
max_concurrent_unpacks_per_image = 10
discard_unpacked_layers = true
"#;

struct Node {
    containerd: Containerd,
    daemon: SociDaemon,
    proxy: Proxy,
    registry: Registry,
}

impl Node {
    /// A node with this configuration, whose kubelet pulls through the daemon.
    fn start(config: &str) -> Self {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        let pause = TestRoot::new().unwrap();
        pause_image(pause.path(), "pause").unwrap();
        registry
            .push_layout(pause.path(), "pause", "pause")
            .unwrap();
        let folder = TestRoot::new().unwrap();
        let socket = Containerd::address_in(&folder).display().to_string();
        let config = config.replace("CONTAINERD", &socket);
        let daemon = SociDaemon::start(SociDaemonOptions::with_config(&config)).unwrap();
        let sandbox = registry.reference("pause:pause");
        let containerd = ContainerdOptions {
            cri: Some(CriOptions::with_soci(&sandbox)),
            ..ContainerdOptions::with_soci(daemon.socket())
        };
        Self {
            containerd: Containerd::start_in(folder, &containerd).unwrap(),
            daemon,
            proxy,
            registry,
        }
    }

    /// CRI as the kubelet has it: its image service is the daemon's.
    fn cri(&self) -> Cri {
        Cri::connect_apart(self.containerd.address(), self.daemon.socket()).unwrap()
    }

    fn tails(&self) -> String {
        format!(
            "{}\n{}",
            self.daemon.log().tail(60),
            self.containerd.log().tail(20)
        )
    }
}

/// An image of twenty layers.
fn twenty_layers(root: &TestRoot) -> OciImage {
    let mut image = ImageBuilder::new()
        .layer(busybox_layer().unwrap())
        .command(["/bin/sh", "-c", "cat /data/top; exec sleep 100000"]);
    for seed in 1..20 {
        let length = 300_000 * (1 + seed % 3);
        image = image.layer(
            Layer::new()
                .file(&format!("data/{seed}"), Content::Mixed { seed, length })
                .text("data/top", &format!("{seed}\n")),
        );
    }
    image.write(&root.dir("layout").unwrap(), "app").unwrap()
}

/// Pulls twenty layers, runs a pod before and after a restart, and removes everything.
fn serves_a_kubelet(config: &str) {
    let root = TestRoot::new().unwrap();
    let image = twenty_layers(&root);
    let mut node = Node::start(config);
    node.registry.push_layout(&image.dir, "app", "app").unwrap();
    // Only the kubelet has the credentials.
    node.proxy.demand(Auth::Basic {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    });
    let cri = node.cri();
    let auth = soci_testkit::cri::api::AuthConfig {
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
        ..Default::default()
    };
    let reference = node.proxy.reference("app:app");
    let name = cri.pull_with(&reference, Some(auth)).unwrap();
    let message = "preparing snapshot with parallel pull/unpack";
    wait_for_lines(&node.daemon, 20, |line| line["msg"] == message);
    wait_for_lines(&node.daemon, 20, |line| {
        line["local-snapshot-prepared"] == "true"
    });
    let log = node.daemon.json_log();
    assert!(
        log.iter()
            .all(|line| line["defer-snapshot-runtime"] != "true")
    );
    assert_eq!(lazy_mounts_below(&node.daemon.root()), 0);
    let text = node.daemon.log().all().join("\n");
    assert!(!text.contains(PASSWORD), "no secret is logged");
    assert!(
        !log.iter()
            .any(|line| line["level"] == "warning" || line["level"] == "error"),
        "{}",
        node.tails()
    );
    let stats = node.proxy.stats();
    for layer in &image.layers {
        // A request without credentials may come before.
        let bytes = stats.blob(layer.digest).bytes;
        assert!((layer.size..layer.size + 1000).contains(&bytes), "{bytes}");
    }

    let show_top = |node: &Node, cri: &Cri| {
        let pod = cri.run_pod(root.path()).unwrap();
        let script = "cat /data/top; exec sleep 100000";
        let container = cri.start_container(&pod, &name, &["/bin/sh", "-c", script]);
        let container = container.unwrap();
        wait_until("the container has written", PATIENCE, || {
            match container.log().unwrap_or_default() {
                log if log == "19\n" => Ok(()),
                other => Err(format!("{other}\n{}", node.tails())),
            }
        });
        cri.stop_container(&container).unwrap();
        cri.remove_container(&container).unwrap();
        cri.remove_pod(&pod).unwrap();
    };
    show_top(&node, &cri);
    node.daemon.terminate().unwrap();
    node.daemon.start_again().unwrap();
    let cri = node.cri();
    // containerd's client waits before it connects again.
    let ctr = node.containerd.ctr("probe");
    wait_until("the daemon is reached again", PATIENCE, || {
        let probe = ctr.output(["snapshots", "--snapshotter", "soci", "prepare", "probe"]);
        probe.map(drop).map_err(|error| format!("{error:#}"))
    });
    let probe = ["snapshots", "--snapshotter", "soci", "remove", "probe"];
    ctr.output(probe).unwrap();
    show_top(&node, &cri);
    for image in cri.images().unwrap() {
        cri.remove_image(&image.id).unwrap();
    }
    wait_until("nothing is left", PATIENCE, || {
        let mut left = left_below(&node.daemon.root());
        let scratch = std::fs::read_dir(node.daemon.root().join("unpack")).unwrap();
        left.extend(scratch.map(|entry| format!("unpack/{:?}", entry.unwrap().file_name())));
        match left {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
}

#[test]
fn the_configuration_of_eks_amis_pulls_twenty_layers_for_a_kubelet() {
    serves_a_kubelet(EKS);
}

#[test]
fn the_configuration_of_bottlerocket_pulls_twenty_layers_for_a_kubelet() {
    serves_a_kubelet(BOTTLEROCKET);
}

/// containerd 2.2.2 and later unpack an image that was imported through the configured snapshotter, with
/// labels, before there are credentials or a registry.
#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_image_is_unpacked_although_its_registry_cannot_be_reached() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    let image = tokio::task::block_in_place(|| pause_image(&layout, "pause").unwrap());
    let node = tokio::task::block_in_place(|| Node::start(EKS));
    let archive = root.path().join("pause.tar");
    let name = "localhost/kubernetes/pause:latest";
    let packed = std::process::Command::new("tar")
        .args(["-C", &layout.display().to_string(), "-cf"])
        .arg(&archive)
        .arg(".")
        .status()
        .unwrap();
    assert!(packed.success());
    let ctr = node.containerd.ctr("k8s.io");
    let import = [
        "images",
        "import",
        "--no-unpack",
        "--index-name",
        name,
        &archive.display().to_string(),
    ];
    tokio::task::block_in_place(|| ctr.output(import)).unwrap();

    let manifest = std::fs::read(soci_testkit::image::layout::blob_path(
        &layout,
        image.manifest.digest,
    ));
    let manifest: Manifest = serde_json::from_slice(&manifest.unwrap()).unwrap();
    let config = std::fs::read(soci_testkit::image::layout::blob_path(
        &layout,
        manifest.config.digest,
    ));
    let config: soci_oci::ImageConfig = serde_json::from_slice(&config.unwrap()).unwrap();
    let chain: Vec<Digest> = config.rootfs.chain_ids();
    let client = Client::at(node.daemon.socket()).await;
    let mut parent = String::new();
    for (layer, chain) in image.layers.iter().zip(&chain) {
        let (manifest, layer) = (image.manifest.digest.to_string(), layer.digest.to_string());
        let mut labels = cri_labels(&chain.to_string(), name, &manifest, &layer);
        labels.insert(labels::IMAGE_LAYERS.to_owned(), layer);
        let answer = client
            .prepare_in("k8s.io", "extract", &parent, labels)
            .await;
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
        parent = chain.to_string();
    }
    let kinds: BTreeSet<i32> = client
        .list()
        .await
        .unwrap()
        .iter()
        .map(|info| info.kind)
        .collect();
    assert_eq!(kinds.len(), 1, "all are committed");
}
