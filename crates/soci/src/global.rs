//! The global flags, and what they lead to: containerd, the artifact database, the content stores.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use soci_containerd::{Content, Namespace};
use soci_store::StoredZtocs;
use soci_store::artifacts::ArtifactDb;
use soci_store::content::OciLayout;

use crate::artifact_store::ArtifactStore;
use crate::containerd;
use crate::duration;
use crate::interrupt::{Interrupts, keep_on, limited, limited_with, signal_point};
use crate::output;

/// Lifetime of the lease of a command that is killed.
const LEASE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Flags that stand before or after the command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The socket of containerd's API
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        hide_env_values = true,
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) address: String,

    /// The containerd namespace to work in
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_NAMESPACE",
        hide_env_values = true,
        default_value = "default"
    )]
    pub(crate) namespace: String,

    /// Give up after this long (for example 90s or 5m)
    #[arg(long, global = true, value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    /// Log what is done on stderr
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    /// Where SOCI artifacts are kept
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) content_store: ContentStore,

    /// The root folder of the snapshotter
    #[arg(long, global = true, default_value = "/var/lib/soci-snapshotter-grpc/")]
    pub(crate) root: PathBuf,
}

/// Where SOCI artifacts are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContentStore {
    /// In the snapshotter's own store
    Soci,
    /// In containerd's store
    #[default]
    Containerd,
}

/// Releases the lease under which a result came about. A lease that stays expires by itself.
pub(crate) async fn release<T>(
    containerd: &Namespace,
    result: anyhow::Result<T>,
) -> anyhow::Result<T> {
    match (result, containerd.release_lease().await) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(error), released) => {
            if let Err(kept) = released {
                output::warning(&soci_errors::chain(&kept));
            }
            Err(error)
        }
    }
}

impl Global {
    /// A connection to containerd.
    pub(crate) async fn connect(&self) -> anyhow::Result<Namespace> {
        limited(
            self.timeout,
            containerd::connect(&self.address, &self.namespace),
        )
        .await
    }

    /// Creates a lease on containerd, which the caller releases. A signal that arrives before the caller
    /// knows of it is in the interrupts, and does not end the program.
    pub(crate) async fn lease(&self) -> anyhow::Result<(Namespace, Interrupts)> {
        let containerd = self.connect().await?;
        let interrupts = Interrupts::listen();
        let creating = async {
            keep_on();
            Ok(containerd.leased(LEASE_TIME).await?)
        };
        let leased = limited(self.timeout, creating).await?;
        signal_point("interrupted-lease");
        Ok((leased, interrupts))
    }

    /// Works on containerd under a lease, which is released however the work ends: what nothing
    /// refers to by then is collected.
    pub(crate) async fn leased<T>(
        &self,
        work: impl AsyncFnOnce(Namespace) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (containerd, interrupts) = self.lease().await?;
        let work = Box::pin(work(containerd.clone()));
        let result = limited_with(interrupts, self.timeout, work).await;
        release(&containerd, result).await
    }

    /// The artifact database.
    pub(crate) fn artifacts(&self) -> ArtifactDb {
        ArtifactDb::new(&self.root)
    }

    /// The snapshotter's own store to write to, when that is where artifacts go.
    pub(crate) fn layout(&self) -> anyhow::Result<Option<OciLayout>> {
        match self.content_store {
            ContentStore::Containerd => Ok(None),
            ContentStore::Soci => Ok(Some(OciLayout::open_private(&self.content_dir())?)),
        }
    }

    fn content_dir(&self) -> PathBuf {
        self.root.join("content")
    }

    /// The store to read artifacts from.
    pub(crate) async fn artifact_store(&self) -> anyhow::Result<ArtifactStore> {
        match self.content_store {
            ContentStore::Containerd => Ok(ArtifactStore::Containerd(Content::new(
                &self.connect().await?,
            ))),
            ContentStore::Soci => {
                let dir = self.content_dir();
                Ok(ArtifactStore::Layout(
                    OciLayout::open_existing(&dir).context(
                        "there is no content store of the snapshotter (is --root right?)",
                    )?,
                    StoredZtocs::below(&self.root),
                ))
            }
        }
    }
}
