//! The entries of the database, as protobuf messages: fields can be added without a new schema.
//! Tags are never used again for something else.

use prost::Message;
use prost::bytes::Bytes;

use crate::api::v1::{Info, Kind};
use crate::error::SnapshotterError;
use crate::labels::{self, Labels};
use soci_layer::IdMaps;
use soci_layer::{LayerRefusal, MountedInfo};

/// One snapshot.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    /// Names the directory `snapshots/<id>`.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// As it goes over the wire.
    #[prost(message, required, tag = "2")]
    pub(crate) info: Info,
    /// Of a committed snapshot.
    #[prost(message, required, tag = "3")]
    pub(crate) usage: Usage,
    /// Set when this is an image layer that could not be mounted lazily.
    #[prost(message, optional, tag = "4")]
    pub(crate) fallback: Option<Fallback>,
    /// Set when we fetched and unpacked the layer ourselves.
    #[prost(bool, tag = "5")]
    pub(crate) unpacked: bool,
    /// Set when the layers below are seen with other owners, each in a directory of its own.
    #[prost(message, optional, tag = "6")]
    pub(crate) id_maps: Option<IdMapsRecord>,
}

/// A [`Record`] of which only the snapshot is wanted, as it goes over the wire.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct EncodedRecord {
    /// An encoded [`Info`].
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) info: Bytes,
}

/// Disk space that a snapshot takes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Usage {
    /// Bytes allocated.
    #[prost(int64, tag = "1")]
    pub(crate) size: i64,
    #[prost(int64, tag = "2")]
    pub(crate) inodes: i64,
}

/// Why a layer is not lazy.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Fallback {
    /// [`LayerRefusal::code`].
    #[prost(string, tag = "1")]
    pub(crate) code: String,
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
    /// What the labels of the Prepare said about image and layer: the client that commits the
    /// snapshot may leave them out.
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
}

/// The id maps of a container's snapshot. Kept apart from its labels, which clients may change.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct IdMapsRecord {
    /// As in the labels.
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(string, tag = "2")]
    gid: String,
}

impl From<&IdMaps> for IdMapsRecord {
    fn from(maps: &IdMaps) -> Self {
        let (uid, gid) = maps.to_text();
        Self { uid, gid }
    }
}

/// What is needed to mount a lazy snapshot again. Kept apart from the labels of the snapshot,
/// which clients may change.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct LazyRecord {
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    /// The labels of the Prepare.
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: Labels,
    #[prost(uint32, tag = "3")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) gid: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) mode: u32,
}

impl LazyRecord {
    pub(crate) fn new(namespace: String, labels: Labels, root: MountedInfo) -> Self {
        Self {
            namespace,
            labels,
            uid: root.uid,
            gid: root.gid,
            mode: root.mode,
        }
    }
}

impl Fallback {
    /// The labels are those of the Prepare.
    pub(crate) fn new(refusal: &LayerRefusal, labels: &Labels) -> Self {
        const KEPT: [&str; 4] = [
            labels::IMAGE_REF,
            labels::MANIFEST_DIGEST,
            labels::LAYER_DIGEST,
            labels::LAYER_SIZE,
        ];
        let kept = KEPT.iter().filter_map(|key| labels.get_key_value(*key));
        Self {
            code: refusal.code().to_owned(),
            reason: soci_errors::chain(refusal),
            labels: kept
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }
}

impl Record {
    pub(crate) fn kind(&self) -> Kind {
        self.info.kind()
    }

    /// The id maps with which the layers below are seen.
    pub(crate) fn id_maps(&self) -> Result<Option<IdMaps>, SnapshotterError> {
        let Some(IdMapsRecord { uid, gid }) = &self.id_maps else {
            return Ok(None);
        };
        IdMaps::from_text(uid, gid)
            .map(Some)
            .map_err(|error| SnapshotterError::Corrupt {
                name: self.info.name.clone(),
                reason: error.to_string(),
            })
    }

    /// The value of a label that is indexed or tested.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.info.labels.get(key).map(String::as_str)
    }

    /// The same, also of the Prepare of a layer that is not lazy.
    pub(crate) fn prepare_label(&self, key: &str) -> Option<&str> {
        let fallback = self.fallback.as_ref();
        self.label(key)
            .or_else(|| fallback?.labels.get(key).map(String::as_str))
    }
}

/// Reads an entry; `name` is for the error only.
pub(super) fn decode<M: Message + Default>(
    name: &str,
    bytes: &[u8],
) -> Result<M, SnapshotterError> {
    M::decode(bytes).map_err(|error| SnapshotterError::Corrupt {
        name: name.to_owned(),
        reason: error.to_string(),
    })
}
