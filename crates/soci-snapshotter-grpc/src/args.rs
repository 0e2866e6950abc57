//! The command line and its environment variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use soci_telemetry::Level;

/// Where the daemon listens by default.
pub(crate) const DEFAULT_SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// The version as it is printed and logged: `v1.0.0`.
pub(crate) const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// The git commit that was built.
pub(crate) const REVISION: &str = env!("REVISION");

/// containerd snapshotter that starts containers before their images have arrived.
#[derive(Debug, Parser)]
#[command(
    name = "soci-snapshotter-grpc",
    disable_version_flag = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "\
Examples:
  soci-snapshotter-grpc
  soci-snapshotter-grpc --log-level debug --root /data/soci --address /run/soci.sock
  soci-snapshotter-grpc --config ./config.toml config dump

  soci-snapshotter-grpc upgrade

Containers keep running while it is restarted, killed or upgraded: their requests wait for the next
server. SIGTERM ends it and leaves the mounts to the next start; SIGINT (Ctrl-C) unmounts everything."
)]
pub(crate) struct Args {
    /// Socket to listen on: a path, unix://PATH, or fd:// for the one that systemd passes
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_ADDRESS", hide_env_values = true,
        default_value = DEFAULT_SOCKET)]
    pub(crate) address: String,

    /// Configuration file; only the default one may be missing
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_CONFIG", hide_env_values = true,
        default_value = soci_config::DEFAULT_PATH)]
    pub(crate) config: PathBuf,

    /// What to log: trace, debug, info, warn, error, fatal or panic
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_LOG_LEVEL", hide_env_values = true,
        default_value_t = Level::Info)]
    pub(crate) log_level: Level,

    /// Folder of the snapshots and of all fetched data
    #[arg(
        long,
        global = true,
        env = "SOCI_SNAPSHOTTER_ROOT",
        hide_env_values = true,
        default_value = "/var/lib/soci-snapshotter-grpc/"
    )]
    pub(crate) root: PathBuf,

    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Show the configuration
    Config {
        #[command(subcommand)]
        show: ConfigCommand,
    },
    /// Make the running daemon hand over to the installed program; containers keep running
    ///
    /// The new program first checks that it can serve every mount. If anything fails the old one keeps
    /// serving, and the command prints why.
    Upgrade,
    /// Write the manual pages, of this program and of its configuration file, to a folder
    Man {
        /// The folder, which is created if it does not exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Serve, under the supervisor or without one
    #[command(hide = true)]
    ServerProcess,
    /// Become the process that holds the mounts
    #[command(hide = true)]
    HolderProcess,
    /// Become the process that reads files of layers into the page cache
    #[command(hide = true)]
    PageCacheProcess,
}

/// The subcommand that becomes a holder.
pub(crate) const HOLDER_ARGUMENT: &str = "holder-process";
/// The subcommand that is a server.
pub(crate) const SERVER_ARGUMENT: &str = "server-process";

/// The subcommand that reads files into the page cache.
pub(crate) const PAGE_CACHE_ARGUMENT: &str = "page-cache-process";

/// What a process of this program does.
pub(crate) enum Role<'a> {
    /// Keeps a server running: what the service manager starts.
    Supervisor,
    /// Serves containerd.
    Server,
    /// Holds the mounts while there is no server.
    Holder,
    /// Reads files of layers into the page cache.
    PageCache,
    PrintVersion,
    PrintConfig(ConfigCommand),
    RequestUpgrade,
    WriteManual(&'a Path),
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the defaults as TOML
    Default,
    /// Print the effective configuration of the file given by --config, as TOML
    Dump,
}

impl Args {
    /// Reads the process's command line.
    ///
    /// # Errors
    /// If it is invalid, or requests help: the error is the text to print.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        Self::try_parse_from(std::env::args_os().map(with_two_dashes))
    }

    /// The role that the command line requests.
    pub(crate) fn role(&self) -> Role<'_> {
        if self.version {
            return Role::PrintVersion;
        }
        match &self.command {
            None => Role::Supervisor,
            Some(Command::ServerProcess) => Role::Server,
            Some(Command::HolderProcess) => Role::Holder,
            Some(Command::PageCacheProcess) => Role::PageCache,
            Some(Command::Config { show }) => Role::PrintConfig(*show),
            Some(Command::Upgrade) => Role::RequestUpgrade,
            Some(Command::Man { folder }) => Role::WriteManual(folder),
        }
    }

    /// The line that `--version` prints.
    pub(crate) fn version_line() -> String {
        format!("soci-snapshotter-grpc version {VERSION} {REVISION}")
    }
}

/// Accepts flags with one dash, as v0.15 and other Go programs do.
fn with_two_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else {
        return argument;
    };
    let name = text.split('=').next().unwrap_or(text);
    match name {
        "-address" | "-config" | "-log-level" | "-root" | "-version" | "-help" => {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let args = ["soci-snapshotter-grpc"]
            .iter()
            .chain(args)
            .map(OsString::from);
        Args::try_parse_from(args.map(with_two_dashes))
    }

    #[test]
    fn flags_stand_before_and_after_the_subcommand_with_one_dash_or_two() {
        for args in [
            &["--config", "/c", "--log-level=fatal", "config", "dump"][..],
            &["config", "dump", "-config=/c", "-log-level", "fatal"][..],
        ] {
            let args = parse(args).unwrap();
            assert_eq!((args.config, args.log_level), ("/c".into(), Level::Fatal));
            assert!(matches!(
                args.command,
                Some(Command::Config {
                    show: ConfigCommand::Dump
                })
            ));
        }
    }

    #[test]
    fn a_bad_level_names_the_good_ones() {
        let message = parse(&["--log-level", "loud"]).unwrap_err().to_string();
        assert!(
            message.contains("trace, debug, info, warn, error, fatal or panic"),
            "{message}"
        );
    }
}
