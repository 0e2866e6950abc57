//! The command line: global flags, commands, and how they are run.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    abort_mounts, cat, check, completion, convert, create, index, ls, man, mount, prefetch, pull,
    push, rebuild_db, status, ztoc,
};
use crate::global::Global;
use crate::interrupt::limited;
use crate::{go_flags, output};

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
    // Of a flag that is given twice the last counts, as it always did.
    args_override_self = true,
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
    global: Global,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Convert),
    Create(create::Create),
    Push(push::Push),
    Pull(pull::Pull),
    Status(status::Status),
    AbortMounts(abort_mounts::AbortMounts),
    #[command(subcommand)]
    Index(index::IndexCommand),
    #[command(subcommand)]
    Ztoc(ztoc::ZtocCommand),
    #[command(subcommand)]
    Prefetch(prefetch::PrefetchCommand),
    RebuildDb(rebuild_db::RebuildDb),
    Check(check::Check),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Mount(mount::Mount),
    Completion(completion::Completion),
    Man(man::Man),
}

impl Command {
    /// The log targets that its flags ask for.
    fn http_log(&self) -> &'static [&'static str] {
        match self {
            Self::Convert(command) => command.http_log(),
            Self::Create(command) => command.http_log(),
            Self::Push(command) => command.http_log(),
            Self::Pull(command) => command.http_log(),
            Self::Check(command) => command.http_log(),
            Self::Ls(command) => command.http_log(),
            Self::Cat(command) => command.http_log(),
            Self::Mount(command) => command.http_log(),
            Self::Status(_)
            | Self::AbortMounts(_)
            | Self::Index(_)
            | Self::Ztoc(_)
            | Self::Prefetch(_)
            | Self::RebuildDb(_)
            | Self::Completion(_)
            | Self::Man(_) => &[],
        }
    }
}

/// Reads the arguments (the program first) and runs the command.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_else(|| "soci".into());
    let arguments = go_flags::normalized(&Cli::command(), arguments);
    let cli = match Cli::try_parse_from(std::iter::once(program).chain(arguments)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            output::text(error.render().to_string());
            return Ok(());
        }
        // A group of commands without one of them shows its help, which is no failure.
        Err(error)
            if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
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
    let global = cli.global;
    log_to_stderr(global.debug, command.http_log());
    let timeout = global.timeout;
    match command {
        Command::Completion(command) => {
            command.run(Cli::command());
            Ok(())
        }
        Command::Man(command) => command.run(Cli::command()),
        Command::AbortMounts(command) => command.run(&global),
        // These clean up after their work, so they limit the work themselves.
        Command::Convert(command) => block_on(command.run(&global)),
        Command::Create(command) => block_on(command.run(&global)),
        Command::Pull(command) => block_on(command.run(&global)),
        Command::Mount(command) => block_on(command.run(&global)),
        Command::Push(command) => block_on(limited(timeout, command.run(&global))),
        Command::Status(command) => block_on(limited(timeout, command.run(&global))),
        Command::Index(command) => block_on(limited(timeout, Box::pin(command.run(&global)))),
        Command::Ztoc(command) => block_on(limited(timeout, Box::pin(command.run(&global)))),
        Command::Prefetch(command) => block_on(limited(timeout, Box::pin(command.run(&global)))),
        Command::RebuildDb(command) => block_on(limited(timeout, Box::pin(command.run(&global)))),
        Command::Check(command) => block_on(limited(timeout, Box::pin(command.run()))),
        Command::Ls(command) => block_on(limited(timeout, Box::pin(command.run()))),
        Command::Cat(command) => block_on(limited(timeout, Box::pin(command.run()))),
    }
}

/// Runs a command to its end on a runtime of its own.
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

/// The log of the libraries. `--debug` shows every request to a registry; what HTTP libraries say
/// is never shown, because it could hold credentials.
fn log_to_stderr(debug: bool, targets: &'static [&'static str]) {
    let level = if debug {
        soci_telemetry::Level::Trace
    } else {
        soci_telemetry::Level::Warn
    };
    soci_telemetry::init_text_with(level, targets);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
