//! `soci status`: how the daemon is, and what became of each image's layers.

mod table;
mod waiting;

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tokio::time::Instant;

use crate::global::Global;
use crate::output::{self, Lines};
use crate::snapshotter_args::SnapshotterArgs;
use crate::style::Style;

/// After this long without an answer it is looked whether there is a daemon at all: the holder keeps its
/// socket too, so that calls wait instead of failing.
const SILENCE: Duration = Duration::from_secs(1);

/// Longer than any start of a daemon takes that can answer at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Show the snapshotter daemon, its images and layers
///
/// For each layer: whether it is lazy (mounted, fetched as it is read), local (unpacked by the
/// daemon) or deferred (unpacked by the client), why it is not lazy, how much of it has been
/// fetched, and what went wrong last. For each image: how much of it is stored, whether it needs
/// its registry any more, and what filling it does or waits for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci status
  soci status --json | jq '.images[].layers[] | select(.health == \"broken\")'")]
pub(crate) struct Status {
    #[command(flatten)]
    snapshotter: SnapshotterArgs,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let status = answer(self.snapshotter.socket(), &global.root).await?;
        if self.json {
            return output::json(&status);
        }
        output::page(&table::render(&status, Style::of_stdout()));
        Ok(())
    }
}

/// The daemon's answer; without a daemon, what waits for one.
async fn answer(socket: &Path, root: &Path) -> anyhow::Result<soci_status::api::GetResponse> {
    let mut asked = std::pin::pin!(soci_status::get(socket));
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        match tokio::time::timeout(SILENCE, &mut asked).await {
            Ok(Ok(status)) => return Ok(status),
            Ok(Err(error)) => match waiting::without_daemon(root) {
                Some(waits) => return Err(Lines::of(&format!("{error}\n{waits}")).into()),
                None => return Err(error.into()),
            },
            Err(_) => {
                if let Some(waits) = waiting::without_daemon(root) {
                    bail!("{waits}");
                }
            }
        }
    }
    bail!(
        "no snapshotter answers at {} within {} s, although its socket is kept; is soci-snapshotter-grpc \
         running, and is --root the daemon's?",
        socket.display(),
        PATIENCE.as_secs()
    )
}
