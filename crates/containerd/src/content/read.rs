//! Reading blobs: through the API, or from the file that containerd keeps them in.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::{PluginsRequest, ReadContentRequest, ReadContentResponse};
use containerd_client::tonic::{Code, Streaming};
use futures::{StreamExt as _, TryStreamExt as _};
use soci_oci::{Descriptor, Digest};

use super::{BlobStream, Content};
use crate::client::signed;
use crate::error::ContainerdError;

impl Content {
    /// Opens a stream of the bytes from `offset` on; `length` 0 means to the end.
    ///
    /// # Errors
    /// The blob is not stored, or containerd refuses.
    pub async fn stream(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<BlobStream, ContainerdError> {
        let parts = self.read(digest, offset, length).await?;
        let (namespace, digest) = (self.namespace.clone(), *digest);
        let failed = move |status| namespace.failed(format!("read blob {digest}"))(status);
        Ok(parts
            .map_ok(|part| Bytes::from(part.data))
            .map_err(move |status| io::Error::other(failed(status)))
            .boxed())
    }

    async fn read(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<Streaming<ReadContentResponse>, ContainerdError> {
        let request = self.namespace.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: signed(offset),
            size: signed(length),
        });
        let failed = self.namespace.failed(format!("read blob {digest}"));
        let answer = self.client().read(request).await.map_err(failed)?;
        Ok(answer.into_inner())
    }

    /// Reads a range of a blob.
    ///
    /// # Errors
    /// The blob is not stored or shorter, or containerd refuses.
    pub async fn range(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, ContainerdError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.collect(digest, offset, length, length).await?;
        if bytes.len() as u64 != length {
            return Err(ContainerdError::Damaged {
                digest: *digest,
                reason: format!(
                    "containerd returned {} bytes where {length} were requested",
                    bytes.len()
                ),
            });
        }
        Ok(bytes)
    }

    /// Reads a whole blob and checks its size and digest.
    ///
    /// # Errors
    /// The blob is not stored or damaged, or containerd refuses.
    pub async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, ContainerdError> {
        let bytes = self.range(&descriptor.digest, 0, descriptor.size).await?;
        checked(bytes, &descriptor.digest)
    }

    /// Reads a whole blob of at most `limit` bytes and checks its digest; `None` if it is not stored.
    ///
    /// # Errors
    /// The blob is larger or damaged, or containerd refuses.
    pub async fn get(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, ContainerdError> {
        match self.collect(digest, 0, 0, limit).await {
            Ok(bytes) => checked(bytes, digest).map(Some),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn collect(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
        limit: u64,
    ) -> Result<Bytes, ContainerdError> {
        let mut parts = self.read(digest, offset, length).await?;
        let failed = || self.namespace.failed(format!("read blob {digest}"));
        let mut bytes = BytesMut::new();
        while let Some(part) = parts.message().await.map_err(failed())? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() as u64 > limit {
                return Err(ContainerdError::TooLarge {
                    digest: *digest,
                    limit,
                });
            }
        }
        Ok(bytes.freeze())
    }

    /// Opens the file that a blob of `size` bytes is in, if containerd keeps its content on this
    /// machine and the file is readable: much cheaper than the API for large blobs. The bytes are
    /// not checked against the digest.
    pub async fn file(&self, digest: &Digest, size: u64) -> Option<File> {
        let root = self.root.get_or_init(|| self.request_root()).await;
        let path = blob_path(root.as_deref()?, digest);
        match open_blob(&path, size) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "reading content through containerd's API");
                None
            }
        }
    }

    /// Requests the directory of the content store that is part of containerd.
    async fn request_root(&self) -> Option<PathBuf> {
        let request = self.namespace.request(PluginsRequest {
            filters: vec!["type==io.containerd.content.v1".to_owned()],
        });
        let mut client = IntrospectionClient::new(self.namespace.channel.clone());
        let plugins = client.plugins(request).await.ok()?.into_inner().plugins;
        let mut roots = plugins
            .into_iter()
            .map(|mut plugin| plugin.exports.remove("root"));
        // With a proxy plugin beside it, content may be stored elsewhere.
        let root = roots.next().filter(|_| roots.len() == 0)?;
        root.map(PathBuf::from)
    }
}

fn checked(bytes: Bytes, digest: &Digest) -> Result<Bytes, ContainerdError> {
    let actual = Digest::of(&bytes);
    if actual != *digest {
        return Err(ContainerdError::Damaged {
            digest: *digest,
            reason: format!("its bytes in containerd have digest {actual}"),
        });
    }
    Ok(bytes)
}

/// Path of a blob in containerd's local content store.
fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

/// Opens a regular file of the expected size, to be read once from the start.
fn open_blob(path: &Path, size: u64) -> io::Result<File> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() != size {
        return Err(io::Error::other("not a file of the blob's size"));
    }
    // Larger readahead; reading works without it.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    Ok(file)
}
