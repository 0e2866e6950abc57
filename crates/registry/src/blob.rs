//! One blob at a registry as a [`BlobSource`].

use std::ops::Range;

use async_trait::async_trait;

use crate::source::ByteStream;
use crate::{BlobSource, RegistryError};

/// A blob at a registry.
#[derive(Debug)]
pub struct RemoteBlob;

#[async_trait]
impl BlobSource for RemoteBlob {
    fn size(&self) -> u64 {
        todo!()
    }
    async fn stream_range(&self, _range: Range<u64>) -> Result<ByteStream, RegistryError> {
        todo!()
    }
    fn describe(&self) -> String {
        todo!()
    }
}
