//! The whole set in one: registry, proxy in front of it, our daemon, containerd with it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use soci_oci::Descriptor;

use crate::cli::SociCli;
use crate::containerd::{Containerd, ContainerdOptions, TransferOptions};
use crate::cri::{CriOptions, CriPull};
use crate::image::pause_image;
use crate::process::TestRoot;
use crate::proxy::{Proxy, Throttle};
use crate::registry::{Notify, Registry};
use crate::release::Release;
use crate::soci::{SociDaemon, SociDaemonOptions};

/// What a [`Stack`] is like.
#[derive(Debug, Clone, Default)]
pub struct StackOptions {
    /// The configuration of our daemon.
    pub daemon: SociDaemonOptions,
    /// How fast the registry seems to be.
    pub throttle: Throttle,
    /// Which release of containerd runs.
    pub release: Release,
    /// Whether containerd's CRI plugin runs, on our daemon, and how it pulls.
    pub cri: Option<CriPull>,
    /// What containerd's transfer service is configured to do.
    pub transfer: TransferOptions,
    /// Leave out the line that makes containerd 2.x leave user namespaces to the snapshotter.
    pub without_capabilities: bool,
    /// Where the registry sends a notification of each push.
    pub notify: Option<Notify>,
}

/// Registry, proxy, our daemon and a containerd that uses it. Fields end in this order.
#[derive(Debug)]
pub struct Stack {
    /// The containerd, with our daemon as its snapshotter `soci`.
    pub containerd: Containerd,
    /// Our daemon.
    pub daemon: SociDaemon,
    /// The proxy in front of the registry: pull from [`Stack::reference`].
    pub proxy: Proxy,
    /// The registry behind it: push here without throttling.
    pub registry: Registry,
}

impl Stack {
    /// Starts everything.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(options: StackOptions) -> Result<Self> {
        let registry = match options.notify {
            Some(notify) => Registry::start_notifying(notify)?,
            None => Registry::start()?,
        };
        let proxy = Proxy::start(registry.address())?;
        proxy.throttle(options.throttle);
        let folder = TestRoot::new()?;
        let mut of_daemon = options.daemon;
        of_daemon.containerd = Some(Containerd::address_in(&folder));
        let daemon = SociDaemon::start(of_daemon)?;
        let mut containerd = ContainerdOptions::with_soci(daemon.socket());
        containerd.release = options.release;
        containerd.transfer = options.transfer;
        containerd.without_capabilities = options.without_capabilities;
        if let Some(pull) = options.cri {
            let images = TestRoot::new()?;
            pause_image(images.path(), "pause")?;
            registry.push_layout(images.path(), "pause", "pause")?;
            let sandbox_image = registry.reference("pause:pause");
            containerd.cri = Some(CriOptions {
                pull,
                ..CriOptions::with_soci(&sandbox_image)
            });
        }
        let containerd = Containerd::start_in(folder, &containerd)?;
        Ok(Self {
            containerd,
            daemon,
            proxy,
            registry,
        })
    }

    /// The name of an image of the registry, seen through the proxy.
    #[must_use]
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.proxy.address())
    }

    /// Our CLI against the stack's containerd.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn soci(&self, namespace: &str) -> Result<SociCli> {
        SociCli::against(self.containerd.address(), namespace)
    }

    /// Pushes the image of an OCI layout, past the proxy.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, layout: &Path, tag: &str, repository: &str) -> Result<Descriptor> {
        self.registry.push_layout(layout, tag, repository)
    }

    /// Waits until containerd reaches our daemon again after the daemon was started again: its gRPC
    /// client answers "unavailable" for as long as it backs off.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub fn wait_for_snapshotter(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        let ctr = self.containerd.ctr("probe");
        let snapshots = |arguments: &[&str]| {
            ctr.output(
                ["snapshots", "--snapshotter", "soci"]
                    .iter()
                    .chain(arguments),
            )
        };
        // Listing would not do: containerd answers that from its own database.
        while let Err(error) = snapshots(&["prepare", "probe"]) {
            if format!("{error:#}").contains("already exists") {
                break;
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        snapshots(&["remove", "probe"]).map(drop)
    }

    /// The last lines of both daemons' logs, for an error message.
    #[must_use]
    pub fn log_tails(&self) -> String {
        format!(
            "--- soci-snapshotter-grpc ---\n{}\n--- containerd ---\n{}\n",
            self.daemon.log().tail(40),
            self.containerd.log().tail(20)
        )
    }
}
