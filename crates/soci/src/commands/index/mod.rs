//! `soci index`: the SOCI indexes that were made here.

mod info;
mod list;
mod remove;

use clap::{Args, Subcommand};

use crate::cli::limited;
use crate::global::Global;

/// Manage SOCI indexes
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct IndexCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Info(info::Info),
    Remove(remove::Remove),
}

impl IndexCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let work = async {
            match self.command {
                Command::List(command) => command.run(global).await,
                Command::Info(command) => command.run(global).await,
                Command::Remove(command) => command.run(global).await,
            }
        };
        limited(global.timeout, Box::pin(work)).await
    }
}
