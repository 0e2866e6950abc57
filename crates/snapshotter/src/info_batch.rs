//! A message of List whose snapshots stay encoded, as the database holds them: on the wire an embedded
//! message and a byte string are the same.

use prost::bytes::Bytes;

use crate::api::v1::Info;

/// `containerd.services.snapshots.v1.ListSnapshotsResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListSnapshotsResponse {
    /// Encoded [`Info`] messages.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub info: Vec<Bytes>,
}

impl ListSnapshotsResponse {
    /// Decodes the snapshots of this message.
    ///
    /// # Errors
    /// One of them is not an [`Info`].
    pub fn decode(self) -> Result<Vec<Info>, prost::DecodeError> {
        self.info.into_iter().map(prost::Message::decode).collect()
    }
}
