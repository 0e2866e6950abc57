//! `soci profile record`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::global::Global;
use crate::output;
use crate::profiles::{self, ProfileName};

/// Time between two looks at what the daemon has recorded.
const LOOK: Duration = Duration::from_millis(200);

/// Wait until the daemon has recorded a start of an image, and write the profile
///
/// The daemon records a start that follows a pull: begin this before the image is pulled, or before its first container
/// is started. A start ends when its container has read nothing new for ten seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci profile record -o app.profile registry.example/app:1-soci &
  nerdctl --snapshotter soci run --rm registry.example/app:1-soci /app --version
  wait")]
pub(crate) struct Record {
    /// The image, or the digest of its manifest
    #[arg(value_name = "REF")]
    name: ProfileName,

    /// The file to write (-: stdout)
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

impl Record {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let changed = || -> anyhow::Result<Option<SystemTime>> {
            let found = profiles::find(global, &self.name)?;
            Ok(found.map(|stored| stored.changed))
        };
        let before = changed()?;
        output::note(&format!("waiting for a start of {}", self.name));
        loop {
            tokio::time::sleep(LOOK).await;
            let found = profiles::find(global, &self.name)?;
            if let Some(stored) = found.filter(|stored| Some(stored.changed) != before) {
                return profiles::write(&stored.profile, &self.output);
            }
        }
    }
}
