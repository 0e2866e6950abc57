//! What outlives a server and is with the holder: its connections, their journal, its socket.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use soci_config::Config;
use soci_fuse::{ExitKind, Journal};
use soci_holder::{ABANDONED_FILE, Abandoned, HeldFd, HolderClient, Keeper, KeeperConfig};

use crate::args::HOLDER_ARGUMENT;
use crate::control::Predecessor;
use crate::{descriptor_store, holder_keys};

/// What an earlier server left, and the holder for the next one.
pub(crate) struct Inherited {
    /// `None`: without a holder mounts do not survive this server.
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) socket: Option<HeldFd>,
    pub(crate) credentials: Option<HeldFd>,
    pub(crate) connections: Vec<HeldFd>,
}

/// Becomes the server of the root folder's holder. Blocks while a holder is started.
pub(crate) fn open(
    root: &Path,
    config: &Config,
    predecessor: Predecessor,
) -> anyhow::Result<Inherited> {
    log_abandoned(root);
    let (keeper, held) = connect(root, config)?;
    let mut journal = None;
    let mut socket = None;
    let mut credentials = None;
    let mut connections = Vec::new();
    for item in held {
        match item.key.as_str() {
            holder_keys::JOURNAL => journal = Some(item.descriptor),
            holder_keys::SOCKET => socket = Some(item),
            holder_keys::CREDENTIALS => credentials = Some(item),
            _ => connections.push(item),
        }
    }
    let journal = match journal {
        Some(memory) => Journal::take_over(memory, exit_kind(predecessor)).and_then(|journal| {
            // A server that hands over has to read it again if this one fails.
            match predecessor {
                Predecessor::Serving => Ok(journal),
                _ => journal.in_current_format(),
            }
        }),
        None => Journal::create(),
    };
    let journal = journal.context(
        "cannot adopt the requests that an earlier daemon left; start the version that left them, or \
         stop this one and give the mounts up with `soci abort-mounts`",
    )?;
    if let Some(keeper) = &keeper {
        let memory = journal.descriptor().context("too many open files")?;
        keeper.put(holder_keys::JOURNAL, "", memory);
    }
    Ok(Inherited {
        keeper,
        journal,
        socket,
        credentials,
        connections,
    })
}

fn connect(root: &Path, config: &Config) -> anyhow::Result<(Option<Arc<Keeper>>, Vec<HeldFd>)> {
    // A running holder may have mounts for us, whatever the configuration says by now.
    if !config.holder.enable && HolderClient::look(root)?.is_none() {
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
        Ok((keeper, held)) => Ok((Some(keeper), held)),
        Err(
            error @ (soci_holder::HolderError::Spawn(_) | soci_holder::HolderError::Path { .. }),
        ) => {
            tracing::error!(
                error = %error,
                "no holder: containers on lazy layers do not survive the daemon"
            );
            Ok((None, Vec::new()))
        }
        Err(error) => Err(error).context("cannot adopt what an earlier daemon left"),
    }
}

const fn exit_kind(predecessor: Predecessor) -> ExitKind {
    match predecessor {
        Predecessor::Serving => ExitKind::Planned,
        // By the kernel because memory was short, or by an operator together with its supervisor.
        Predecessor::Killed | Predecessor::Unknown => ExitKind::Killed,
        Predecessor::Crashed => ExitKind::Crashed,
    }
}

/// Logs that a holder gave mounts up because no server came.
fn log_abandoned(root: &Path) {
    let path = root.join(ABANDONED_FILE);
    let Ok(text) = std::fs::read(&path) else {
        return;
    };
    match serde_json::from_slice::<Abandoned>(&text) {
        Ok(abandoned) => tracing::error!(
            connections = abandoned.connections,
            at = abandoned.at,
            reason = abandoned.reason,
            "the mounts of an earlier daemon were given up: containers on them have to be restarted"
        ),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "cannot read the note of a holder")
        }
    }
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), error = %error, "cannot remove the note of a holder");
    }
}
