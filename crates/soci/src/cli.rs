//! The command line: global flags, commands, and how they are run.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use crate::commands::abort_mounts::AbortMounts;
use crate::commands::cat::Cat;
use crate::commands::check::Check;
use crate::commands::completion::Completion;
use crate::commands::convert::Convert;
use crate::commands::create::Create;
use crate::commands::gc::Gc;
use crate::commands::index::IndexCommand;
use crate::commands::index_builder::IndexBuilderCommand;
use crate::commands::ls::Ls;
use crate::commands::man::Man;
use crate::commands::mount::Mount;
use crate::commands::node::NodeCommand;
use crate::commands::prefetch::PrefetchCommand;
use crate::commands::profile::ProfileCommand;
use crate::commands::pull::Pull;
use crate::commands::push::Push;
use crate::commands::rebuild_db::RebuildDb;
use crate::commands::status::Status;
use crate::commands::wait::Wait;
use crate::commands::ztoc::ZtocCommand;
use crate::global::Global;
use crate::index_args::IndexingArgs;
use crate::interrupt::limited;
use crate::remote::RemoteArgs;
use crate::{go_flags, output, usage_error};

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
    Convert(Convert),
    Create(Create),
    Push(Push),
    Pull(Pull),
    Status(Status),
    Wait(Wait),
    Gc(Gc),
    AbortMounts(AbortMounts),
    #[command(subcommand)]
    Index(IndexCommand),
    #[command(subcommand)]
    IndexBuilder(IndexBuilderCommand),
    #[command(subcommand)]
    Ztoc(ZtocCommand),
    #[command(subcommand)]
    Prefetch(PrefetchCommand),
    #[command(subcommand)]
    Profile(ProfileCommand),
    RebuildDb(RebuildDb),
    Check(Check),
    Ls(Ls),
    Cat(Cat),
    Mount(Mount),
    #[command(subcommand)]
    Node(NodeCommand),
    Completion(Completion),
    Man(Man),
}

/// A command that has not begun.
struct Work<'a> {
    /// The log targets that its flags request.
    http_log: &'static [&'static str],
    /// Whether signals and `--timeout` are its own affair, because it cleans up after its work.
    limits_itself: bool,
    /// Whether it is a service, which logs as the daemon does.
    is_service: bool,
    run: LocalBoxFuture<'a, anyhow::Result<()>>,
}

impl<'a> Work<'a> {
    /// Work that signals and `--timeout` end.
    fn limited(run: impl Future<Output = anyhow::Result<()>> + 'a) -> Self {
        Self {
            http_log: &[],
            limits_itself: false,
            is_service: false,
            run: run.boxed_local(),
        }
    }

    /// Work that ends by itself.
    fn unlimited(run: impl Future<Output = anyhow::Result<()>> + 'a) -> Self {
        Self {
            limits_itself: true,
            ..Self::limited(run)
        }
    }

    fn logging(self, http_log: &'static [&'static str]) -> Self {
        Self { http_log, ..self }
    }
}

impl Command {
    /// Reads what the flags refer to (a password on stdin). The command begins when it is polled.
    fn prepare(self, global: &Global) -> anyhow::Result<Work<'_>> {
        let http_log = match &self {
            Self::Convert(Convert {
                indexing: IndexingArgs { registry, .. },
                ..
            })
            | Self::Create(Create {
                indexing: IndexingArgs { registry, .. },
                ..
            })
            | Self::Push(Push { registry, .. })
            | Self::Pull(Pull { registry, .. })
            | Self::Check(Check {
                remote: RemoteArgs { registry, .. },
                ..
            })
            | Self::Ls(Ls {
                remote: RemoteArgs { registry, .. },
                ..
            })
            | Self::Cat(Cat {
                remote: RemoteArgs { registry, .. },
                ..
            })
            | Self::Mount(Mount {
                remote: RemoteArgs { registry, .. },
                ..
            }) => registry.prepare()?,
            Self::IndexBuilder(command) => match command.registry() {
                Some(registry) => registry.prepare()?,
                None => &[],
            },
            Self::Profile(command) => match command.registry() {
                Some(registry) => registry.prepare()?,
                None => &[],
            },
            _ => &[],
        };
        let is_service = matches!(&self, Self::IndexBuilder(command) if command.is_service());
        let work = match self {
            Self::Convert(command) => Work::unlimited(command.run(global)),
            Self::Create(command) => Work::unlimited(command.run(global)),
            Self::Pull(command) => Work::unlimited(command.run(global)),
            Self::Mount(command) => Work::unlimited(command.run(global)),
            Self::Node(command) => Work::unlimited(command.prepare(global)?.run()),
            Self::AbortMounts(command) => Work::unlimited(async move { command.run(global) }),
            Self::Completion(command) => {
                Work::unlimited(async move { command.run(Cli::command()) })
            }
            Self::Man(command) => Work::unlimited(async move { command.run(Cli::command()) }),
            Self::Push(command) => Work::limited(command.run(global)),
            Self::Status(command) => Work::limited(command.run(global)),
            Self::Wait(command) => Work::unlimited(command.run(global)),
            Self::Gc(command) => Work::limited(command.run(global)),
            Self::Index(command) => Work::limited(command.run(global)),
            Self::IndexBuilder(command) => Work::unlimited(command.run(global)),
            Self::Ztoc(command) => Work::limited(command.run(global)),
            Self::Prefetch(command) => Work::limited(command.run(global)),
            Self::Profile(command) => Work::unlimited(command.run(global)),
            Self::RebuildDb(command) => Work::limited(command.run(global)),
            Self::Check(command) => Work::limited(command.run()),
            Self::Ls(command) => Work::limited(command.run()),
            Self::Cat(command) => Work::limited(command.run()),
        };
        Ok(Work {
            is_service,
            ..work.logging(http_log)
        })
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
            output::own_text(error.render().to_string());
            return Ok(());
        }
        // A group of commands without one of them shows its help, which is not a failure.
        Err(error)
            if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            output::own_text(error.render().to_string());
            return Ok(());
        }
        Err(error) => {
            return Err(output::Lines::of(&usage_error::text(error)).into());
        }
    };
    let Some(command) = cli.command else {
        output::own_text(Cli::command().render_help().to_string());
        return Ok(());
    };
    let global = cli.global;
    let work = command.prepare(&global)?;
    if work.is_service {
        let debug = global.debug || !work.http_log.is_empty();
        soci_telemetry::init(if debug {
            soci_telemetry::Level::Debug
        } else {
            soci_telemetry::Level::Info
        });
    } else {
        log_to_stderr(global.debug, work.http_log);
    }
    if work.limits_itself {
        block_on(work.run)
    } else {
        block_on(limited(global.timeout, work.run))
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
