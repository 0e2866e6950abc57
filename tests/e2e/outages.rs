//! Images that containerd has while their registry cannot be reached. Needs root, FUSE, containerd,
//! docker-registry and the two programs.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

use crate::support::node::Client;
use crate::support::{self, NAMESPACE, NO_BACKGROUND, lazy_mounts, stack};
use serde_json::Value;
use soci_testkit::image::{ImageBuilder, Layer};
use soci_testkit::{LocalPort, SociCli, Stack, TestRoot};

/// A port whose SYNs are dropped, as long as what is returned with it is kept.
fn black_hole() -> (std::net::TcpListener, Vec<std::net::TcpStream>) {
    crate::poisoning::black_hole()
}

/// A registry that answers every request with a status and requests a wait of two minutes.
fn refusing(status: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let answer = format!(
                "HTTP/1.1 {status}\r\nRetry-After: 120\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
            // The head of the request, or a part of it.
            let _ = connection.read(&mut [0; 4096]);
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    address
}

/// An image of six layers, indexed, in a layout.
pub(crate) fn image(layout: &Path) {
    let source = TestRoot::new().unwrap();
    let mut image = ImageBuilder::new();
    for number in 0..6 {
        let name = format!("f{number}");
        image = image.layer(Layer::new().text(&name, &name.repeat(1000)));
    }
    image.write(source.path(), "image").unwrap();
    let (from, to) = (
        source.path().display().to_string(),
        layout.display().to_string(),
    );
    let options = ["--format", "oci-dir", "--min-layer-size", "0"];
    let soci = SociCli::standalone().unwrap();
    soci.convert(&options, &from, &to).unwrap();
}

/// Imports all of a layout into containerd under a name.
pub(crate) fn import(stack: &Stack, layout: &Path, reference: &str) {
    let archive = layout.with_extension("tar");
    let tar = std::process::Command::new("tar")
        .args(["--create", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(layout)
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    let file = archive.display().to_string();
    let import = [
        "images",
        "import",
        "--no-unpack",
        "--all-platforms",
        "--index-name",
        reference,
        &file,
    ];
    stack.containerd.ctr(NAMESPACE).output(import).unwrap();
    std::fs::remove_file(&archive).unwrap();
}

fn blob(layout: &Path, digest: &str) -> Value {
    let name = digest.trim_start_matches("sha256:");
    let bytes = std::fs::read(layout.join("blobs/sha256").join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The image manifest and the SOCI index of a layout, which lists the image's own index.
pub(crate) fn manifests(layout: &Path) -> (String, String) {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let listed = blob(layout, index["manifests"][0]["digest"].as_str().unwrap());
    let of = |is_index: bool| {
        let mut all = listed["manifests"].as_array().unwrap().iter();
        let found = all
            .find(|one| one.get("artifactType").is_some() == is_index)
            .unwrap();
        found["digest"].as_str().unwrap().to_owned()
    };
    (of(false), of(true))
}

/// The image of a layout, as its manifest and configuration list it.
struct ListedImage {
    manifest: String,
    /// Digest and chain ID of each layer, the lowest first.
    layers: Vec<(String, String)>,
}

impl ListedImage {
    fn of(layout: &Path) -> Self {
        let (manifest, _) = manifests(layout);
        let listed = blob(layout, &manifest);
        let config = blob(layout, listed["config"]["digest"].as_str().unwrap());
        let config: soci_oci::ImageConfig = serde_json::from_value(config).unwrap();
        let layers = listed["layers"].as_array().unwrap().iter();
        let digests = layers.map(|layer| layer["digest"].as_str().unwrap().to_owned());
        let chains = config.rootfs.chain_ids().into_iter();
        let layers = digests.zip(chains.map(|chain| chain.to_string()));
        Self {
            manifest,
            layers: layers.collect(),
        }
    }
}

/// Prepares all layers as containerd's client does; returns how many are lazy, and the names of all,
/// the lowest first.
pub(crate) async fn prepare_all(
    stack: &Stack,
    layout: &Path,
    reference: &str,
) -> (usize, Vec<String>) {
    let image = ListedImage::of(layout);
    let client = Client::at(stack.daemon.socket()).await;
    let (mut parent, mut lazy, mut chains) = (String::new(), 0, Vec::new());
    // What it takes is printed, for docs/benchmarks.md.
    let start = Instant::now();
    for (number, (layer, chain)) in image.layers.into_iter().enumerate() {
        let labels = support::cri_labels(&chain, reference, &image.manifest, &layer);
        let key = format!("extract {reference} {number}");
        let began = Instant::now();
        match client.prepare_with(&key, &parent, labels).await {
            Ok(_) => client.commit(&chain, &key).await.unwrap(),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
                lazy += 1;
            }
        }
        println!("{reference}: layer {number}: {:?}", began.elapsed());
        chains.push(chain.clone());
        parent = chain;
    }
    println!("{reference}: all: {:?}", start.elapsed());
    (lazy, chains)
}

/// Prepares an upper layer without those below it, as containerd 2.2 and later do for a snapshotter
/// that lists `rebase`: it must be the client's.
async fn leaves_a_layer_without_its_parent(stack: &Stack, layout: &Path, reference: &str) {
    let image = ListedImage::of(layout);
    let (layer, chain) = image.layers[1].clone();
    let labels = support::cri_labels(&chain, reference, &image.manifest, &layer);
    let client = Client::at(stack.daemon.socket()).await;
    let mark = stack.daemon.log().mark();
    client.prepare_with("alone", "", labels).await.unwrap();
    tokio::task::block_in_place(|| {
        let log = stack.daemon.log();
        let said = |line: &str| line.contains("without-parent") && line.contains("rebase");
        let logged = log.wait_for(mark, support::PATIENCE, said);
        assert!(logged.is_some(), "{}", log.tail(5));
    });
    client.remove("alone").await.unwrap();
}

/// Removes a blob from containerd.
pub(crate) fn forget(stack: &Stack, digest: &str) {
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["content", "rm", digest]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_indexed_image_waits_once_for_a_registry_that_is_a_black_hole() {
    // Retries would continue for minutes.
    let config = format!("mount_timeout_sec = 600\n{NO_BACKGROUND}[http]\nMaxRetries = 100\n");
    let (stack, root, _held, hosts) = tokio::task::block_in_place(|| {
        let root = TestRoot::new().unwrap();
        let layout = root.dir("layout").unwrap();
        image(&layout);
        let stack = stack(&config);
        let (hole, held) = black_hole();
        let closed = LocalPort::claim().unwrap();
        let hole_again = hole.local_addr().unwrap().to_string();
        let hosts = [
            hole_again.clone(),
            closed.address().to_string(),
            "registry.invalid".to_owned(),
            refusing("503 Service Unavailable"),
            refusing("429 Too Many Requests"),
            hole_again,
        ];
        (stack, root, (hole, held, closed), hosts)
    });
    let layout = root.path().join("layout");
    let (_, index) = manifests(&layout);
    let ztocs: Vec<String> = blob(&layout, &index)["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ztoc| ztoc["digest"].as_str().unwrap().to_owned())
        .collect();
    // Without the index at each registry; then, at the first, without the zTOCs.
    for (round, host) in hosts.iter().enumerate() {
        let name = format!("{host}/app{round}:1");
        tokio::task::block_in_place(|| {
            import(&stack, &layout, &name);
            match round {
                0..5 => forget(&stack, &index),
                _ => ztocs.iter().for_each(|ztoc| forget(&stack, ztoc)),
            }
        });
        // A wait of half a minute for each of the six layers, which once was, does not end in time.
        let prepared = prepare_all(&stack, &layout, &name);
        let prepared = tokio::time::timeout(support::PATIENCE, prepared).await;
        let (lazy, chains) = prepared.unwrap_or_else(|_| panic!("{}", stack.log_tails()));
        assert_eq!(lazy, 0, "{}", stack.log_tails());
        let client = Client::at(stack.daemon.socket()).await;
        for chain in chains.iter().rev() {
            client.remove(chain).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_imported_with_its_index_is_lazy_without_a_registry() {
    let (stack, root, _held, name) = tokio::task::block_in_place(|| {
        let root = TestRoot::new().unwrap();
        let layout = root.dir("layout").unwrap();
        image(&layout);
        let stack = stack(NO_BACKGROUND);
        let (hole, held) = black_hole();
        let name = format!("{}/app:1", hole.local_addr().unwrap());
        import(&stack, &layout, &name);
        (stack, root, (hole, held), name)
    });
    let layout = root.path().join("layout");
    leaves_a_layer_without_its_parent(&stack, &layout, &name).await;
    let (lazy, _) = prepare_all(&stack, &layout, &name).await;
    assert_eq!(lazy, 6, "{}", stack.log_tails());
    tokio::task::block_in_place(|| {
        assert_eq!(lazy_mounts(&stack), 6);
        let mounts = soci_testkit::process::mounts_below(&stack.daemon.root()).unwrap();
        for number in 0..6 {
            let name = format!("f{number}");
            let mut mounts = mounts.iter().map(|mount| mount.join(&name));
            let file = mounts.find(|file| file.exists()).unwrap();
            assert_eq!(std::fs::read_to_string(file).unwrap(), name.repeat(1000));
        }
    });
}
