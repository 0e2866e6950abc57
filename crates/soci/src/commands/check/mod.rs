//! `soci check`: predicts whether an image loads lazily on this machine, and explains why not.

mod elf;
mod machine;
mod report;
mod startup;
mod ztoc;

use std::path::PathBuf;

use clap::Args;
use soci_discovery::{Found, NoIndex, Policy};
use soci_oci::{Descriptor, Digest, Reference};

use crate::output;
use crate::remote::{RemoteArgs, RemoteImage, open_all};
use crate::style::Style;

use machine::Machine;
use report::Report;

/// Explain whether an image will load lazily on this machine, and why not
///
/// Reads the image at its registry and the configuration of this machine's snapshotter. Nothing is
/// pulled; to estimate what a start needs, the files that the image's command loads first are read.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci check registry.example/app:1-soci")]
pub(crate) struct Check {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The snapshotter's configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/soci-snapshotter-grpc/config.toml"
    )]
    config: PathBuf,

    /// Do not estimate what a start needs
    #[arg(long)]
    no_estimate: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Check {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let machine = Machine::inspect(&self.config)?;
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let explicit = self.remote.soci_index_digest;
        let lookup = Lookup::run(&image, explicit, machine.policy()).await;
        let mut report = Report::new(&image, &lookup, &machine).await?;
        if let Some(found) = lookup.shown()
            && !self.no_estimate
        {
            let estimate = async {
                let layers = open_all(&image, Some(found)).await?;
                startup::estimate(&image, found, &layers).await
            };
            match estimate.await {
                Ok(startup) => report.startup = startup,
                Err(error) => output::warning(&format!(
                    "what a start needs cannot be estimated: {}",
                    output::reason(&error)
                )),
            }
        }
        if self.json {
            return output::json(&report);
        }
        output::page(&report.page(Style::of_stdout()));
        Ok(())
    }
}

/// The SOCI index of an image, as this machine's daemon looks it up.
pub(super) struct Lookup {
    /// The index that the daemon uses.
    used: Result<Found, NoIndex>,
    /// An index that it does not use, because its kind is disabled.
    unused: Option<Found>,
}

impl Lookup {
    async fn run(image: &RemoteImage, explicit: Option<Digest>, policy: Policy) -> Self {
        let used = image.find_index(explicit, policy).await;
        let unused = match used {
            Err(NoIndex::Disabled | NoIndex::NotIndexed { .. }) if policy != Policy::ALL => {
                image.find_index(explicit, Policy::ALL).await.ok()
            }
            _ => None,
        };
        Self { used, unused }
    }

    /// Returns the index that the report is about, used or not.
    fn shown(&self) -> Option<&Found> {
        self.used.as_ref().ok().or(self.unused.as_ref())
    }

    /// Returns the zTOC that this index has for a layer.
    fn ztoc_for(&self, layer: &Descriptor) -> Option<&Descriptor> {
        let ztoc = self.shown()?.index.ztoc_for(&layer.digest)?;
        Some(&ztoc.descriptor)
    }
}
