//! `soci profile import`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use soci_oci::Digest;
use soci_profile::{MAX_SIZE, Profile};

use crate::global::Global;
use crate::output;
use crate::profiles;

/// Have this node play a start-up profile at the next pull of its image
///
/// It takes the place of what this node recorded of the image.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci profile import app.profile")]
pub(crate) struct Import {
    /// The profile (-: stdin)
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Play it for the image with this manifest, which has layers in common with the image it was recorded of
    #[arg(long, value_name = "DIGEST")]
    manifest: Option<Digest>,
}

impl Import {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut profile = match self.file.as_path() == Path::new("-") {
            true => {
                let mut bytes = Vec::new();
                let stdin = std::io::stdin().lock();
                // One byte more than allowed: a larger profile is refused for its size.
                stdin
                    .take(MAX_SIZE.saturating_add(1))
                    .read_to_end(&mut bytes)?;
                Profile::parse(&bytes)?
            }
            false => profiles::read(&self.file)?,
        };
        if let Some(manifest) = self.manifest {
            profile.manifest = manifest;
        }
        let files = profiles::of_node(global);
        let stored = files.replace(&profile);
        stored
            .with_context(|| format!("cannot store a profile below {}", global.root.display()))?;
        output::line(format!("{} {}", profile.manifest, profile.image));
        Ok(())
    }
}
