//! `soci index-builder`: indexes images as they are pushed.

mod jobs;
mod lambda;
mod run;
mod serve;
mod settings;

use clap::Subcommand;

use crate::global::Global;

/// Index images as they are pushed
///
/// A push event comes in, the indexed image goes out. `serve` takes events over HTTP, `lambda` as
/// an AWS Lambda function, `run` takes one and ends. The jobs of a queue folder are shown by
/// `status` and `list`, and tried again by `retry`.
#[derive(Debug, Subcommand)]
pub(crate) enum IndexBuilderCommand {
    Serve(Box<serve::Serve>),
    Run(Box<run::Run>),
    Lambda(Box<lambda::Lambda>),
    Status(jobs::Status),
    List(jobs::List),
    Retry(jobs::Retry),
}

impl IndexBuilderCommand {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::Serve(command) => Box::pin(command.run(global)).await,
            Self::Run(command) => Box::pin(command.run(global)).await,
            Self::Lambda(command) => Box::pin(command.run(global)).await,
            Self::Status(command) => command.run().await,
            Self::List(command) => command.run().await,
            Self::Retry(command) => command.run().await,
        }
    }

    /// Whether it logs as a service does.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Lambda(_))
    }

    /// The flags about registries, for those that have them.
    pub(crate) fn registry(&self) -> Option<&crate::registry_args::RegistryArgs> {
        match self {
            Self::Serve(command) => Some(&command.settings.registry),
            Self::Run(command) => Some(&command.settings.registry),
            Self::Lambda(command) => Some(&command.settings.registry),
            Self::Status(_) | Self::List(_) | Self::Retry(_) => None,
        }
    }
}
