//! `soci check`: will an image load lazily here, and if not, why?

mod elf;
mod here;
mod report;
mod startup;

use std::path::PathBuf;

use clap::Args;
use soci_oci::Reference;

use crate::global::Global;
use crate::interrupt::limited;
use crate::output;
use crate::remote::{RemoteArgs, RemoteImage, find_index, open_all};

use here::Here;
use report::Report;

/// Explain whether an image will load lazily on this machine, and why not
///
/// Looks at the image at its registry and at the configuration of the snapshotter here. Nothing is
/// pulled; to estimate what a start needs, the files that the image's command loads first are
/// looked at.
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
    remote: RemoteArgs,
}

impl Check {
    /// What to log of HTTP.
    pub(crate) fn http_log(&self) -> &'static [&'static str] {
        self.remote.registry.http_log()
    }

    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        limited(global.timeout, Box::pin(self.check())).await
    }

    async fn check(&self) -> anyhow::Result<()> {
        let here = Here::look(&self.config)?;
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let given = self.remote.soci_index_digest;
        let index = find_index(
            &image.client,
            &image.reference,
            image.descriptor.digest,
            &image.manifest,
            given,
        )
        .await;
        let mut report = Report::new(&image, &index, &here).await?;
        if let Ok(found) = &index
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
        output::text(report.text());
        Ok(())
    }
}
