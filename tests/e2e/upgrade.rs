//! The first start on a root that soci-snapshotter v0.15 left, with a real registry behind it. Needs
//! root, FUSE, docker-registry and the two programs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{NO_BACKGROUND, indexed, lazy_mounts, stack};
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, MountsRequest};
use containerd_client::types::Mount;
use soci_testkit::image::small_image;
use soci_testkit::{Stack, TestRoot, http_request};

const ACTIVE: &str = "default/5/e385a5057c310376055db4461a8aa7c3d3a14238600348e7ff39c8f4d9bf598b";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/v0.15-root")
        .join(name)
}

fn replace(data: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "{from} {to}");
    let mut found = 0;
    for place in 0..data.len() {
        if data[place..].starts_with(from.as_bytes()) {
            data[place..place + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{from} is not in the database");
}

/// v0.15's own database with the names of an image that is in the registry: digests and references
/// are replaced by others of the same length, so that no page changes its layout.
fn database(reference: &str, manifest: &str, layers: &[String]) -> Vec<u8> {
    let mut database = fs::read(golden("metadata.db")).unwrap();
    replace(&mut database, "127.0.0.1:5001/py:soci", reference);
    let image = "sha256:e6f882dc71509954907a5c7c933022d6bb72b5c0b9deba4fddf764d8c8336659";
    replace(&mut database, image, manifest);
    let lazy = [
        "sha256:69460f4b0a8c72d4ce43560b6a36531f02f3ed00d9e28b19d7796c8efb016cda",
        "sha256:766b3c74463a5152704ccd9d7af4544d9380caefbf3d6dc5b1e656669e8ee70a",
    ];
    for (old, new) in lazy.iter().zip(layers) {
        replace(&mut database, old, new);
    }
    database
}

fn manifest(stack: &Stack, name: &str, tag: &str) -> serde_json::Value {
    let path = format!("/v2/{name}/manifests/{tag}");
    let accept = [("Accept", soci_oci::media_types::OCI_INDEX)];
    let answer = http_request(stack.registry.address(), "GET", &path, &accept, b"").unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

async fn client(socket: &Path) -> SnapshotsClient<tonic::transport::Channel> {
    let channel = containerd_client::connect(socket).await.unwrap();
    SnapshotsClient::new(channel).max_decoding_message_size(16 << 20)
}

async fn names_and_mounts(socket: &Path) -> (Vec<String>, Vec<Mount>) {
    let mut client = client(socket).await;
    let mut stream = client
        .list(ListSnapshotsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut names = Vec::new();
    while let Some(batch) = stream.message().await.unwrap() {
        names.extend(batch.info.into_iter().map(|info| info.name));
    }
    let request = MountsRequest {
        snapshotter: "soci".to_owned(),
        key: ACTIVE.to_owned(),
    };
    let mounts = client.mounts(request).await.unwrap().into_inner().mounts;
    (names, mounts)
}

#[test]
fn a_root_of_v0_15_is_taken_over_and_its_lazy_layers_are_read_from_the_registry() {
    let layout = TestRoot::new().unwrap();
    let image_built = small_image(layout.path(), "small").unwrap();
    let mut stack = stack(NO_BACKGROUND);
    let port_digits = stack.proxy.address().port().to_string().len();
    // As long as the reference in v0.15's database.
    let name = &"images"[port_digits..];
    let full = indexed(&stack, layout.path(), name);
    let index = manifest(&stack, name, "soci");
    let image = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let layers: Vec<String> = image_built
        .layers
        .iter()
        .map(|layer| layer.digest.to_string())
        .collect();

    // The daemon ends; its root becomes one of v0.15.
    stack.daemon.interrupt().unwrap();
    let root = stack.daemon.root();
    fs::remove_dir_all(&root).unwrap();
    for line in fs::read_to_string(golden("tree.txt")).unwrap().lines() {
        let path = line.split(' ').nth(3).unwrap();
        if line.starts_with('d') {
            fs::create_dir_all(root.join(path.trim_start_matches("./"))).unwrap();
        }
    }
    let old = root.join("snapshotter/metadata.db");
    let bytes = database(&full, &image, &layers);
    fs::write(&old, &bytes).unwrap();
    fs::write(root.join("metadata.db"), "layer metadata of v0.15").unwrap();

    stack.daemon.start_again().unwrap();
    assert_eq!(lazy_mounts(&stack), 2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (names, mounts) = runtime.block_on(names_and_mounts(stack.daemon.socket()));
    assert_eq!(names.len(), 4);
    assert_eq!(mounts[0].r#type, "overlay");
    // What the container sees through the mounts comes from the registry.
    let lower = root.join("snapshotter/snapshots/1/fs");
    let mut entries = fs::read_dir(&lower).unwrap();
    assert!(entries.next().is_some(), "nothing in {}", lower.display());
    assert_eq!(fs::read(&old).unwrap(), bytes, "the way back");
    assert!(!root.join("metadata.db").exists());

    // The next start is one of ours, and needs no registry.
    stack.daemon.terminate().unwrap();
    stack.registry.kill().unwrap();
    stack.daemon.start_again().unwrap();
    assert_eq!(lazy_mounts(&stack), 2);
    let again = runtime.block_on(names_and_mounts(stack.daemon.socket()));
    assert_eq!(again, (names, mounts));
}

#[test]
fn a_root_of_v0_15_that_cannot_be_read_stops_the_start_and_is_left_as_it_is() {
    let mut stack = stack(NO_BACKGROUND);
    stack.daemon.interrupt().unwrap();
    let root = stack.daemon.root();
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir_all(root.join("snapshotter/snapshots/1/fs")).unwrap();
    let old = root.join("snapshotter/metadata.db");
    fs::write(&old, [0x5a; 8192]).unwrap();
    let error = format!("{:#}", stack.daemon.start_again().unwrap_err());
    assert!(error.contains("metadata.db"), "{error}");
    assert!(error.contains("cannot be taken over"), "{error}");
    assert_eq!(fs::read(&old).unwrap(), [0x5a; 8192]);
    assert!(!root.join("snapshotter/metadata.redb").exists());
}
