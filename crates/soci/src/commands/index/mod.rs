//! `soci index`: the SOCI indexes that were made on this machine.

mod info;
mod list;
mod remove;

use clap::Subcommand;

use crate::global::Global;

/// Manage SOCI indexes
#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    List(list::List),
    Info(info::Info),
    Remove(remove::Remove),
}

impl IndexCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::List(command) => command.run(global).await,
            Self::Info(command) => command.run(global).await,
            Self::Remove(command) => command.run(global).await,
        }
    }
}
