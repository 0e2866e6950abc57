//! Small blobs from containerd's content store: an image's manifest and configuration are there by
//! the time its layers are prepared.

use std::time::Duration;

use containerd_client::Client;
use containerd_client::services::v1::ReadContentRequest;
use containerd_client::tonic::{Request, Status};
use soci_oci::Digest;

/// How long containerd may take; after that the registry is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// containerd's content store.
#[derive(Debug, Clone)]
pub struct ContainerdContent {
    path: String,
}

/// Why a blob does not come from containerd.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot connect: {0}")]
    Connect(#[from] containerd_client::tonic::transport::Error),
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error("the namespace cannot be sent")]
    Namespace,
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("it has more than {0} bytes")]
    TooLarge(usize),
    #[error("its content is damaged")]
    Damaged,
}

impl ContainerdContent {
    /// The store of the containerd that listens at `address`, a path or `unix://PATH`.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        Self {
            path: path.to_owned(),
        }
    }

    /// A blob of at most `limit` bytes, verified; `None` if it is not to be had there for whatever
    /// reason, which is logged.
    pub async fn read(&self, namespace: &str, digest: Digest, limit: usize) -> Option<Vec<u8>> {
        let reading = Box::pin(self.try_read(namespace, digest, limit));
        let read = tokio::time::timeout(PATIENCE, reading).await;
        match read.unwrap_or(Err(ReadError::Timeout)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::debug!(
                    containerd = self.path,
                    %digest,
                    %error,
                    "containerd does not give a blob: the registry is asked"
                );
                None
            }
        }
    }

    async fn try_read(
        &self,
        namespace: &str,
        digest: Digest,
        limit: usize,
    ) -> Result<Vec<u8>, ReadError> {
        let client = Client::from_path(&self.path).await?;
        let mut request = Request::new(ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        });
        let namespace = namespace.parse().map_err(|_| ReadError::Namespace)?;
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        let mut pieces = client.content().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() > limit {
                return Err(ReadError::TooLarge(limit));
            }
        }
        if Digest::of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(ReadError::Damaged)
        }
    }
}
