//! The entries of the database, as protobuf messages: fields can be added without a new schema.
//! Tags are never reused.

use prost::Message;
use prost::bytes::Bytes;

use super::error::MetadataError;
use crate::api::v1::{Info, Kind};
use crate::labels::{self, Labels};
use crate::refusal::RefusalReason;
use soci_layer::{IdMaps, MountedInfo};

/// The entry of one snapshot.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    /// Name of the directory `snapshots/<id>`.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// The snapshot as the API describes it.
    #[prost(message, required, tag = "2")]
    pub(crate) info: Info,
    /// Disk space of a committed snapshot.
    #[prost(message, required, tag = "3")]
    pub(crate) usage: Usage,
    /// Set if this is an image layer that could not be mounted lazily.
    #[prost(message, optional, tag = "4")]
    pub(crate) fallback: Option<Fallback>,
    /// Set if the snapshotter unpacked the layer.
    #[prost(bool, tag = "5")]
    pub(crate) unpacked: bool,
    /// Set if the layers below are shown with other owners, each in a directory of its own.
    #[prost(message, optional, tag = "6")]
    pub(crate) id_maps: Option<IdMapsRecord>,
}

/// A [`Record`] without its other fields, for sending the snapshot as it is stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct EncodedRecord {
    /// An encoded [`Info`].
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) info: Bytes,
}

/// Disk space of a snapshot without its parents.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Usage {
    /// Allocated bytes.
    #[prost(int64, tag = "1")]
    pub(crate) size: i64,
    #[prost(int64, tag = "2")]
    pub(crate) inodes: i64,
}

/// The reason why a layer is not lazy.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Fallback {
    /// See [`RefusalReason::code`].
    #[prost(string, tag = "1")]
    pub(crate) code: String,
    /// See [`RefusalReason::text`].
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
    /// The labels of the Prepare that describe image and layer: the client that commits the
    /// snapshot may leave them out.
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
}

/// The id maps of a container's snapshot, stored beside its labels, which clients may change.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct IdMapsRecord {
    /// User ids, in the form of the label.
    #[prost(string, tag = "1")]
    uid: String,
    /// Group ids, in the form of the label.
    #[prost(string, tag = "2")]
    gid: String,
}

impl From<&IdMaps> for IdMapsRecord {
    fn from(maps: &IdMaps) -> Self {
        let (uid, gid) = maps.to_text();
        Self { uid, gid }
    }
}

/// What is needed to mount a lazy snapshot again, stored beside its labels, which clients may
/// change.
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

/// One of the parents of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Set if its `fs` is the mount of a lazy layer.
    pub(crate) lazy: Option<LazyRecord>,
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
    /// Records a refusal with those labels of the Prepare that describe image and layer.
    pub(crate) fn new(reason: RefusalReason, labels: &Labels) -> Self {
        const KEPT: [&str; 4] = [
            labels::IMAGE_REF,
            labels::MANIFEST_DIGEST,
            labels::LAYER_DIGEST,
            labels::LAYER_SIZE,
        ];
        let kept = KEPT.iter().filter_map(|key| labels.get_key_value(*key));
        Self {
            code: reason.code,
            reason: reason.text,
            labels: kept
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }
}

impl From<Fallback> for RefusalReason {
    fn from(fallback: Fallback) -> Self {
        Self {
            code: fallback.code,
            text: fallback.reason,
        }
    }
}

impl Record {
    pub(crate) fn kind(&self) -> Kind {
        self.info.kind()
    }

    /// Returns the id maps with which the layers below are shown.
    pub(crate) fn id_maps(&self) -> Result<Option<IdMaps>, MetadataError> {
        let Some(IdMapsRecord { uid, gid }) = &self.id_maps else {
            return Ok(None);
        };
        IdMaps::from_text(uid, gid)
            .map(Some)
            .map_err(|error| MetadataError::corrupt(&self.info.name, error))
    }

    /// Returns the value of a label of the snapshot.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.info.labels.get(key).map(String::as_str)
    }

    /// Returns the value of a label of the snapshot, or of the Prepare of a layer that is not lazy.
    pub(crate) fn prepare_label(&self, key: &str) -> Option<&str> {
        let fallback = self.fallback.as_ref();
        self.label(key)
            .or_else(|| fallback?.labels.get(key).map(String::as_str))
    }
}

/// Decodes an entry. `name` is for the error only.
pub(super) fn decode<M: Message + Default>(name: &str, bytes: &[u8]) -> Result<M, MetadataError> {
    M::decode(bytes).map_err(|error| MetadataError::corrupt(name, error))
}
