//! `--version` and `config …`: output instead of serving.

use std::io::Write as _;

use anyhow::Context as _;
use soci_config::Config;

use crate::args::{Args, ConfigCommand};

/// Prints one line on stdout.
pub(crate) fn version() -> anyhow::Result<()> {
    print(&(Args::version_line() + "\n"))
}

/// Prints a configuration on stdout.
pub(crate) fn configuration(what: ConfigCommand, args: &Args) -> anyhow::Result<()> {
    let config = match what {
        ConfigCommand::Default => Config::default(),
        ConfigCommand::Dump => {
            let loaded = Config::load(&args.config)?;
            loaded
                .warnings
                .iter()
                .for_each(|warning| tracing::warn!("{warning}"));
            loaded.config
        }
    };
    print(&config.to_toml())
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to stdout")
}
