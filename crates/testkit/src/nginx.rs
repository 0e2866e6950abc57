//! A private nginx: Debian's package `nginx-light`.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::output_of;
use crate::local_port::LocalPort;
use crate::process::{Daemon, TestRoot};

/// An nginx on a port of its own; it ends with its workers when this is dropped.
#[derive(Debug)]
pub struct Nginx {
    _daemon: Daemon,
    address: SocketAddr,
    root: TestRoot,
    _port: LocalPort,
}

impl Nginx {
    /// Starts an nginx and waits until it listens. `http` returns the directives of its block `http`, with a server
    /// that listens at the address that it is given.
    ///
    /// # Errors
    /// When nginx is not installed or does not start.
    pub fn start(http: impl FnOnce(SocketAddr, &TestRoot) -> Result<String>) -> Result<Self> {
        let root = TestRoot::new()?;
        let port = LocalPort::claim()?;
        let address = port.address();
        let http = http(address, &root)?;
        let at = root.path().display();
        let text = format!(
            "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\nuser root;\n\
             events {{ worker_connections 256; }}\nhttp {{\n access_log {at}/access.log;\n\
             client_body_temp_path {at}/t1;\n proxy_temp_path {at}/t2;\n fastcgi_temp_path {at}/t3;\n\
             uwsgi_temp_path {at}/t4;\n scgi_temp_path {at}/t5;\n default_type application/octet-stream;\n\
             {http}\n}}\n"
        );
        let config = root.path().join("nginx.conf");
        std::fs::write(&config, text).context("write nginx's configuration")?;
        let mut daemon = Daemon::spawn("nginx", &root, "nginx", |command| {
            command
                .arg("-c")
                .arg(&config)
                .arg("-e")
                .arg(root.path().join("error.log"));
        })?;
        daemon.wait_ready(Duration::from_secs(60), |_| {
            TcpStream::connect(address).is_ok()
        })?;
        Ok(Self {
            _daemon: daemon,
            address,
            root,
            _port: port,
        })
    }

    /// Starts an nginx that serves an upstream server by TLS and HTTP/2, with a certificate for `localhost` and
    /// 127.0.0.1, which is its own authority.
    ///
    /// # Errors
    /// As for [`Nginx::start`].
    pub fn in_front_of(upstream: SocketAddr, settings: &str) -> Result<Self> {
        Self::start(|address, root| {
            let tls = Self::tls(address, root)?;
            Ok(format!(
                "{settings}\n server {{\n{tls}  location / {{ proxy_pass http://{upstream}; }}\n }}"
            ))
        })
    }

    /// Returns the directives of a server with TLS and HTTP/2 at an address, and makes its certificate.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn tls(address: SocketAddr, root: &TestRoot) -> Result<String> {
        let at = root.path();
        let (key, certificate) = (at.join("tls.key"), at.join("tls.crt"));
        let mut openssl = std::process::Command::new("openssl");
        openssl
            .args([
                "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "30",
            ])
            .args([
                "-subj",
                "/CN=mirror",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout",
            ])
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        output_of(openssl).context("make a certificate")?;
        Ok(format!(
            "  listen {address} ssl http2;\n  ssl_certificate {};\n  ssl_certificate_key {};\n",
            certificate.display(),
            key.display()
        ))
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder of its files.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The table of a `hosts.toml` that names a server with TLS.
    #[must_use]
    pub fn tls_host(&self) -> String {
        let at = self.root.path().display();
        format!(
            "[host.\"https://localhost:{}\"]\nca = \"{at}/tls.crt\"\n",
            self.address.port()
        )
    }

    /// The lines of its access log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn requests(&self) -> Result<Vec<String>> {
        let log = self.root.path().join("access.log");
        let log = std::fs::read_to_string(log).context("read nginx's access log")?;
        Ok(log.lines().map(str::to_owned).collect())
    }
}
