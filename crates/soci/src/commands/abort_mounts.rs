//! `soci abort-mounts`: ends the mounts that wait for a daemon which does not come back.

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_fuse::{StaleMount, stale_mounts_below};
use soci_holder::HolderClient;
use soci_store::RootLock;

use crate::global::Global;
use crate::output;

/// Immediately give up the mounts that wait for a daemon
///
/// While no daemon serves, a holder process keeps the lazy layers' mounts, and reads from them
/// wait. If no daemon comes, the holder gives them up after `[holder] abandon_after_sec`. This
/// does it now, so that containers and pods can end and a node can shut down: waiting reads get an
/// error, and containers on these layers have to be started again. It refuses while a daemon
/// serves.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  systemctl stop soci-snapshotter && soci abort-mounts
  soci abort-mounts --unmount     # as `make uninstall` does")]
pub(crate) struct AbortMounts {
    /// Do it even while a daemon serves: every read from its lazy layers fails from then on
    #[arg(long)]
    force: bool,

    /// Also unmount the lazy layers below the root folder
    #[arg(long)]
    unmount: bool,
}

impl AbortMounts {
    pub(crate) fn run(&self, global: &Global) -> anyhow::Result<()> {
        let root = &global.root;
        if !rustix::process::geteuid().is_root() {
            bail!("mounts are given up by root only: run this as root");
        }
        if !root.is_dir() {
            bail!("there is no folder {}: is --root right?", root.display());
        }
        self.refuse_while_served(root)?;
        let mounts = stale_mounts_below(&root.join("snapshotter"))
            .context("cannot see which mounts there are (/proc/self/mountinfo)")?;
        let kept = match HolderClient::look(root)? {
            Some(holder) => {
                let kept = holder.abandon(self.force)?;
                if holder.info().server.is_none() {
                    // What else it has, the journal and perhaps a socket, belongs to what was given up.
                    holder.quit()?;
                }
                kept
            }
            None => 0,
        };
        // The service manager, or a daemon that still runs, may have copies of what the holder closed.
        for mount in &mounts {
            end(mount, self.unmount)?;
        }
        output::line(outcome(root, kept, mounts.len(), self));
        Ok(())
    }

    fn refuse_while_served(&self, root: &Path) -> anyhow::Result<()> {
        let server = match RootLock::owner(root)? {
            Some(owner) => Some(owner.server),
            // One that is just ending.
            None => HolderClient::look(root)?.and_then(|holder| holder.info().server),
        };
        match server {
            Some(pid) if !self.force => bail!(
                "soci-snapshotter-grpc (process {pid}) serves the mounts of {}: stop it first \
                 (systemctl stop soci-snapshotter), or use --force, with which every read from its \
                 lazy layers fails",
                root.display()
            ),
            _ => Ok(()),
        }
    }
}

fn end(mount: &StaleMount, unmount: bool) -> anyhow::Result<()> {
    if unmount {
        return Ok(mount.detach()?);
    }
    mount.abort().with_context(|| {
        format!(
            "cannot end the FUSE connection of {}",
            mount.mountpoint.display()
        )
    })
}

/// What was done to `kept` connections of the holder and to `mounts` of the table.
fn outcome(root: &Path, kept: usize, mounts: usize, asked: &AbortMounts) -> String {
    let root = root.display();
    let gave_up = format!("gave up {}", number(kept.max(mounts), "mount"));
    match (kept, mounts) {
        (0, 0) => format!("no mount waits for a daemon below {root}"),
        (_, mounts) if asked.unmount => format!("{gave_up}, unmounted {mounts}"),
        // They were given up before.
        (0, mounts) if !asked.force => format!(
            "no mount waits for a daemon; {} dead below {root}: the next daemon replaces them, \
             --unmount removes them",
            match mounts {
                1 => "1 mount is".to_owned(),
                count => format!("{count} mounts are"),
            }
        ),
        _ => format!("{gave_up}; containers on them get errors and have to be started again"),
    }
}

/// `1 mount`, `2 mounts`.
pub(crate) fn number(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}
