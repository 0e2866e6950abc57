//! What outlives a server: its connections, their journal, its socket.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use soci_config::Config;
use soci_fuse::{ExitKind, Journal};
use soci_holder::{ABANDONED_FILE, Abandoned, Client, HeldFd, Keeper, KeeperConfig};

use crate::HOLDER_ARGUMENT;
use crate::control::Predecessor;
use crate::{descriptor_store, listen, vault};

/// The journal's name with the holder.
pub(crate) const JOURNAL: &str = "journal";

/// What an earlier server left, and where ours is left.
pub(crate) struct Holding {
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) socket: Option<HeldFd>,
    pub(crate) credentials: Option<HeldFd>,
    pub(crate) connections: Vec<HeldFd>,
}

/// Becomes the server of the root folder's holder.
pub(crate) fn open(
    root: &Path,
    config: &Config,
    predecessor: Predecessor,
) -> anyhow::Result<Holding> {
    tell_abandoned(root);
    let (keeper, kept) = reach(root, config)?;
    let mut journal = None;
    let mut socket = None;
    let mut credentials = None;
    let mut connections = Vec::new();
    for item in kept {
        match item.key.as_str() {
            JOURNAL => journal = Some(item.descriptor),
            listen::HOLDER_KEY => socket = Some(item),
            vault::HOLDER_KEY => credentials = Some(item),
            _ => connections.push(item),
        }
    }
    let journal = match journal {
        Some(memory) => Journal::take_over(memory, exit_kind(predecessor)),
        None => Journal::create(),
    };
    let journal = journal.context(
        "the requests that an earlier daemon left cannot be taken over; start the version that left \
         them, or stop this one and give the mounts up with `soci abort-mounts`",
    )?;
    if let Some(keeper) = &keeper {
        let memory = journal.descriptor().context("too many open files")?;
        keeper.put(JOURNAL, "", memory);
    }
    Ok(Holding {
        keeper,
        journal,
        socket,
        credentials,
        connections,
    })
}

fn reach(root: &Path, config: &Config) -> anyhow::Result<(Option<Arc<Keeper>>, Vec<HeldFd>)> {
    // One that is there has something for us, whatever the configuration says by now.
    if !config.holder.enable && Client::look(root)?.is_none() {
        tracing::warn!(
            "[holder] enable = false: containers on lazy layers do not survive the daemon"
        );
        return Ok((None, Vec::new()));
    }
    let opened = Keeper::open(KeeperConfig {
        root: root.to_owned(),
        argument: HOLDER_ARGUMENT,
        abandon_after: config.holder.abandon_after,
        backup: descriptor_store::find(),
    });
    match opened {
        Ok((keeper, kept)) => Ok((Some(keeper), kept)),
        Err(
            error @ (soci_holder::HolderError::Spawn(_) | soci_holder::HolderError::Path { .. }),
        ) => {
            tracing::error!(
                error = %error,
                "there is no holder: containers on lazy layers do not survive the daemon"
            );
            Ok((None, Vec::new()))
        }
        Err(error) => Err(error).context("what an earlier daemon left cannot be taken over"),
    }
}

const fn exit_kind(predecessor: Predecessor) -> ExitKind {
    match predecessor {
        Predecessor::Serving => ExitKind::Planned,
        // Perhaps the machine's memory was short, or somebody killed it and its supervisor.
        Predecessor::Killed | Predecessor::Unknown => ExitKind::Killed,
        Predecessor::Crashed => ExitKind::Crashed,
    }
}

/// Says what a holder did that waited in vain.
fn tell_abandoned(root: &Path) {
    let path = root.join(ABANDONED_FILE);
    let Ok(text) = std::fs::read(&path) else {
        return;
    };
    match serde_json::from_slice::<Abandoned>(&text) {
        Ok(words) => tracing::error!(
            connections = words.connections,
            at = words.at,
            reason = words.reason,
            "the mounts of an earlier daemon were given up: containers on them have to be restarted"
        ),
        Err(error) => tracing::warn!(path = %path.display(), error = %error, "cannot be read"),
    }
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), error = %error, "cannot be removed");
    }
}
