//! Before a hand-over: could this program serve what the old one serves? Nothing is changed meanwhile.

use std::path::Path;

use anyhow::Context as _;
use soci_config::Config;
use soci_fuse::Journal;
use soci_holder::Client;

use crate::holding::JOURNAL;

/// What the folders for mounts of our own begin with.
const SCRATCH: &str = "proof-";

/// Proves it.
///
/// # Errors
/// Why it could not. The old server goes on then.
pub(crate) fn prove(root: &Path, config: &Config) -> anyhow::Result<()> {
    let kept = match Client::look(root)? {
        Some(holder) => holder.list()?,
        None if config.holder.enable => anyhow::bail!(
            "there is no holder that could pass the mounts on; restart the daemon once containers are drained"
        ),
        None => Vec::new(),
    };
    let mut connections = Vec::new();
    for item in kept {
        if item.key == JOURNAL {
            Journal::check(item.descriptor)?;
        } else {
            connections.push(item);
        }
    }
    let scratch = root.join(format!("{SCRATCH}{}", std::process::id()));
    std::fs::create_dir(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    let proved = soci_lazy::prove(&root.join("soci/layers"), connections, &scratch);
    std::fs::remove_dir(&scratch)
        .with_context(|| format!("cannot remove {}", scratch.display()))?;
    let mounts = proved?;
    tracing::info!(mounts, "this program can serve what is mounted");
    Ok(())
}

/// Removes what a program left that died while it proved itself.
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
            tracing::warn!(path = %entry.path().display(), error = %error, "cannot be cleared away");
        }
    }
}
