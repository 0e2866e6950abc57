//! The check before a hand-over: whether this program could serve what the old one serves. Changes
//! nothing.

use std::path::Path;

use anyhow::Context as _;
use soci_config::Config;
use soci_fuse::Journal;
use soci_holder::HolderClient;

use crate::holder_keys::JOURNAL;

/// Prefix of the folders for test mounts.
const SCRATCH: &str = "proof-";

/// Checks everything that the holder has against this program, and serves a mount of its own for a moment.
///
/// # Errors
/// If this program could not take over. The old server then keeps serving.
pub(crate) fn check(root: &Path, config: &Config) -> anyhow::Result<()> {
    let held = match HolderClient::look(root)? {
        Some(holder) => holder.list()?,
        None if config.holder.enable => anyhow::bail!(
            "no holder that could pass the mounts on; restart the daemon once containers are drained"
        ),
        None => Vec::new(),
    };
    let mut connections = Vec::new();
    for item in held {
        if item.key == JOURNAL {
            Journal::check(item.descriptor)?;
        } else {
            connections.push(item);
        }
    }
    let scratch = root.join(format!("{SCRATCH}{}", std::process::id()));
    std::fs::create_dir(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    let checked = soci_lazy::preflight(&root.join("soci/layers"), connections, &scratch);
    std::fs::remove_dir(&scratch)
        .with_context(|| format!("cannot remove {}", scratch.display()))?;
    let mounts = checked?;
    tracing::info!(mounts, "check passed: this program can serve all mounts");
    Ok(())
}

/// Removes the mounts of programs that died during their check.
pub(crate) fn clear_away(root: &Path) {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    for entry in entries {
        if !entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            continue;
        }
        let removed = soci_fuse::unmount(&entry.path())
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(std::fs::remove_dir(entry.path())?));
        if let Err(error) = removed {
            tracing::warn!(path = %entry.path().display(), error = %error, "cannot remove the test mount of an earlier hand-over");
        }
    }
}
