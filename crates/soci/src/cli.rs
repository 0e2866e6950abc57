//! The command line: global flags, commands, and how they are run.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::commands::{completion, convert, pull, status};
use crate::{duration, output};

/// As `soci --version` prints it: `soci version v<x.y.z> <revision>`.
const VERSION: &str = concat!(
    "version v",
    env!("CARGO_PKG_VERSION"),
    " ",
    env!("SOCI_REVISION")
);

/// Make container images lazily loadable, and pull them lazily
#[derive(Debug, Parser)]
#[command(
    name = "soci",
    version = VERSION,
    disable_version_flag = true,
    max_term_width = 100,
    after_help = "\
Examples:
  soci convert --standalone docker://registry.example/app:1 docker://registry.example/app:1-soci
  soci pull registry.example/app:1-soci
  soci status
  ctr run --rm --snapshotter soci registry.example/app:1-soci test sh"
)]
pub(crate) struct Cli {
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags that stand before or after the command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The socket of containerd's API
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        hide_env_values = true,
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) address: String,

    /// The containerd namespace to work in
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_NAMESPACE",
        hide_env_values = true,
        default_value = "default"
    )]
    pub(crate) namespace: String,

    /// Give up after this long (for example 90s or 5m)
    #[arg(long, global = true, value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    /// Log what is done on stderr
    #[arg(long, global = true)]
    debug: bool,

    /// Where SOCI artifacts are kept
    #[arg(long, global = true, value_enum, default_value_t)]
    content_store: ContentStore,

    /// The root folder of the snapshotter
    #[arg(long, global = true, default_value = "/var/lib/soci-snapshotter-grpc/")]
    root: PathBuf,
}

/// Where SOCI artifacts are kept.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ContentStore {
    /// In the snapshotter's own store
    Soci,
    /// In containerd's store
    #[default]
    Containerd,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Convert),
    Pull(pull::Pull),
    Status(status::Status),
    Completion(completion::Completion),
}

/// Reads the arguments and runs the command.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            output::text(error.render().to_string());
            return Ok(());
        }
        Err(error) => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            bail!("{text}");
        }
    };
    let Some(command) = cli.command else {
        output::text(Cli::command().render_help().to_string());
        return Ok(());
    };
    log_to_stderr(cli.global.debug);
    tracing::debug!(
        content_store = ?cli.global.content_store,
        root = %cli.global.root.display(),
        "these flags are for commands that keep artifacts on this machine"
    );
    match command {
        Command::Completion(command) => {
            command.run();
            Ok(())
        }
        Command::Convert(command) => block_on(limited(cli.global.timeout, command.run())),
        Command::Pull(command) => block_on(command.run(&cli.global)),
        Command::Status(command) => block_on(limited(cli.global.timeout, command.run())),
    }
}

/// Runs a command.
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    // Threads that still read are asked to stop; nothing they do is visible any more.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Drops the work and fails when the time is up, or when somebody interrupts it.
pub(crate) async fn limited<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let time_is_up = async {
        match timeout {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = work => result,
        limit = time_is_up => bail!("not done within --timeout {limit:?}"),
        signal = interrupted() => Err(signal),
    }
}

/// Resolves when the user (SIGINT) or the system (SIGTERM) wants the program to end.
async fn interrupted() -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Without a handler the signal ends the program by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => anyhow::anyhow!("interrupted"),
        () = wait(SignalKind::terminate()) => anyhow::anyhow!("terminated"),
    }
}

/// The log of the libraries. `--debug` shows every request to a registry; what HTTP libraries say
/// is never shown, because it could hold credentials.
fn log_to_stderr(debug: bool) {
    telemetry::init_text(if debug {
        telemetry::Level::Trace
    } else {
        telemetry::Level::Warn
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
