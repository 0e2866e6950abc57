//! Reading containerd's content store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::{
    DeleteContentRequest, Info, InfoRequest, ListContentRequest, PluginsRequest, ReadContentRequest,
};
use containerd_client::tonic::Code;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_oci::{Descriptor, Digest};
use tokio::sync::OnceCell;

use super::{Containerd, failed};

/// containerd's content store in one namespace.
#[derive(Clone)]
pub(crate) struct Content {
    containerd: Arc<Containerd>,
    /// The directory that the content is in, once somebody asked.
    root: Arc<OnceCell<Option<PathBuf>>>,
}

/// What containerd knows of a blob.
#[derive(Debug, Clone)]
pub(crate) struct BlobInfo {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) created_at: Option<(i64, i32)>,
    pub(crate) labels: std::collections::HashMap<String, String>,
}

impl BlobInfo {
    /// `None` for blobs under other digests than ours.
    fn read(info: Info) -> Option<Self> {
        Some(Self {
            digest: info.digest.parse().ok()?,
            size: u64::try_from(info.size).ok()?,
            created_at: info.created_at.map(|at| (at.seconds, at.nanos)),
            labels: info.labels,
        })
    }
}

impl Content {
    pub(crate) fn new(containerd: &Arc<Containerd>) -> Self {
        Self {
            containerd: Arc::clone(containerd),
            root: Arc::default(),
        }
    }

    /// What is known of a blob; `None` if it is not there.
    pub(crate) async fn info(&self, digest: &Digest) -> anyhow::Result<Option<BlobInfo>> {
        let request = self.containerd.request(InfoRequest {
            digest: digest.to_string(),
        });
        match self.containerd.services().content().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.and_then(BlobInfo::read)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(&format!("look up content {digest}"), &status)),
        }
    }

    /// The file that a blob of `size` bytes is in, if containerd keeps its content on this machine and
    /// we may read it: much cheaper than containerd's API for large blobs. Whether the bytes have the
    /// digest is for the caller to check.
    pub(crate) async fn file(&self, digest: &Digest, size: u64) -> Option<File> {
        let root = self.root.get_or_init(|| self.ask_for_root()).await;
        let path = blob_path(root.as_deref()?, digest);
        match open_blob(&path, size) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "reading content through containerd's API");
                None
            }
        }
    }

    /// The directory of the content store that is part of containerd, as its plugin tells.
    async fn ask_for_root(&self) -> Option<PathBuf> {
        let request = self.containerd.request(PluginsRequest {
            filters: vec!["type==io.containerd.content.v1".to_owned()],
        });
        let answer = self
            .containerd
            .services()
            .introspection()
            .plugins(request)
            .await;
        let plugins = answer.ok()?.into_inner().plugins;
        let mut roots = plugins
            .into_iter()
            .map(|mut plugin| plugin.exports.remove("root"));
        // A proxy plugin in its place keeps content somewhere else.
        let root = roots.next().filter(|_| roots.len() == 0)?;
        root.map(PathBuf::from)
    }

    /// The bytes from `offset` on; `length` 0 means: to the end.
    pub(crate) async fn stream(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> anyhow::Result<BoxStream<'static, io::Result<Bytes>>> {
        let request = self.containerd.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset)?,
            size: i64::try_from(length)?,
        });
        let answer = self
            .containerd
            .services()
            .content()
            .read(request)
            .await
            .map_err(|status| failed(&format!("read content {digest}"), &status))?;
        Ok(answer
            .into_inner()
            .map_ok(|part| Bytes::from(part.data))
            .map_err(|status| io::Error::other(failed("read content", &status)))
            .boxed())
    }

    /// A range of a blob.
    pub(crate) async fn range(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> anyhow::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut stream = self.stream(digest, offset, length).await?;
        let mut all = BytesMut::with_capacity(usize::try_from(length)?);
        while let Some(part) = stream.next().await.transpose()? {
            all.extend_from_slice(&part);
        }
        anyhow::ensure!(
            all.len() as u64 == length,
            "containerd gave {} bytes of {digest} where {length} were asked for",
            all.len()
        );
        Ok(all.freeze())
    }

    /// A whole blob, size and digest checked.
    pub(crate) async fn bytes(&self, descriptor: &Descriptor) -> anyhow::Result<Bytes> {
        let bytes = self.range(&descriptor.digest, 0, descriptor.size).await?;
        Ok(soci_index::verify(bytes, descriptor, "containerd")?)
    }

    /// All blobs of the namespace.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<BlobInfo>> {
        let request = self.containerd.request(ListContentRequest::default());
        let mut answers = self
            .containerd
            .services()
            .content()
            .list(request)
            .await
            .map_err(|status| failed("list content", &status))?
            .into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers
            .message()
            .await
            .map_err(|status| failed("list content", &status))?
        {
            all.extend(answer.info.into_iter().filter_map(BlobInfo::read));
        }
        Ok(all)
    }

    /// Adds labels to a blob; a source repository is added to those known.
    pub(crate) async fn add_labels(
        &self,
        digest: &Digest,
        labels: std::collections::HashMap<String, String>,
    ) -> anyhow::Result<()> {
        super::update_labels(&self.containerd, &Descriptor::new("", *digest, 0), labels).await
    }

    /// Removes a blob; one that is not there is no error.
    pub(crate) async fn delete(&self, digest: &Digest) -> anyhow::Result<()> {
        let request = self.containerd.request(DeleteContentRequest {
            digest: digest.to_string(),
        });
        match self.containerd.services().content().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(&format!("remove content {digest}"), &status)),
        }
    }
}

/// Where containerd's local content store keeps a blob.
fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

/// Opens a regular file of the expected size, to be read once from the start.
fn open_blob(path: &Path, size: u64) -> io::Result<File> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() != size {
        return Err(io::Error::other("it is no file of the blob's size"));
    }
    // Larger readahead; without it reading works, too.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    Ok(file)
}

/// A layer in containerd's content store, read in parts.
pub(crate) struct LayerFile {
    content: Content,
    digest: Digest,
    size: u64,
}

impl LayerFile {
    /// The layer, which must be there.
    pub(crate) async fn open(content: Content, digest: Digest) -> anyhow::Result<Self> {
        let info = content.info(&digest).await?.with_context(|| {
            format!(
                "layer {digest} is not in containerd's content store: pull the image with another \
                 snapshotter than soci, or read it at its registry with `soci cat`"
            )
        })?;
        Ok(Self {
            content,
            digest,
            size: info.size,
        })
    }
}

#[async_trait::async_trait]
impl soci_registry::BlobSource for LayerFile {
    fn size(&self) -> u64 {
        self.size
    }

    async fn stream_range(
        &self,
        range: std::ops::Range<u64>,
        _: soci_registry::Deadline,
    ) -> Result<soci_registry::ByteStream, soci_registry::RegistryError> {
        let what = self.describe();
        let failed = move |reason: String| soci_registry::RegistryError::Source {
            what: what.clone(),
            reason,
        };
        let length = range.end.saturating_sub(range.start);
        let bytes = self
            .content
            .range(&self.digest, range.start, length)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }

    fn describe(&self) -> String {
        format!("{} of containerd", self.digest)
    }
}
