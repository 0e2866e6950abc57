//! `soci pull`: an image into containerd, lazily where it can be.

use std::num::NonZeroUsize;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use soci_containerd::{Content, Images, Namespace, Snapshots};
use soci_discovery::{FoundBy, RegistryManifests, lazy_report};
use soci_oci::{Digest, Platform, Reference};

use crate::filling::{self, Filled, Goal};
use crate::global::{Global, release};
use crate::interrupt::{committing, limited, limited_with};
use crate::output;
use crate::progress::Bars;
use crate::pull::{self, Active, Downloads, Layer, State, Unpack};
use crate::registry_args::RegistryArgs;
use crate::snapshotter_args::SnapshotterArgs;

/// The snapshotter that mounts layers lazily.
const LAZY_SNAPSHOTTER: &str = "soci";

/// Pull an image into containerd, lazily where it has a SOCI index
///
/// Layers that the snapshotter mounts lazily are not downloaded; the others are downloaded
/// and unpacked as usual. At the end each layer is listed with what became of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci pull registry.example/app:1-soci
  soci pull --complete registry.example/app:1-soci
  soci pull --platform linux/arm64 --json registry.example/app:1-soci
  ctr run --rm --snapshotter soci registry.example/app:1-soci test sh

containerd needs the snapshotter as a proxy plugin in its configuration:
  [proxy_plugins.soci]
    type = \"snapshot\"
    address = \"/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock\"
    capabilities = [\"remap-ids\", \"multi-remap-ids\"]

With --complete the image can be started as soon as its layers are listed; the command ends when
the snapshotter has stored all of it, with the exit codes of `soci wait`.

The snapshotter reads lazy layers with credentials of its own, which are those of `docker login`
of the user that it runs as: it does not get those of --user.")]
pub(crate) struct Pull {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The snapshotter to unpack with; one other than soci gets every layer unpacked
    #[arg(long, value_name = "NAME", env = "CONTAINERD_SNAPSHOTTER",
        hide_env_values = true, default_value = LAZY_SNAPSHOTTER)]
    snapshotter: String,

    /// The platform to pull (default: this machine's)
    #[arg(short, long, value_name = "OS/ARCH")]
    platform: Option<Platform>,

    /// Use this SOCI index, whatever the image says
    #[arg(long, value_name = "DIGEST")]
    soci_index_digest: Option<Digest>,

    /// Layers downloaded at a time
    #[arg(long, value_name = "N", default_value = "3")]
    max_concurrent_downloads: NonZeroUsize,

    /// Wait until all of it is stored, so that it needs its registry no more
    #[arg(long)]
    complete: bool,

    #[command(flatten)]
    daemon: SnapshotterArgs,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Print neither progress nor a line per layer
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// The result, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    image: String,
    digest: Digest,
    manifest: Digest,
    snapshotter: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    soci_index: Option<Digest>,
    layers: Vec<Layer>,
    /// With `--complete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    filled: Option<Filled>,
}

impl Pull {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let (containerd, interrupts) = global.lease().await?;
        let snapshots = Snapshots::new(&containerd, &self.snapshotter);
        let active = Active::default();
        let bars = Arc::new(Bars::new(self.quiet));
        let work = Box::pin(self.pull(&containerd, &snapshots, &active, &bars));
        let result = limited_with(interrupts, global.timeout, work).await;
        bars.finish();
        // Whether it succeeded or not: partial work is removed, and the lease released.
        active.remove_all(&snapshots).await;
        let mut pulled = release(&containerd, result).await?;
        if self.complete {
            pulled.filled = Some(limited(None, self.fill(&pulled, global)).await?);
        }
        self.print(&pulled)
    }

    /// Waits until the image is stored.
    async fn fill(&self, pulled: &Pulled, global: &Global) -> anyhow::Result<Filled> {
        let image = pulled.manifest.to_string();
        let goal = Goal {
            socket: self.daemon.socket(),
            image: &image,
            namespace: &global.namespace,
            percent: 100,
            timeout: global.timeout,
            quiet: self.quiet,
        };
        filling::wait(goal).await
    }

    async fn pull(
        &self,
        containerd: &Namespace,
        snapshots: &Snapshots,
        active: &Active,
        bars: &Arc<Bars>,
    ) -> anyhow::Result<Pulled> {
        let reference = &self.reference;
        let client = self
            .registry
            .client(reference, self.registry.user.as_ref())?;
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        let content = Content::new(containerd);
        let image = pull::fetch(&content, &client, reference, &platform).await?;
        let explicit = self.soci_index_digest;
        let is_lazy_snapshotter = self.snapshotter == LAZY_SNAPSHOTTER;
        let named = explicit.or_else(|| image.manifest.soci_index()?.ok());
        let named = named.filter(|_| is_lazy_snapshotter);
        // Where all layers are lazy there is nothing that an index could explain.
        let report = if !is_lazy_snapshotter
            || named.is_some() && pull::all_are_lazy(snapshots, &image.config).await?
        {
            None
        } else {
            let source = RegistryManifests::new(client.clone(), reference.clone());
            Some(lazy_report(&source, image.manifest_digest, &image.manifest, explicit).await)
        };
        let downloads = Downloads::new(
            content,
            client,
            reference.clone(),
            Arc::clone(bars),
            self.max_concurrent_downloads.get(),
        );
        let layers = Unpack {
            containerd,
            snapshots,
            reference,
            image: &image,
            index_digest: self.soci_index_digest,
            downloads: &downloads,
            report: report.as_ref(),
            active,
        }
        .run()
        .await?;
        committing();
        Images::new(containerd)
            .record(&reference.to_string(), &image.target)
            .await?;
        // The daemon uses an index of version 1 only where that is enabled.
        let lazy = layers.iter().any(|layer| layer.state == State::Lazy);
        let used = match report {
            Some(report) => {
                let index = report.index.ok();
                let used = index.filter(|found| lazy || found.by != FoundBy::Referrers);
                used.map(|found| found.digest)
            }
            None => named,
        };
        Ok(Pulled {
            image: reference.to_string(),
            digest: image.target.digest,
            manifest: image.manifest_digest,
            snapshotter: self.snapshotter.clone(),
            soci_index: used,
            layers,
            filled: None,
        })
    }

    fn print(&self, pulled: &Pulled) -> anyhow::Result<()> {
        if self.json {
            output::json(pulled)?;
        } else if !self.quiet {
            for layer in &pulled.layers {
                output::line(layer.line());
            }
            let lazy = pulled
                .layers
                .iter()
                .filter(|layer| layer.state == State::Lazy)
                .count();
            output::line(format!(
                "{} {}: {lazy} of {} layers lazy",
                pulled.image,
                pulled.digest,
                pulled.layers.len()
            ));
            if let Some(filled) = &pulled.filled {
                output::line(filled.line());
            }
        }
        Ok(())
    }
}
