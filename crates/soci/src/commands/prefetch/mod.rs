//! `soci prefetch`: the prefetch artifacts that were made on this machine.

mod info;
mod list;
mod span_count;

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
