//! `soci mount`: an image at a registry as a folder, read on demand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_discovery::Policy;
use soci_oci::Reference;

use crate::global::Global;
use crate::interrupt::{interrupted, limited};
use crate::output;
use crate::remote::{MountedImage, RemoteArgs, RemoteImage, is_mounted, reason};

/// Interval of the check whether the directory was unmounted.
const LOOK: Duration = Duration::from_millis(500);

/// Mount an image at a registry on a folder, read-only, until interrupted or unmounted
///
/// Files are fetched when they are read, and kept until the end. Needs root; containerd and the
/// snapshotter are not involved.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci mount registry.example/app:1-soci /mnt/app")]
pub(crate) struct Mount {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The folder
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Keep what is fetched in a new folder below this one (default: the system's temporary folder)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Mount {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root (soci ls and soci cat do not)");
        }
        let directory = std::fs::canonicalize(&self.directory)
            .with_context(|| format!("cannot mount on {}", self.directory.display()))?;
        if !directory.is_dir() {
            bail!(
                "cannot mount on {}: it is not a directory",
                directory.display()
            );
        }
        let mounted = limited(global.timeout, Box::pin(self.mount(&directory))).await?;
        output::line(format!(
            "{} is mounted on {} ({} layers)",
            self.reference,
            directory.display(),
            mounted.layers()
        ));
        let signal = tokio::select! {
            signal = interrupted() => Some(signal),
            () = gone(&directory) => None,
        };
        tracing::debug!(?signal, "unmounting");
        mounted.end().await
    }

    async fn mount(&self, directory: &Path) -> anyhow::Result<MountedImage> {
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let explicit = self.remote.soci_index_digest;
        let index = image
            .find_index(explicit, Policy::ALL)
            .await
            .map_err(|none| anyhow::anyhow!(reason(&none.into())))?;
        let mut mounted = MountedImage::open(&image, Some(&index), self.cache.as_deref()).await?;
        mounted.overlay(directory, None)?;
        Ok(mounted)
    }
}

/// Resolves when the folder is not mounted any more.
async fn gone(directory: &Path) {
    while is_mounted(directory) {
        tokio::time::sleep(LOOK).await;
    }
}
