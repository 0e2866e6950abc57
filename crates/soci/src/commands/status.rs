//! `soci status`: how the daemon is, and what became of each image's layers.

mod table;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::output;

/// Show the snapshotter daemon, its images and layers
///
/// For each layer: whether it is lazy (mounted, fetched as it is read), local (unpacked by the
/// daemon) or deferred (unpacked by the client), why it is not lazy, how much of it has been
/// fetched, and what went wrong last.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci status
  soci status --json | jq '.images[].layers[] | select(.health == \"broken\")'")]
pub(crate) struct Status {
    /// The socket of the snapshotter daemon
    #[arg(
        long,
        value_name = "PATH",
        env = "SOCI_SNAPSHOTTER_ADDRESS",
        hide_env_values = true,
        default_value = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
    )]
    snapshotter_address: PathBuf,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let address = self.snapshotter_address;
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        let status = status::get(path).await?;
        if self.json {
            output::line(serde_json::to_string_pretty(&status).context("cannot print JSON")?);
        } else {
            output::text(table::render(&status));
        }
        Ok(())
    }
}
