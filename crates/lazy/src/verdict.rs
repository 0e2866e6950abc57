//! The result of verifying a layer, in memory and beside the layer on disk.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use soci_containerd::labels::ChainPosition;
use soci_oci::Digest;
use soci_store::StoredLayer;

/// Greatest number of positions that are remembered per layer.
const MAX_CLAIMS: usize = 16;

/// The result of verifying a layer. Layer and zTOC are named by their digests: it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The zTOC describes the layer.
    Genuine {
        /// Digest of the whole uncompressed layer.
        diff_id: Digest,
    },
    /// The zTOC describes another layer.
    Forged {
        /// What differs.
        reason: String,
    },
}

impl Verdict {
    /// Returns why a layer must not be used at a position, if so.
    pub(crate) fn objection(&self, position: Option<&ChainPosition>) -> Option<String> {
        match (self, position) {
            (Self::Forged { reason }, _) => Some(reason.clone()),
            (Self::Genuine { diff_id }, Some(position)) if !position.is_of(diff_id) => {
                Some(format!(
                    "its diff ID {diff_id} is not the one that the image's configuration names"
                ))
            }
            (Self::Genuine { .. }, _) => None,
        }
    }
}

/// What is known about whether an open layer is what its digests say.
#[derive(Debug, Default)]
pub(crate) struct Verification {
    verdict: Mutex<Option<Verdict>>,
    /// The positions that clients keep the layer at: its diff ID must fit.
    claims: Mutex<Vec<ChainPosition>>,
    /// Held while the layer is verified.
    pub(crate) running: tokio::sync::Mutex<()>,
    /// Number of clients that wait for the verdict.
    clients: AtomicUsize,
}

impl Verification {
    /// Loads the result of an earlier verification, if there was one. Blocks on the disk.
    pub(crate) fn of(stored: &StoredLayer) -> Self {
        let verdict = stored.verdict();
        let verdict = verdict.and_then(|text| serde_json::from_str(&text).ok());
        Self {
            verdict: Mutex::new(verdict),
            ..Self::default()
        }
    }

    /// Returns the result, if the layer has been verified.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict.lock().clone()
    }

    /// Records the result. Blocks on the disk; if that fails, the layer is verified again after a
    /// restart.
    pub(crate) fn decide(&self, stored: &StoredLayer, verdict: Verdict) {
        let text = serde_json::to_string(&verdict).unwrap_or_default();
        if let Err(error) = stored.set_verdict(&text) {
            tracing::warn!(layer = %stored.digest(), %error, "cannot store the result of verifying a layer");
        }
        *self.verdict.lock() = Some(verdict);
    }

    /// Records that a client waits for the verdict, until the guard is dropped.
    pub(crate) fn wait_for_verdict(&self) -> WaitingClient<'_> {
        self.clients.fetch_add(1, Ordering::Relaxed);
        WaitingClient(&self.clients)
    }

    /// Whether a client waits for the verdict.
    pub(crate) fn is_awaited(&self) -> bool {
        self.clients.load(Ordering::Relaxed) > 0
    }

    /// Remembers that a client keeps the layer at a position.
    pub(crate) fn claim(&self, position: ChainPosition) {
        let mut claims = self.claims.lock();
        if claims.len() < MAX_CLAIMS && !claims.contains(&position) {
            claims.push(position);
        }
    }

    /// Whether any position is known.
    pub(crate) fn is_claimed(&self) -> bool {
        !self.claims.lock().is_empty()
    }

    /// Whether the diff ID fits a position that a client keeps the layer at.
    pub(crate) fn is_expected(&self, diff_id: &Digest) -> bool {
        self.claims.lock().iter().any(|claim| claim.is_of(diff_id))
    }
}

/// A client that waits for the verdict about a layer.
pub(crate) struct WaitingClient<'a>(&'a AtomicUsize);

impl Drop for WaitingClient<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
