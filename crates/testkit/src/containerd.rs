//! A private containerd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cri::{Cri, CriOptions};
use crate::ctr::Ctr;
use crate::process::{Daemon, LogLines, TestRoot};

/// What a private containerd is like.
#[derive(Debug, Clone, Default)]
pub struct ContainerdOptions {
    /// Proxy snapshotters: name and socket.
    pub snapshotters: Vec<(String, PathBuf)>,
    /// The CRI plugin, if it is to run.
    pub cri: Option<CriOptions>,
    /// More configuration (version 2 TOML), appended.
    pub extra_config: String,
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

/// A containerd with root, state and sockets of its own. Dropping it ends its containers too.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
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
        let config = root.path().join("containerd.toml");
        std::fs::write(&config, config_text(root.path(), &address, options))
            .context("write containerd's configuration")?;
        let daemon = Self::serve(&root, &address)?;
        Ok(Self {
            daemon,
            address,
            root,
        })
    }

    /// The gRPC socket.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.address
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
        Ctr::new(&self.address, namespace)
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
        self.daemon = Self::serve(&self.root, &self.address)?;
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

    fn serve(root: &TestRoot, address: &Path) -> Result<Daemon> {
        let mut daemon = Daemon::spawn("containerd", root, "containerd", |command| {
            command
                .arg("--config")
                .arg(root.path().join("containerd.toml"));
        })?;
        daemon.wait_ready(Duration::from_secs(30), |_| {
            Command::new("ctr")
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

fn config_text(root: &Path, address: &Path, options: &ContainerdOptions) -> String {
    let at = |name: &str| root.join(name).display().to_string();
    let disabled = match options.cri {
        Some(_) => "",
        None => "\"io.containerd.grpc.v1.cri\"",
    };
    let mut text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{disabled}]\n\
         [grpc]\n  address = {:?}\n[ttrpc]\n  address = {:?}\n[debug]\n  level = \"warn\"\n",
        at("root"),
        at("state"),
        address.display().to_string(),
        at("c.ttrpc"),
    );
    if !options.snapshotters.is_empty() {
        text.push_str("[proxy_plugins]\n");
    }
    for (name, socket) in &options.snapshotters {
        text.push_str(&format!(
            "  [proxy_plugins.{name:?}]\n    type = \"snapshot\"\n    address = {:?}\n    \
             capabilities = [\"remap-ids\", \"multi-remap-ids\"]\n",
            socket.display().to_string()
        ));
    }
    if let Some(cri) = &options.cri {
        text.push_str(&cri.config_text(root));
    }
    text.push_str(&options.extra_config);
    text
}
