//! What the directories in `snapshots/` are called.

use std::fmt;

/// A directory in `snapshots/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// `<id>`: a snapshot's own.
    Snapshot(u64),
    /// `<layer>_<snapshot>`: a layer as one snapshot sees it; see [`Lowers`](crate::lowers::Lowers).
    Apart {
        /// Id of the layer's snapshot.
        layer: u64,
        /// Id of the snapshot on top of it.
        snapshot: u64,
    },
}

impl Place {
    /// The place with this name; others are nobody's business.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name.split_once('_') {
            None => Some(Self::Snapshot(name.parse().ok()?)),
            Some((layer, snapshot)) => Some(Self::Apart {
                layer: layer.parse().ok()?,
                snapshot: snapshot.parse().ok()?,
            }),
        }
    }

    /// The snapshot that this is a part of, and goes with.
    pub(crate) const fn snapshot(self) -> u64 {
        match self {
            Self::Snapshot(snapshot) | Self::Apart { snapshot, .. } => snapshot,
        }
    }
}

impl From<u64> for Place {
    fn from(id: u64) -> Self {
        Self::Snapshot(id)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "{id}"),
            Self::Apart { layer, snapshot } => write!(f, "{layer}_{snapshot}"),
        }
    }
}
