//! A message of List whose snapshots stay encoded: on the wire an embedded message and a byte
//! string are the same. The database holds them in that form already.

use prost::bytes::Bytes;

use crate::api::v1::Info;

/// `containerd.services.snapshots.v1.ListSnapshotsResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListSnapshotsResponse {
    /// Each an encoded [`Info`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub info: Vec<Bytes>,
}

impl ListSnapshotsResponse {
    /// The snapshots of this message.
    ///
    /// # Errors
    /// One of them is not an [`Info`].
    pub fn decode(self) -> Result<Vec<Info>, prost::DecodeError> {
        self.info.into_iter().map(prost::Message::decode).collect()
    }
}
