//! A private containerd.

mod config;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cri::{self, Cri, CriOptions};
use crate::ctr::Ctr;
use crate::process::{Daemon, LogLines, TestRoot};
use crate::release::Release;

/// What a private containerd is like.
#[derive(Debug, Clone, Default)]
pub struct ContainerdOptions {
    /// Which release of it.
    pub release: Release,
    /// Proxy snapshotters: name and socket.
    pub snapshotters: Vec<(String, PathBuf)>,
    /// What the transfer service of containerd 2.x is configured to do with them.
    pub transfer: TransferOptions,
    /// Leave out the line that makes containerd 2.x leave user namespaces to the snapshotter.
    pub without_capabilities: bool,
    /// The CRI plugin, if it is to run.
    pub cri: Option<CriOptions>,
    /// More configuration (TOML, of version 2, or of 3 for containerd 2.x), appended.
    pub extra_config: String,
}

/// What the transfer service of containerd 2.x is configured to do with our snapshotter; by default
/// what our README says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferOptions {
    /// An `unpack_config` for it.
    pub unpack: bool,
    /// Labels with the image's name and digests.
    pub annotations: bool,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            unpack: true,
            annotations: true,
        }
    }
}

impl ContainerdOptions {
    /// With the proxy snapshotter `soci` at this socket.
    #[must_use]
    pub fn with_soci(socket: &Path) -> Self {
        Self {
            snapshotters: vec![("soci".to_owned(), socket.to_owned())],
            ..Self::default()
        }
    }
}

impl ContainerdOptions {
    /// Writes the configuration of a containerd below `root`, with its socket at `address`, for one that
    /// another program starts: the file is `root`/containerd.toml.
    ///
    /// # Errors
    /// The release is not to be had, or a file cannot be written.
    pub fn write(&self, root: &Path, address: &Path) -> Result<PathBuf> {
        let config = root.join("containerd.toml");
        let text = config::text(root, address, self)?;
        std::fs::write(&config, text).context("write containerd's configuration")?;
        if self.cri.is_some() {
            cri::network::write(&root.join(cri::CNI_BIN), &root.join(cri::CNI_CONF))?;
        }
        Ok(config)
    }
}

/// A containerd with root, state and sockets of its own. Dropping it ends its containers too.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
    release: Release,
    ctr: PathBuf,
    address: PathBuf,
    root: TestRoot,
}

impl Containerd {
    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// When containerd is not installed or does not start; the message holds the end of its log.
    pub fn start(options: &ContainerdOptions) -> Result<Self> {
        Self::start_in(TestRoot::new()?, options)
    }

    /// The socket that a containerd in this folder will have.
    #[must_use]
    pub fn address_in(root: &TestRoot) -> PathBuf {
        root.path().join("c.sock")
    }

    /// Starts containerd in this folder and waits until it answers.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_in(root: TestRoot, options: &ContainerdOptions) -> Result<Self> {
        let address = Self::address_in(&root);
        options.write(root.path(), &address)?;
        let daemon = Self::serve(options.release, &root, &address)?;
        Ok(Self {
            daemon,
            release: options.release,
            ctr: options.release.program("ctr")?,
            address,
            root,
        })
    }

    /// The gRPC socket.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Which release it is.
    #[must_use]
    pub fn release(&self) -> Release {
        self.release
    }

    /// The folder that everything of this containerd is below.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> &LogLines {
        self.daemon.log()
    }

    /// `ctr` against this containerd in a namespace.
    #[must_use]
    pub fn ctr(&self, namespace: &str) -> Ctr {
        Ctr::new(&self.ctr, &self.address, namespace)
    }

    /// A client of its CRI plugin.
    ///
    /// # Errors
    /// When the plugin does not answer.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.address)
    }

    /// Kills containerd (containers keep running) and starts it again with the same contents.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon = Self::serve(self.release, &self.root, &self.address)?;
        Ok(())
    }

    /// Ends and removes everything; unlike dropping, returns what could not be ended.
    ///
    /// # Errors
    /// Names the processes and mounts that stay.
    pub fn close(mut self) -> Result<()> {
        self.daemon.kill()?;
        self.root.quiet()
    }

    fn serve(release: Release, root: &TestRoot, address: &Path) -> Result<Daemon> {
        let (program, ctr) = (release.program("containerd")?, release.program("ctr")?);
        let search_path = release.search_path()?;
        let mut daemon = Daemon::spawn("containerd", root, program, |command| {
            command
                .env("PATH", search_path)
                .arg("--config")
                .arg(root.path().join("containerd.toml"));
        })?;
        daemon.wait_ready(Duration::from_secs(120), |_| {
            Command::new(&ctr)
                .arg("--address")
                .arg(address)
                .args(["--connect-timeout", "1s", "version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })?;
        Ok(daemon)
    }
}
