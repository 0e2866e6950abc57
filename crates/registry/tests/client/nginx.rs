//! Against the real nginx as a mirror: TLS, HTTP/2, and connections that it ends with GOAWAY after a few
//! requests. Needs that program: Debian's package `nginx-light`.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use soci_registry::{BlobSource, Client, Deadline, NoCredentials};
use soci_testkit::{LocalPort, Nginx};

use crate::fake::{config, descriptor, noise};

#[tokio::test]
async fn a_mirror_that_ends_its_connections_after_every_third_request_costs_no_read() {
    let data: Bytes = noise(400_000);
    let settings = "keepalive_requests 3;\nkeepalive_time 2s;\nhttp2_max_concurrent_streams 4;";
    let files = data.clone();
    let start = move || {
        Nginx::start(|address, root| {
            let blobs = root.dir("files/v2/a/b/blobs")?;
            std::fs::write(blobs.join(descriptor(&files).digest.to_string()), &files)?;
            let tls = Nginx::tls(address, root)?;
            let files = root.path().display();
            Ok(format!(
                "{settings} server {{\n{tls} root {files}/files;\n}}"
            ))
        })
    };
    let nginx = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    // The registry itself cannot be reached.
    let closed = LocalPort::claim().unwrap();
    let registry = closed.address().to_string();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join(&registry);
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = \"http://{registry}\"\n{}", nginx.tls_host());
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.retries.max_retries = 8;
    config.hosts_dirs = vec![folder.path().to_owned()];
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = format!("{registry}/a/b:t").parse().unwrap();
    let blob = client.blob(&reference, &descriptor(&data));
    let readers = (0..16_usize).map(|reader| {
        let (blob, data) = (blob.clone(), data.clone());
        tokio::spawn(async move {
            for round in 0..25 {
                let from = (reader * 25 + round) * 1_000;
                let range = from as u64..from as u64 + 1_000;
                let got = blob.read_range(range, Deadline::far()).await.unwrap();
                assert!(got == data.slice(from..from + 1_000), "{from}");
            }
        })
    });
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    let log = nginx.requests().unwrap();
    let ranges = log.iter().filter(|line| line.contains("HTTP/2.0\" 206"));
    assert!(ranges.count() >= 400, "{log:?}");
}
