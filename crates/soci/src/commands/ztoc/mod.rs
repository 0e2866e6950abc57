//! `soci ztoc`: the zTOCs that were made here.

mod get_file;
mod info;
mod list;

use clap::{Args, Subcommand};

use crate::cli::limited;
use crate::global::Global;

/// Manage zTOCs
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct ZtocCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Info(info::Info),
    GetFile(get_file::GetFile),
}

impl ZtocCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let work = async {
            match self.command {
                Command::List(command) => command.run(global).await,
                Command::Info(command) => command.run(global).await,
                Command::GetFile(command) => command.run(global).await,
            }
        };
        limited(global.timeout, Box::pin(work)).await
    }
}
