//! `soci ztoc`: the zTOCs that were made on this machine.

mod get_file;
mod info;
mod list;

use clap::Subcommand;

use crate::global::Global;

/// Manage zTOCs
#[derive(Debug, Subcommand)]
pub(crate) enum ZtocCommand {
    List(list::List),
    Info(info::Info),
    GetFile(get_file::GetFile),
}

impl ZtocCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::List(command) => command.run(global).await,
            Self::Info(command) => command.run(global).await,
            Self::GetFile(command) => command.run(global).await,
        }
    }
}
