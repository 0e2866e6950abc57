//! `soci wait`: until an image is stored.

use clap::Args;

use crate::filling::{self, Goal};
use crate::global::Global;
use crate::snapshotter_args::SnapshotterArgs;

/// Wait until an image is stored on this node
///
/// The snapshotter daemon fills the image before all others, although below its readers, as long as
/// this command runs: also with filling turned off, and also if no container uses the image. Once it
/// is complete, containers on it start and run without its registry.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci wait registry.example/app:1-soci
  soci wait --percent 50 --timeout 2m registry.example/app:1-soci
  soci wait --json sha256:… | jq .percent

Exit codes: 0, it is stored; 1, an error, for example that no layer of it is on this node; 2,
filling has stopped, because the disk's reserve or the store's limit is reached; 124, the time of
--timeout is up.")]
pub(crate) struct Wait {
    /// The image: its reference as it was pulled, or the digest of its manifest
    #[arg(value_name = "REF")]
    image: String,

    /// The part of its lazy layers that must be stored
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: u8,

    #[command(flatten)]
    snapshotter: SnapshotterArgs,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Print neither progress nor the result
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

impl Wait {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let goal = Goal {
            socket: self.snapshotter.socket(),
            image: &self.image,
            namespace: &global.namespace,
            percent: self.percent,
            timeout: global.timeout,
            quiet: self.quiet,
        };
        // A signal ends it as any work.
        let filled = crate::interrupt::limited(None, filling::wait(goal)).await?;
        filling::print(&filled, self.json, self.quiet)
    }
}
