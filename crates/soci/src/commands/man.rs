//! `soci man`: the manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use soci_manual::ManualPage;

use crate::cli::Cli;
use crate::manual_pages;

/// Write the manual pages of all commands to a folder
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci man /usr/local/share/man/man1    # as `make install` does
  soci man . && man ./soci-pull.1")]
pub(crate) struct Man {
    /// The folder, which is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let pages: Vec<ManualPage> = manual_pages::of(Cli::command());
        Ok(soci_manual::write(&pages, &self.folder)?)
    }
}
