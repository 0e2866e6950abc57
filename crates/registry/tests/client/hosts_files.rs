//! containerd's `hosts.toml`: which servers get which requests, and what happens when a file changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use bytes::Bytes;
use soci_oci::Digest;
use soci_registry::{BlobSource, Client, Deadline, ErrorKind, NoCredentials, StaticCredentials};
use soci_testkit::Https;

use crate::fake::{Fake, With, basic, config, descriptor, noise, serve, status};

fn client(folder: &Path) -> Client {
    let mut config = config();
    config.hosts_dirs = vec![folder.to_owned()];
    Client::new(config, Arc::new(NoCredentials)).unwrap()
}

fn hosts(folder: &Path, registry: &str, text: &str) {
    let folder = folder.join(registry);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
}

async fn server(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |_, request| Some(serve(request, &data))).await
}

#[tokio::test]
async fn hosts_are_tried_in_order_for_their_capabilities() {
    let data = noise(1000);
    let (pulls, resolves, own) = (
        server(&data).await,
        server(&data).await,
        server(&data).await,
    );
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"{}/base\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        own.url(""),
        pulls.url(""),
        resolves.url("")
    );
    hosts(folder.path(), "registry.invalid", &text);
    let client = client(folder.path());
    let reference = "registry.invalid/a/b:t".parse().unwrap();
    client.manifest(&reference, "t").await.unwrap();
    let digest = Digest::of(&data);
    client.manifest(&reference, digest).await.unwrap();
    let blob = client.blob(&reference, &descriptor(&data));
    blob.read_range(1..9, Deadline::far()).await.unwrap();
    let seen = |fake: &Fake| -> Vec<String> {
        let requests = fake.requests().into_iter();
        requests
            .map(|request| format!("{}?{}", request.path, request.query))
            .collect()
    };
    assert_eq!(
        seen(&pulls),
        [
            format!("/v2/a/b/manifests/{digest}?ns=registry.invalid"),
            format!("/v2/a/b/blobs/{digest}?ns=registry.invalid")
        ]
    );
    assert_eq!(
        seen(&resolves),
        ["/base/v2/a/b/manifests/t?ns=registry.invalid"]
    );
    // Uploads go to the first host that takes them.
    client.manifest_exists(&reference).await.unwrap();
    assert_eq!(seen(&own), ["/v2/a/b/manifests/t?ns=registry.invalid"]);
}

/// A server that wants credentials.
async fn closed(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |_, request| {
        Some(if request.headers.contains_key("authorization") {
            serve(request, &data)
        } else {
            status(401).with("www-authenticate", "Basic realm=x")
        })
    })
    .await
}

#[tokio::test]
async fn credentials_go_to_the_registry_or_mirror_that_they_are_for() {
    let data = noise(10);
    for for_mirror in [false, true] {
        let (mirror, own) = (closed(&data).await, closed(&data).await);
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n",
            own.url(""),
            mirror.url("")
        );
        hosts(folder.path(), "registry.invalid", &text);
        let host = match for_mirror {
            true => mirror.host(),
            false => "registry.invalid".to_owned(),
        };
        let mut config = config();
        config.hosts_dirs = vec![folder.path().to_owned()];
        let credentials = StaticCredentials::new(host, basic("me", "secret"));
        let client = Client::new(config, Arc::new(credentials)).unwrap();
        let reference = "registry.invalid/a/b:t".parse().unwrap();
        let blob = client.blob(&reference, &descriptor(&data));
        blob.read_range(1..9, Deadline::far()).await.unwrap();
        let got = |fake: &Fake| {
            let requests = fake.requests().into_iter();
            let mut requests = requests.map(|one| one.headers.contains_key("authorization"));
            requests.any(|has| has)
        };
        assert!(!mirror.requests().is_empty());
        assert_eq!((got(&mirror), got(&own)), (for_mirror, !for_mirror));
    }
}

#[tokio::test]
async fn a_file_that_changes_counts_soon_and_one_that_breaks_leaves_the_others_and_itself_in_force()
{
    let data = noise(1000);
    let (first, second) = (server(&data).await, server(&data).await);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = |fake: &Fake| format!("server = \"{}\"\n", fake.url(""));
    hosts(folder, "changing.invalid", &at(&first));
    hosts(folder, "other.invalid", &at(&first));
    hosts(
        folder,
        "broken.invalid",
        "server = \"https://x\"\n\n[host.x]\nca = {}\n",
    );
    let client = client(folder);
    let read = async |name: &str| {
        let reference = format!("{name}/a/b:t").parse().unwrap();
        let blob = client.blob(&reference, &descriptor(&data));
        blob.read_range(1..9, Deadline::far()).await
    };
    for name in ["changing.invalid", "other.invalid"] {
        assert_eq!(read(name).await.unwrap(), data.slice(1..9));
    }
    let error = read("broken.invalid").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.contains("broken.invalid/hosts.toml") && text.contains("line 4"),
        "{text}"
    );
    hosts(
        folder,
        "changing.invalid",
        &format!("# moved\n{}", at(&second)),
    );
    hosts(folder, "other.invalid", "server = \n");
    let deadline = Deadline::after(Duration::from_secs(60));
    while second.requests().is_empty() {
        assert!(deadline.remaining() > Duration::ZERO);
        for name in ["changing.invalid", "other.invalid"] {
            assert_eq!(read(name).await.unwrap(), data.slice(1..9));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read("other.invalid").await.unwrap(), data.slice(1..9));
    // What `soci status` shows.
    let shown = client.registries();
    let of = |name: &str| {
        shown
            .iter()
            .find(|one| one.registry == name)
            .unwrap()
            .clone()
    };
    let (changed, other, broken) = (
        of("changing.invalid"),
        of("other.invalid"),
        of("broken.invalid"),
    );
    assert_eq!(changed.hosts[0].url, second.url("/v2"));
    assert_eq!(changed.error, None);
    assert_eq!(other.hosts[0].url, first.url("/v2"));
    assert!(other.error.unwrap().contains("line 1"));
    assert!(broken.hosts.is_empty() && broken.error.unwrap().contains("line 4"));
}

#[tokio::test]
async fn each_host_has_tls_settings_of_its_own() {
    let data = noise(1000);
    let start = async || {
        let served = data.clone();
        let app = Router::new().fallback(move |_: Request| {
            let served = served.clone();
            async move { status(200).body(served) }
        });
        Https::start(&["h2"], app).await.unwrap()
    };
    use crate::fake::With as _;
    let (mirror, own) = (start().await, start().await);
    let folder = tempfile::tempdir().unwrap();
    let write = |mirror_ca: &Https, own_tls: &str| {
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, mirror_ca.certificate()).unwrap();
        let text = format!(
            "server = \"https://localhost:{}\"\n{own_tls}[host.\"https://localhost:{}\"]\nca = \"{}\"\n",
            own.port(),
            mirror.port(),
            ca.display()
        );
        hosts(folder.path(), "registry.invalid", &text);
    };
    let reference = "registry.invalid/a/b:t".parse().unwrap();
    let read = async || {
        let client = client(folder.path());
        client.blob_bytes(&reference, &descriptor(&data)).await
    };
    write(&mirror, "");
    assert_eq!(read().await.unwrap(), data);
    // The mirror is not trusted, the server without verification.
    write(&own, "skip_verify = true\n");
    assert_eq!(read().await.unwrap(), data);
    write(&own, "");
    let error = read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    std::fs::write(folder.path().join("ca.pem"), "root:x:0:0\n").unwrap();
    let error = read().await.unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
}
