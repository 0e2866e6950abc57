//! `soci prefetch`: the prefetch artifacts that were made here.

mod info;
mod list;

use clap::Subcommand;

use crate::global::Global;

/// Manage prefetch artifacts
#[derive(Debug, Subcommand)]
pub(crate) enum PrefetchCommand {
    List(list::List),
    Info(info::Info),
}

impl PrefetchCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::List(command) => command.run(global).await,
            Self::Info(command) => command.run(global).await,
        }
    }
}

/// How many spans an artifact lists.
fn spans(artifact: &soci_ztoc::prefetch::Prefetch) -> u64 {
    let count = |span: &soci_ztoc::prefetch::PrefetchSpan| {
        u64::from(span.end_span) - u64::from(span.start_span.min(span.end_span)) + 1
    };
    artifact.prefetch_spans.iter().map(count).sum()
}
