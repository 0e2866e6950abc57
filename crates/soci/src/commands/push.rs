//! `soci push`: the SOCI index (version 1) of an image goes to the image's registry.

mod between_registries;
mod graph;
mod selection;

use clap::{Args, ValueEnum};
use soci_containerd::Content;
use soci_oci::{Digest, Reference, media_types};
use soci_registry::Client;

use crate::containerd::{self, ContainerdSource, KnownZtocs};
use crate::global::Global;
use crate::index_args::PlatformArgs;
use crate::output;
use crate::progress::Bars;
use crate::registry_args::RegistryArgs;

use graph::Graph;

/// Push the SOCI index of an image to its registry
///
/// Of several indexes of one image, the newest is pushed. Images with an index of version 2, which
/// `soci convert` makes, are pushed as a whole instead, with nerdctl, finch or ctr.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci push --user name:password registry.example/app:1
  soci push docker://one.example/app:1 docker://two.example/app:1    (without containerd)")]
pub(crate) struct Push {
    /// The image in containerd, or docker://REFERENCE
    #[arg(value_name = "REF")]
    reference: String,

    /// Where the index goes when REF is docker://REFERENCE: a repository with the same image
    #[arg(value_name = "DST")]
    destination: Option<String>,

    /// What to do when the registry has an index of the image already
    #[arg(long, value_enum, default_value_t)]
    existing_index: ExistingIndex,

    /// Blobs uploaded at a time
    #[arg(long, value_name = "N", default_value = "3")]
    max_concurrent_uploads: usize,

    /// Print nothing but the digests of the indexes
    #[arg(short, long)]
    quiet: bool,

    /// The snapshotter (accepted, unused: indexes are the same for all)
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        hide_env_values = true
    )]
    snapshotter: Option<String>,

    #[command(flatten)]
    platforms: PlatformArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// What to do about an index that is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ExistingIndex {
    /// Say so and push
    #[default]
    Warn,
    /// Push nothing
    Skip,
    /// Push without looking
    Allow,
}

impl Push {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if self.reference.starts_with("docker://") {
            Box::pin(between_registries::run(&self)).await
        } else {
            Box::pin(self.push_local(global)).await
        }
    }

    async fn push_local(&self, global: &Global) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.destination.is_none(),
            "DST is for pushing from registry to registry; REF is then docker://REFERENCE"
        );
        let containerd = global.connect().await?;
        let image = containerd::image(&containerd, &self.reference).await?;
        let reference: Reference = image.name.parse()?;
        let source = ContainerdSource::new(&containerd, image, KnownZtocs::new(), None);
        let chosen =
            selection::choose(&source, &self.platforms.chosen(), &global.artifacts()).await?;
        let client = self
            .registry
            .push_client(&reference, self.registry.user.as_ref())?;
        let store = global.artifact_store().await?;
        let labels = match global.content_store {
            crate::global::ContentStore::Containerd => Some(Content::new(&containerd)),
            crate::global::ContentStore::Soci => None,
        };
        for chosen in chosen {
            if !self.wanted(&client, &reference, chosen.manifest).await? {
                continue;
            }
            self.announce(chosen.index);
            Graph {
                store: &store,
                labels: labels.as_ref(),
                client: &client,
                reference: &reference,
                parallel: self.uploads(),
                quiet: self.quiet,
                bars: &Bars::new(self.quiet),
            }
            .push(chosen.index)
            .await?;
        }
        Ok(())
    }

    /// How many uploads at a time; 0 means the default, as it always has.
    fn uploads(&self) -> usize {
        match self.max_concurrent_uploads {
            0 => 3,
            uploads => uploads,
        }
    }

    fn announce(&self, index: Digest) {
        if self.quiet {
            output::line(index.to_string());
        } else {
            output::line(format!("pushing soci index with digest: {index}"));
        }
    }

    /// Returns whether the index is pushed even if the registry has it.
    async fn wanted(
        &self,
        client: &Client,
        reference: &Reference,
        manifest: Digest,
    ) -> anyhow::Result<bool> {
        if self.existing_index == ExistingIndex::Allow {
            return Ok(true);
        }
        let found = client
            .referrers(reference, manifest, Some(media_types::SOCI_INDEX_V1))
            .await?;
        let what = match found.as_slice() {
            [] => return Ok(true),
            [one] => format!(
                "soci index found in remote repository with digest: {}",
                one.digest
            ),
            _ => "multiple soci indices found in remote repository".to_owned(),
        };
        if self.existing_index == ExistingIndex::Skip {
            if !self.quiet {
                output::line(format!(
                    "{what}: skipping pushing artifacts for image manifest: {manifest}"
                ));
            }
            return Ok(false);
        }
        output::line(format!("[WARN] {what}: pushing index anyway"));
        Ok(true)
    }
}
