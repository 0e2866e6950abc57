//! `soci prefetch`: the prefetch artifacts that were made here.

mod info;
mod list;

use clap::{Args, Subcommand};

use crate::cli::limited;
use crate::global::Global;

/// Manage prefetch artifacts
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct PrefetchCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Info(info::Info),
}

impl PrefetchCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let work = async {
            match self.command {
                Command::List(command) => command.run(global).await,
                Command::Info(command) => command.run(global).await,
            }
        };
        limited(global.timeout, Box::pin(work)).await
    }
}

/// How many spans an artifact lists.
fn spans(artifact: &ztoc::prefetch::Prefetch) -> u64 {
    let count = |span: &ztoc::prefetch::PrefetchSpan| {
        u64::from(span.end_span) - u64::from(span.start_span.min(span.end_span)) + 1
    };
    artifact.prefetch_spans.iter().map(count).sum()
}
