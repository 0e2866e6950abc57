//! Caches that pull through, as mirrors of a registry that is not reached otherwise: the distribution
//! project's registry, and nginx with slices. Need Debian's packages `docker-registry` and `nginx-light`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use soci_oci::{Digest, Reference, media_types};
use soci_registry::{BlobBody, BlobSource as _, Client, Deadline, NoCredentials};
use soci_testkit::{LocalPort, Nginx};

use crate::fake::{client, config, descriptor, noise};

struct Cache(Child);

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn wait_for(port: u16) {
    let deadline = Deadline::after(Duration::from_secs(60));
    let address = ("127.0.0.1", port);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(deadline.remaining() > Duration::ZERO, "nothing listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A registry with a manifest and a blob in the repository `a/b`.
async fn registry(data: &Bytes) -> (soci_testkit::Registry, Bytes) {
    let registry = tokio::task::spawn_blocking(|| soci_testkit::Registry::start().unwrap());
    let registry = registry.await.unwrap();
    let reference: Reference = registry.reference("a/b:t").parse().unwrap();
    let layer = descriptor(data);
    let client = client();
    let empty = Bytes::from_static(b"{}");
    for bytes in [data, &empty] {
        let (blob, body) = (descriptor(bytes), BlobBody::from(bytes.clone()));
        let pushed = client.push_blob(&reference, &blob, body, None, None);
        pushed.await.unwrap();
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_types::OCI_MANIFEST,
        "config": descriptor(&empty),
        "layers": [layer],
    });
    let manifest = Bytes::from(manifest.to_string());
    let pushed = client.push_manifest(&reference, media_types::OCI_MANIFEST, manifest.clone());
    pushed.await.unwrap();
    (registry, manifest)
}

/// Reads everything by a mirror at a port; the registry itself does not exist.
async fn read_through(folder: &Path, port: u16, data: &Bytes, manifest: &Bytes) {
    let hosts = folder.join("certs.d/registry.invalid");
    std::fs::create_dir_all(&hosts).unwrap();
    let text =
        format!("server = \"https://registry.invalid\"\n[host.\"http://127.0.0.1:{port}\"]\n");
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.hosts_dirs = vec![folder.join("certs.d")];
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = "registry.invalid/a/b:t".parse().unwrap();
    let (found, bytes) = client
        .manifest(&reference, Digest::of(manifest))
        .await
        .unwrap();
    assert_eq!((found.digest, &bytes), (Digest::of(manifest), manifest));
    let blob = client.blob(&reference, &descriptor(data));
    // Before the cache has it, while it may fetch it, and after.
    for round in 0..3_usize {
        for from in [0_usize, 123_456, 290_000] {
            let from = from + round * 1_000;
            let range = from as u64..from as u64 + 5_000;
            let got = blob.read_range(range, Deadline::far()).await.unwrap();
            assert!(got == data.slice(from..from + 5_000), "{from}");
        }
    }
    let whole = client.blob_bytes(&reference, &descriptor(data)).await;
    assert!(whole.unwrap() == *data);
}

#[tokio::test]
async fn a_distribution_registry_serves_ranges_as_a_pull_through_cache() {
    let data = noise(300_000);
    let (registry, manifest) = registry(&data).await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let own = LocalPort::claim().unwrap();
    let port = own.number();
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\nhttp:\n  addr: 127.0.0.1:{port}\n\
         proxy:\n  remoteurl: http://{}\n",
        registry.address()
    );
    let file = folder.path().join("cache.yml");
    std::fs::write(&file, text).unwrap();
    let started = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _cache = Cache(started.expect("docker-registry cannot be started"));
    wait_for(port).await;
    read_through(folder.path(), port, &data, &manifest).await;
}

#[tokio::test]
async fn nginx_serves_ranges_from_its_slices() {
    let data = noise(300_000);
    let (registry, manifest) = registry(&data).await;
    let upstream = registry.address();
    let start = move || {
        Nginx::start(|address, root| {
            Ok(format!(
                "proxy_cache_path {}/cache keys_zone=parts:1m;\n\
                 server {{\n  listen {address};\n  location / {{\n   proxy_pass http://{upstream};\n\
                 proxy_cache parts;\n   slice 64k;\n   proxy_cache_key $uri$slice_range;\n\
                 proxy_set_header Range $slice_range;\n   proxy_http_version 1.1;\n\
                 proxy_cache_valid 200 206 1h;\n  }}\n }}",
                root.path().display()
            ))
        })
    };
    let nginx = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let port = nginx.address().port();
    let folder = tempfile::tempdir().unwrap();
    read_through(folder.path(), port, &data, &manifest).await;
    // Read again from the cache alone.
    let other = tempfile::tempdir().unwrap();
    drop(registry);
    let folder = other.path();
    let hosts = folder.join("certs.d/registry.invalid");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = \"http://127.0.0.1:{port}\"\n");
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.hosts_dirs = vec![folder.join("certs.d")];
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = "registry.invalid/a/b:t".parse().unwrap();
    let blob = client.blob(&reference, &descriptor(&data));
    let got = blob
        .read_range(131_072..131_082, Deadline::far())
        .await
        .unwrap();
    assert_eq!(got, data.slice(131_072..131_082));
}
