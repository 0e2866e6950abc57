//! `soci profile export`.

use std::path::PathBuf;

use clap::Args;

use crate::global::Global;
use crate::profiles::{self, ProfileName};

/// Write a start-up profile of this node to a file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci profile export -o app.profile registry.example/app:1-soci
  soci profile export registry.example/app:1-soci | ssh node2 soci profile import -")]
pub(crate) struct Export {
    /// The image, or the digest of its manifest
    #[arg(value_name = "REF")]
    name: ProfileName,

    /// The file to write (-: stdout)
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

impl Export {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let stored = profiles::known(global, &self.name)?;
        profiles::write(&stored.profile, &self.output)
    }
}
