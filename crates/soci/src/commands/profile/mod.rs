//! `soci profile`: what starts of images read, and how that travels.

mod export;
mod import;
mod list;
mod push;
mod record;
mod run;
mod show;

use clap::Subcommand;

use crate::global::Global;
use crate::interrupt::limited;
use crate::registry_args::RegistryArgs;

/// Record what an image reads when it starts, and bring it to the nodes that start it
///
/// A start-up profile lists the parts of an image's layers that a start reads, in their order. Where one is known, they
/// are fetched from the pull on instead of one after another. The daemon records each first start and plays it at the
/// next pull on the same node; a profile that comes with the image helps the first start anywhere.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  soci convert docker://registry.example/app:1 docker://registry.example/app:1-soci
  soci profile run -o app.profile registry.example/app:1-soci -- /app --version
  soci convert --profile app.profile docker://registry.example/app:1 docker://registry.example/app:1-soci")]
pub(crate) enum ProfileCommand {
    Run(run::Run),
    Record(record::Record),
    List(list::List),
    Show(show::Show),
    Export(export::Export),
    Import(import::Import),
    Push(push::Push),
}

impl ProfileCommand {
    pub(crate) fn registry(&self) -> Option<&RegistryArgs> {
        match self {
            Self::Run(command) => Some(&command.remote.registry),
            Self::Push(command) => Some(&command.remote.registry),
            _ => None,
        }
    }

    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let timeout = global.timeout;
        match self {
            // Cleans up after its work.
            Self::Run(command) => Box::pin(command.run(global)).await,
            Self::Push(command) => limited(timeout, Box::pin(command.run(global))).await,
            Self::Record(command) => limited(timeout, command.run(global)).await,
            Self::List(command) => command.run(global),
            Self::Show(command) => command.run(global),
            Self::Export(command) => command.run(global),
            Self::Import(command) => command.run(global),
        }
    }
}
