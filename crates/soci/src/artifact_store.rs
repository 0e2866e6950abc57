//! Where SOCI artifacts are read from: containerd's content store or the snapshotter's own.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use soci_containerd::Content;
use soci_oci::{Descriptor, Digest};
use soci_store::StoredZtocs;
use soci_store::content::OciLayout;

/// No artifact is larger: zTOCs end at 2 GiB.
const MAX_ARTIFACT: u64 = 2 << 30;

/// A store of SOCI artifacts.
pub(crate) enum ArtifactStore {
    /// containerd's.
    Containerd(Content),
    /// The snapshotter's own, and the zTOCs of the layers that it has stored.
    Layout(OciLayout, StoredZtocs),
}

/// A blob in a store.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) created_at: SystemTime,
}

impl ArtifactStore {
    /// The blob's size; `None` if it is not there.
    pub(crate) async fn size(&self, digest: &Digest) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Containerd(content) => Ok(content.info(digest).await?.map(|info| info.size)),
            Self::Layout(layout, stored) => Ok(layout.size(digest).or_else(|| {
                let file = std::fs::metadata(stored.path(digest)?).ok()?;
                Some(file.len())
            })),
        }
    }

    /// A whole artifact, its digest checked.
    pub(crate) async fn bytes(&self, digest: &Digest) -> anyhow::Result<Bytes> {
        let size = self.size(digest).await?.with_context(|| {
            format!("{digest} is not in the {self}: not found (see also --content-store)")
        })?;
        if size > MAX_ARTIFACT {
            bail!("{digest} has {size} bytes: that is no SOCI artifact");
        }
        match self {
            Self::Containerd(content) => {
                Ok(content.bytes(&Descriptor::new("", *digest, size)).await?)
            }
            Self::Layout(layout, _) if layout.contains(digest) => Ok(layout.get(digest)?),
            Self::Layout(_, stored) => stored
                .get(digest)?
                .with_context(|| format!("{digest} is not in the {self}: not found")),
        }
    }

    /// The bytes of an artifact for an upload.
    pub(crate) async fn stream(
        &self,
        digest: &Digest,
    ) -> anyhow::Result<BoxStream<'static, io::Result<Bytes>>> {
        match self {
            Self::Containerd(content) => Ok(content.stream(digest, 0, 0).await?),
            Self::Layout(..) => {
                let bytes = self.bytes(digest).await?;
                Ok(futures::stream::once(async { Ok(bytes) }).boxed())
            }
        }
    }

    /// Removes an artifact; one that is not there is no error.
    pub(crate) async fn delete(&self, digest: &Digest) -> anyhow::Result<()> {
        match self {
            Self::Containerd(content) => Ok(content.delete(digest).await?),
            Self::Layout(layout, _) => {
                layout.delete(digest)?;
                Ok(())
            }
        }
    }

    /// Everything in the store.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<Stored>> {
        match self {
            Self::Containerd(content) => {
                let all = content.list().await?;
                Ok(all
                    .into_iter()
                    .map(|info| Stored {
                        digest: info.digest,
                        size: info.size,
                        created_at: info.created_at.unwrap_or_else(SystemTime::now),
                    })
                    .collect())
            }
            Self::Layout(layout, stored) => {
                let blobs = layout.list()?.into_iter();
                let mut files: BTreeMap<Digest, PathBuf> = stored.list().into_iter().collect();
                files.extend(blobs.map(|digest| (digest, layout.path(&digest))));
                let all = files.into_iter().filter_map(|(digest, path)| {
                    // A blob that vanishes in between counts as missing.
                    let metadata = std::fs::metadata(path).ok()?;
                    Some(Stored {
                        digest,
                        size: metadata.len(),
                        created_at: metadata.modified().unwrap_or_else(|_| SystemTime::now()),
                    })
                });
                Ok(all.collect())
            }
        }
    }
}

impl std::fmt::Display for ArtifactStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Containerd(_) => f.write_str("content store of containerd"),
            Self::Layout(layout, _) => write!(f, "content store {}", layout.dir().display()),
        }
    }
}
