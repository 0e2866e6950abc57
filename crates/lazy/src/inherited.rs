//! Connections that an earlier process left with the holder. The note about each suffices to serve
//! it again, also when its snapshot is gone and only an open file keeps it alive.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use soci_fuse::{Connection, ConnectionFacts};
use soci_holder::HeldFd;
use soci_oci::{Descriptor, Digest};
use soci_ztoc::soci_index::ZtocDescriptor;

use crate::image_layer::ImageKey;
use crate::view::{NotedView, ViewOptions};

/// Format of a note. It changes when a field changes its meaning or is removed, not when one is added.
const VERSION: u32 = 1;

/// A note of the holder cannot be used. The daemon must not start then: the connections wait for a
/// version that can use it.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Another version of this program wrote it, in another format.
    #[error(
        "the notes about the mounts of running containers have format {found}, and this version of \
         the daemon reads format {VERSION}: start the earlier version again, or abandon the mounts \
         (and the containers on them) with `soci abort-mounts`"
    )]
    Version {
        /// Format of the note.
        found: u32,
    },
    /// It is not a note of this program.
    #[error("cannot parse the holder's note about the connection {key}: {source}")]
    Malformed {
        /// The holder's key of the connection.
        key: String,
        /// The cause.
        source: serde_json::Error,
    },
}

/// The note that is stored with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionNote {
    version: u32,
    pub(crate) facts: ConnectionFacts,
    image: NotedImage,
    /// The SOCI index that lists the zTOC.
    pub(crate) index: Digest,
    layer: Digest,
    ztoc: Digest,
    /// Size of the zTOC in bytes.
    ztoc_size: u64,
    layer_media_type: String,
    #[serde(rename = "look")]
    view: NotedView,
}

/// An [`ImageKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NotedImage {
    reference: String,
    manifest: Digest,
    explicit_index: Option<Digest>,
    namespace: String,
}

/// The part of a note that every version can parse.
#[derive(Deserialize)]
struct NoteVersion {
    version: u32,
}

impl ConnectionNote {
    pub(crate) fn new(
        facts: ConnectionFacts,
        image: &ImageKey,
        index: Digest,
        ztoc: &ZtocDescriptor,
        view: &ViewOptions,
    ) -> Self {
        Self {
            version: VERSION,
            facts,
            image: NotedImage {
                reference: image.reference.to_string(),
                manifest: image.manifest,
                explicit_index: image.explicit_index,
                namespace: image.namespace.clone(),
            },
            index,
            layer: ztoc.layer_digest,
            ztoc: ztoc.descriptor.digest,
            ztoc_size: ztoc.descriptor.size,
            layer_media_type: ztoc.layer_media_type.clone(),
            view: view.into(),
        }
    }

    fn parse(held: &HeldFd) -> Result<Self, InheritedError> {
        let malformed = |source| InheritedError::Malformed {
            key: held.key.clone(),
            source,
        };
        let NoteVersion { version } = serde_json::from_str(&held.note).map_err(malformed)?;
        if version != VERSION {
            return Err(InheritedError::Version { found: version });
        }
        serde_json::from_str(&held.note).map_err(malformed)
    }

    pub(crate) fn to_json(&self) -> String {
        // Serialisation cannot fail: there are no maps, and mount points are UTF-8.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the image of the layer; `None` if its reference is invalid.
    pub(crate) fn image(&self) -> Option<ImageKey> {
        Some(ImageKey {
            reference: self.image.reference.parse().ok()?,
            manifest: self.image.manifest,
            explicit_index: self.image.explicit_index,
            namespace: self.image.namespace.clone(),
        })
    }

    /// Returns how the connection shows the layer.
    pub(crate) fn view(&self) -> ViewOptions {
        (&self.view).into()
    }

    /// Returns the digest of the layer.
    pub(crate) const fn layer(&self) -> Digest {
        self.layer
    }

    /// Returns the zTOC as the index lists it.
    pub(crate) fn ztoc(&self) -> ZtocDescriptor {
        let media_type = soci_oci::media_types::ZTOC;
        ZtocDescriptor {
            descriptor: Descriptor::new(media_type, self.ztoc, self.ztoc_size),
            layer_digest: self.layer,
            layer_media_type: self.layer_media_type.clone(),
            span_size: None,
            disable_xattrs: self.view().disable_xattrs,
        }
    }
}

/// Returns the holder's key of a connection.
pub(crate) fn holder_key(facts: &ConnectionFacts) -> String {
    format!("{}{:016x}", soci_holder::CONNECTION_PREFIX, facts.key)
}

/// A connection of an earlier process that is not served yet.
pub(crate) struct InheritedConnection {
    pub(crate) note: ConnectionNote,
    pub(crate) connection: Connection,
}

impl InheritedConnection {
    /// Duplicates the descriptor, for a second attempt to serve the connection.
    pub(crate) fn duplicate(&self) -> std::io::Result<Self> {
        let facts = self.connection.facts().clone();
        Ok(Self {
            note: self.note.clone(),
            connection: Connection::from_parts(self.connection.duplicate()?, facts),
        })
    }
}

/// The connections that are not served yet, by mount point. A mount point that was used again has
/// several: the earlier ones are not mounted any more, but may still be open.
#[derive(Default)]
pub(crate) struct InheritedConnections(Mutex<HashMap<PathBuf, Vec<InheritedConnection>>>);

impl InheritedConnections {
    /// Parses the notes of all connections among the held descriptors.
    pub(crate) fn new(held: Vec<HeldFd>) -> Result<Self, InheritedError> {
        let mut all = HashMap::<PathBuf, Vec<InheritedConnection>>::new();
        for held in held {
            if !held.key.starts_with(soci_holder::CONNECTION_PREFIX) {
                continue;
            }
            let note = ConnectionNote::parse(&held)?;
            let connection = Connection::from_parts(held.descriptor, note.facts.clone());
            all.entry(note.facts.mountpoint.clone())
                .or_default()
                .push(InheritedConnection { note, connection });
        }
        Ok(Self(Mutex::new(all)))
    }

    /// Lists their layers.
    pub(crate) fn layers(&self) -> Vec<Digest> {
        let all = self.0.lock();
        all.values().flatten().map(|held| held.note.layer).collect()
    }

    /// Lists the images of their layers.
    pub(crate) fn images(&self) -> Vec<ImageKey> {
        let all = self.0.lock();
        let held = all.values().flatten();
        held.filter_map(|held| held.note.image()).collect()
    }

    /// Takes the connection that is mounted at `mountpoint` now. Blocks on `/proc`.
    pub(crate) fn take_mounted(&self, mountpoint: &Path) -> Option<InheritedConnection> {
        let mountpoint = &soci_fuse::as_in_mountinfo(mountpoint);
        let mut all = self.0.lock();
        let candidates = all.get_mut(mountpoint)?;
        let position = candidates
            .iter()
            .position(|held| soci_fuse::is_mounted(held.connection.facts()))?;
        let found = candidates.swap_remove(position);
        if candidates.is_empty() {
            all.remove(mountpoint);
        }
        Some(found)
    }

    /// Puts a connection back that could not be served.
    pub(crate) fn put_back(&self, held: InheritedConnection) {
        let mountpoint = held.note.facts.mountpoint.clone();
        self.0.lock().entry(mountpoint).or_default().push(held);
    }

    /// Takes all remaining connections.
    pub(crate) fn take_rest(&self) -> Vec<InheritedConnection> {
        let all = std::mem::take(&mut *self.0.lock());
        all.into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(note: &str) -> HeldFd {
        HeldFd {
            key: "fuse/1".to_owned(),
            note: note.to_owned(),
            descriptor: std::fs::File::open("/dev/null").unwrap().into(),
        }
    }

    #[test]
    fn a_note_of_another_version_or_program_is_refused_with_the_remedy() {
        let newer = InheritedConnections::new(vec![held(r#"{"version":2,"new":[]}"#)]);
        let message = newer.err().unwrap().to_string();
        assert!(
            message.contains("format 2") && message.contains("abort-mounts"),
            "{message}"
        );
        for bad in ["", "{}", r#"{"version":1}"#] {
            let refused = InheritedConnections::new(vec![held(bad)]).err().unwrap();
            assert!(refused.to_string().contains("fuse/1"), "{refused}");
        }
        let other = HeldFd {
            key: "socket".to_owned(),
            ..held("")
        };
        assert!(
            InheritedConnections::new(vec![other])
                .unwrap()
                .layers()
                .is_empty()
        );
    }
}
