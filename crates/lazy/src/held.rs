//! Connections that an earlier process left with the holder, and what is noted about each: enough to
//! serve it on, also when its snapshot is gone and only somebody's open file keeps it alive.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use soci_fuse::{Connection, ConnectionFacts};
use soci_holder::HeldFd;
use soci_oci::{Descriptor, Digest};
use soci_ztoc::soci_index::ZtocDescriptor;

use crate::labels::ImageKey;
use crate::look::{Look, NotedLook};

/// Changes when a field changes its meaning or goes. Fields may be added without that.
const VERSION: u32 = 1;

/// Why what the holder has cannot be taken over. The daemon must not start then: the connections wait
/// for one that can.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// Another version of this program wrote it.
    #[error(
        "the mounts of running containers were left by a version of this program that notes them in \
         form {found}, and this one knows form {VERSION}: start that version again, or stop this \
         one and give the mounts (and the containers on them) up with `soci abort-mounts`"
    )]
    Version {
        /// Theirs.
        found: u32,
    },
    /// It is no note of ours.
    #[error("the holder's note about the connection {key} cannot be read: {source}")]
    Malformed {
        /// Under which key it is held.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// What is noted with the holder about a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionNote {
    version: u32,
    pub(crate) facts: ConnectionFacts,
    image: NotedImage,
    /// The SOCI index that the zTOC is from.
    pub(crate) index: Digest,
    layer: Digest,
    ztoc: Digest,
    /// Bytes of the zTOC.
    ztoc_size: u64,
    layer_media_type: String,
    /// How it shows the layer.
    look: NotedLook,
}

/// An image's [`ImageKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NotedImage {
    reference: String,
    manifest: Digest,
    explicit_index: Option<Digest>,
    namespace: String,
}

/// The part of a note that must be readable in every version.
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
        look: &Look,
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
            look: look.into(),
        }
    }

    fn parse(kept: &HeldFd) -> Result<Self, HeldError> {
        let malformed = |source| HeldError::Malformed {
            key: kept.key.clone(),
            source,
        };
        let NoteVersion { version } = serde_json::from_str(&kept.note).map_err(malformed)?;
        if version != VERSION {
            return Err(HeldError::Version { found: version });
        }
        serde_json::from_str(&kept.note).map_err(malformed)
    }

    pub(crate) fn to_json(&self) -> String {
        // It has neither maps with odd keys nor paths that are no text: those do not get here.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The image whose layer it is; `None` if its reference is not understood any more.
    pub(crate) fn image(&self) -> Option<ImageKey> {
        Some(ImageKey {
            reference: self.image.reference.parse().ok()?,
            manifest: self.image.manifest,
            explicit_index: self.image.explicit_index,
            namespace: self.image.namespace.clone(),
        })
    }

    /// How it shows the layer.
    pub(crate) fn look(&self) -> Look {
        (&self.look).into()
    }

    /// Which layer it is.
    pub(crate) const fn layer(&self) -> Digest {
        self.layer
    }

    /// The zTOC, as the index listed it.
    pub(crate) fn ztoc(&self) -> ZtocDescriptor {
        let media_type = soci_oci::media_types::ZTOC;
        ZtocDescriptor {
            descriptor: Descriptor::new(media_type, self.ztoc, self.ztoc_size),
            layer_digest: self.layer,
            layer_media_type: self.layer_media_type.clone(),
            span_size: None,
            disable_xattrs: self.look().disable_xattrs,
        }
    }
}

/// The name under which the holder keeps a connection.
pub(crate) fn holder_key(facts: &ConnectionFacts) -> String {
    format!("{}{:016x}", soci_holder::CONNECTION_PREFIX, facts.key)
}

/// A connection that nobody serves yet.
pub(crate) struct HeldConnection {
    pub(crate) note: ConnectionNote,
    pub(crate) connection: Connection,
}

impl HeldConnection {
    /// A second one of the same, should the first attempt to serve it fail.
    pub(crate) fn duplicate(&self) -> std::io::Result<Self> {
        let facts = self.connection.facts().clone();
        Ok(Self {
            note: self.note.clone(),
            connection: Connection::from_parts(self.connection.duplicate()?, facts),
        })
    }
}

/// Those that nobody serves yet, by mount point. A mount point that was used again has more than one: the
/// earlier ones are not mounted there any more, but somebody may still have them open.
#[derive(Default)]
pub(crate) struct HeldConnections(Mutex<HashMap<PathBuf, Vec<HeldConnection>>>);

impl HeldConnections {
    /// Reads the notes of all connections among what the holder kept.
    pub(crate) fn new(kept: Vec<HeldFd>) -> Result<Self, HeldError> {
        let mut all = HashMap::<PathBuf, Vec<HeldConnection>>::new();
        for kept in kept {
            if !kept.key.starts_with(soci_holder::CONNECTION_PREFIX) {
                continue;
            }
            let note = ConnectionNote::parse(&kept)?;
            let connection = Connection::from_parts(kept.descriptor, note.facts.clone());
            all.entry(note.facts.mountpoint.clone())
                .or_default()
                .push(HeldConnection { note, connection });
        }
        Ok(Self(Mutex::new(all)))
    }

    /// The layers that they show.
    pub(crate) fn layers(&self) -> Vec<Digest> {
        let all = self.0.lock();
        all.values().flatten().map(|held| held.note.layer).collect()
    }

    /// The images that they are of.
    pub(crate) fn images(&self) -> Vec<ImageKey> {
        let all = self.0.lock();
        let held = all.values().flatten();
        held.filter_map(|held| held.note.image()).collect()
    }

    /// Takes the connection that is mounted at `mountpoint` now.
    pub(crate) fn take_mounted(&self, mountpoint: &Path) -> Option<HeldConnection> {
        let mountpoint = &soci_fuse::as_in_mountinfo(mountpoint);
        let mut all = self.0.lock();
        let here = all.get_mut(mountpoint)?;
        let place = here
            .iter()
            .position(|held| soci_fuse::is_mounted(held.connection.facts()))?;
        let found = here.swap_remove(place);
        if here.is_empty() {
            all.remove(mountpoint);
        }
        Some(found)
    }

    /// Puts one back that could not be served.
    pub(crate) fn put_back(&self, held: HeldConnection) {
        let mountpoint = held.note.facts.mountpoint.clone();
        self.0.lock().entry(mountpoint).or_default().push(held);
    }

    /// Takes all that are left.
    pub(crate) fn take_rest(&self) -> Vec<HeldConnection> {
        let all = std::mem::take(&mut *self.0.lock());
        all.into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(note: &str) -> HeldFd {
        HeldFd {
            key: "fuse/1".to_owned(),
            note: note.to_owned(),
            descriptor: std::fs::File::open("/dev/null").unwrap().into(),
        }
    }

    #[test]
    fn a_note_of_another_version_or_none_of_ours_is_refused_with_what_to_do() {
        let newer = HeldConnections::new(vec![kept(r#"{"version":2,"new":[]}"#)]);
        let message = newer.err().unwrap().to_string();
        assert!(
            message.contains("form 2") && message.contains("abort-mounts"),
            "{message}"
        );
        for bad in ["", "{}", r#"{"version":1}"#] {
            let refused = HeldConnections::new(vec![kept(bad)]).err().unwrap();
            assert!(refused.to_string().contains("fuse/1"), "{refused}");
        }
        let other = HeldFd {
            key: "socket".to_owned(),
            ..kept("")
        };
        assert!(
            HeldConnections::new(vec![other])
                .unwrap()
                .layers()
                .is_empty()
        );
    }
}
