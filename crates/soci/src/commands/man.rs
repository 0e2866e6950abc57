//! `soci man`: the manual pages.

use std::path::PathBuf;

use clap::{Args, Command};
use soci_manual::ManualPage;

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
    /// Writes the pages of the command line `soci`.
    pub(crate) fn run(&self, soci: Command) -> anyhow::Result<()> {
        let pages: Vec<ManualPage> = manual_pages::of(soci);
        Ok(soci_manual::write(&pages, &self.folder)?)
    }
}
