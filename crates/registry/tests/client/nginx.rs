//! Against the real nginx as a mirror: TLS, HTTP/2, and connections that it ends with GOAWAY after a few
//! requests. Needs that program: Debian's package `nginx-light`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use soci_registry::{BlobSource, Client, Deadline, NoCredentials};
use soci_testkit::LocalPort;

use crate::fake::{config, descriptor, noise};

pub(crate) struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it after SIGTERM, not after SIGKILL.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Nginx {
    /// Serves the files below `folder` at a port, with the certificate `tls.crt` there.
    fn start(folder: &Path, port: u16) -> Self {
        let at = folder.display();
        let text = format!(
            "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\nuser root;\n\
             events {{ worker_connections 256; }}\nhttp {{\n access_log {at}/access.log;\n\
             client_body_temp_path {at}/t1;\n proxy_temp_path {at}/t2;\n fastcgi_temp_path {at}/t3;\n\
             uwsgi_temp_path {at}/t4;\n scgi_temp_path {at}/t5;\n default_type application/octet-stream;\n\
             keepalive_requests 3;\n keepalive_time 2s;\n http2_max_concurrent_streams 4;\n\
             server {{\n  listen 127.0.0.1:{port} ssl http2;\n  ssl_certificate {at}/tls.crt;\n\
             ssl_certificate_key {at}/tls.key;\n  root {at}/files;\n }}\n}}\n"
        );
        Self::with(folder, &text)
    }

    /// Runs it with this configuration.
    pub(crate) fn with(folder: &Path, text: &str) -> Self {
        let file = folder.join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let process = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(folder.join("error.log"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx cannot be started; install the package nginx-light");
        Self(process)
    }
}

#[tokio::test]
async fn a_mirror_that_ends_its_connections_after_every_third_request_costs_no_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-days",
            "30",
            "-subj",
            "/CN=mirror",
        ])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            "tls.key",
            "-out",
            "tls.crt",
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success());
    let data: Bytes = noise(400_000);
    let blobs = folder.join("files/v2/a/b/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(descriptor(&data).digest.to_string()), &data).unwrap();
    let own = LocalPort::claim().unwrap();
    let port = own.number();
    let _nginx = Nginx::start(folder, port);
    let deadline = Deadline::after(Duration::from_secs(60));
    while tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .is_err()
    {
        assert!(
            deadline.remaining() > Duration::ZERO,
            "nginx does not listen"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The registry itself cannot be reached.
    let closed = LocalPort::claim().unwrap();
    let registry = closed.address().to_string();
    let hosts = folder.join("certs.d").join(&registry);
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://{registry}\"\n[host.\"https://localhost:{port}\"]\nca = \"{}/tls.crt\"\n",
        folder.display()
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.retries.max_retries = 8;
    config.hosts_dirs = vec![folder.join("certs.d")];
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
    let log = std::fs::read_to_string(folder.join("access.log")).unwrap();
    assert!(
        log.lines()
            .filter(|line| line.contains("HTTP/2.0\" 206"))
            .count()
            >= 400,
        "{log}"
    );
}
