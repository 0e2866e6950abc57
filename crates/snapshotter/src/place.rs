//! What the directories in `snapshots/` are called.

use std::fmt;

/// A directory in `snapshots/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// `<id>`: a snapshot's own.
    Snapshot(u64),
    /// `<layer>_<snapshot>`: a layer with the owners that it has for a container in a user namespace.
    Remapped {
        /// Id of the layer's snapshot.
        layer: u64,
        /// Id of the container's snapshot.
        snapshot: u64,
    },
    /// `<layer>-<snapshot>`: a layer as a snapshot sees it that is compared.
    Compared {
        /// Id of the layer's snapshot.
        layer: u64,
        /// Id of the snapshot on top of it.
        snapshot: u64,
    },
}

impl Place {
    /// The place with this name; others are nobody's business.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let both = |(layer, snapshot): (&str, &str)| {
            Some((layer.parse::<u64>().ok()?, snapshot.parse::<u64>().ok()?))
        };
        if let Some(names) = name.split_once('_') {
            let (layer, snapshot) = both(names)?;
            return Some(Self::Remapped { layer, snapshot });
        }
        if let Some(names) = name.split_once('-') {
            let (layer, snapshot) = both(names)?;
            return Some(Self::Compared { layer, snapshot });
        }
        Some(Self::Snapshot(name.parse().ok()?))
    }

    /// The snapshot that this is a part of, and goes with.
    pub(crate) const fn snapshot(self) -> u64 {
        match self {
            Self::Snapshot(snapshot)
            | Self::Remapped { snapshot, .. }
            | Self::Compared { snapshot, .. } => snapshot,
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
            Self::Remapped { layer, snapshot } => write!(f, "{layer}_{snapshot}"),
            Self::Compared { layer, snapshot } => write!(f, "{layer}-{snapshot}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_their_names_say() {
        let (layer, snapshot) = (3, 7);
        for (name, place) in [
            ("7", Place::Snapshot(7)),
            ("3_7", Place::Remapped { layer, snapshot }),
            ("3-7", Place::Compared { layer, snapshot }),
        ] {
            assert_eq!(Place::parse(name), Some(place));
            assert_eq!(place.to_string(), name);
            assert_eq!(place.snapshot(), 7);
        }
        for name in ["", "x", "3_", "-7", "3_7_1", "new-1"] {
            assert_eq!(Place::parse(name), None, "{name}");
        }
    }
}
