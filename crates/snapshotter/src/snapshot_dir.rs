//! The names of the directories in `snapshots/`.

use std::fmt;

/// A directory in `snapshots/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SnapshotDir {
    /// `<id>`: the directory of a snapshot.
    Snapshot(u64),
    /// `<layer>_<snapshot>`: a layer with the owners that a container in a user namespace sees.
    IdMapped {
        /// Id of the layer's snapshot.
        layer: u64,
        /// Id of the container's snapshot.
        snapshot: u64,
    },
    /// `<layer>-<snapshot>`: a layer for a snapshot that is compared.
    Compared {
        /// Id of the layer's snapshot.
        layer: u64,
        /// Id of the snapshot on top of it.
        snapshot: u64,
    },
}

impl SnapshotDir {
    /// Parses the name of a directory. `None` if it is not one of ours.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let both = |(layer, snapshot): (&str, &str)| {
            Some((layer.parse::<u64>().ok()?, snapshot.parse::<u64>().ok()?))
        };
        if let Some(names) = name.split_once('_') {
            let (layer, snapshot) = both(names)?;
            return Some(Self::IdMapped { layer, snapshot });
        }
        if let Some(names) = name.split_once('-') {
            let (layer, snapshot) = both(names)?;
            return Some(Self::Compared { layer, snapshot });
        }
        Some(Self::Snapshot(name.parse().ok()?))
    }

    /// Returns the id of the snapshot of the layer that this directory shows.
    pub(crate) const fn layer(self) -> u64 {
        match self {
            Self::Snapshot(layer) | Self::IdMapped { layer, .. } | Self::Compared { layer, .. } => {
                layer
            }
        }
    }

    /// Returns the id of the snapshot that this directory belongs to and is deleted with.
    pub(crate) const fn snapshot(self) -> u64 {
        match self {
            Self::Snapshot(snapshot)
            | Self::IdMapped { snapshot, .. }
            | Self::Compared { snapshot, .. } => snapshot,
        }
    }
}

impl From<u64> for SnapshotDir {
    fn from(id: u64) -> Self {
        Self::Snapshot(id)
    }
}

impl fmt::Display for SnapshotDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "{id}"),
            Self::IdMapped { layer, snapshot } => write!(f, "{layer}_{snapshot}"),
            Self::Compared { layer, snapshot } => write!(f, "{layer}-{snapshot}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_formatted() {
        let (layer, snapshot) = (3, 7);
        for (name, dir) in [
            ("7", SnapshotDir::Snapshot(7)),
            ("3_7", SnapshotDir::IdMapped { layer, snapshot }),
            ("3-7", SnapshotDir::Compared { layer, snapshot }),
        ] {
            assert_eq!(SnapshotDir::parse(name), Some(dir));
            assert_eq!(dir.to_string(), name);
            assert_eq!(dir.snapshot(), 7);
        }
        for name in ["", "x", "3_", "-7", "3_7_1", "new-1"] {
            assert_eq!(SnapshotDir::parse(name), None, "{name}");
        }
    }
}
