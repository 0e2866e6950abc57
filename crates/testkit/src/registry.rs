//! A private image registry: Debian's `docker-registry` on a port of its own, plain HTTP.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use soci_oci::Descriptor;

use crate::image::layout;
use crate::local_port::LocalPort;
use crate::process::{Daemon, TestRoot};

/// A registry with storage of its own; its process ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    root: TestRoot,
    notify: Option<Notify>,
    _port: LocalPort,
}

/// Where a registry sends a notification of each push.
#[derive(Debug, Clone)]
pub struct Notify {
    /// The URL.
    pub url: String,
    /// A header of the requests: name and value.
    pub header: (String, String),
}

impl Registry {
    /// Starts a registry on a port of 127.0.0.1 that stays its own, also while it is stopped.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(None)
    }

    /// As [`Registry::start`]; sends a notification of each push.
    ///
    /// # Errors
    /// As for [`Registry::start`].
    pub fn start_notifying(notify: Notify) -> Result<Self> {
        Self::start_with(Some(notify))
    }

    fn start_with(notify: Option<Notify>) -> Result<Self> {
        let root = TestRoot::new()?;
        let port = LocalPort::claim()?;
        let address = port.address();
        let daemon = Self::serve(&root, address, notify.as_ref())?;
        Ok(Self {
            daemon,
            address,
            root,
            notify,
            _port: port,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A reference to an image in this registry, spoken to directly.
    #[must_use]
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.address)
    }

    /// The same as `soci convert --standalone` takes it: `docker://HOST/NAME:TAG`.
    #[must_use]
    pub fn docker_reference(&self, name_and_tag: &str) -> String {
        format!("docker://{}", self.reference(name_and_tag))
    }

    /// The folder of what it stores.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.root.path().join("storage")
    }

    /// The process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Kills the process; connections to it are refused from then on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill().map(drop)
    }

    /// Starts it again on the same port with the same contents.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon = Self::serve(&self.root, self.address, self.notify.as_ref())?;
        Ok(())
    }

    /// Pushes everything that the OCI layout in `dir` lists under `tag`, blobs first.
    ///
    /// # Errors
    /// When the layout is broken or the registry refuses something.
    pub fn push_layout(&self, dir: &Path, tag: &str, repository: &str) -> Result<Descriptor> {
        layout::push(dir, tag, self.address, repository)
    }

    fn serve(root: &TestRoot, address: SocketAddr, notify: Option<&Notify>) -> Result<Daemon> {
        let storage = root.dir("storage")?;
        let config = root.path().join("registry.yml");
        let mut text = format!(
            "version: 0.1\n\
             log: {{ accesslog: {{ disabled: true }}, level: error }}\n\
             storage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: '{address}', secret: testkit }}\n",
            storage.display()
        );
        if let Some(Notify {
            url,
            header: (name, value),
        }) = notify
        {
            text.push_str(&format!(
                "notifications:\n  endpoints:\n    - name: testkit\n      url: {url}\n      \
                 headers: {{ {name}: ['{value}'] }}\n      timeout: 5s\n      threshold: 3\n      backoff: 200ms\n"
            ));
        }
        std::fs::write(&config, text).context("write the registry's configuration")?;
        let mut daemon = Daemon::spawn("docker-registry", root, "docker-registry", |command| {
            command.arg("serve").arg(&config);
        })?;
        daemon.wait_ready(Duration::from_secs(120), |_| {
            TcpStream::connect(address).is_ok()
        })?;
        // Had another process taken the port, it would have answered, and ours would have ended.
        std::thread::sleep(Duration::from_millis(20));
        anyhow::ensure!(
            daemon.ended()?.is_none(),
            "docker-registry: {}",
            daemon.log().tail(5)
        );
        Ok(daemon)
    }
}
