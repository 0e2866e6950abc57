//! The content store that SOCI indexes and zTOCs are looked for in before the registry is asked:
//! our own OCI layout (`[content_store] type = "soci"`), or containerd's (`type = "containerd"`). `soci
//! create` puts there what was never pushed.

use std::collections::HashMap;

use bytes::Bytes;
use soci_oci::{Descriptor, Digest, media_types};
use soci_store::containerd::{ContainerdContent, GC_REFERENCE, GC_ROOT, now};
use soci_store::content::OciLayout;
use soci_ztoc::soci_index::SociIndex;
use tokio::task::spawn_blocking;

/// Where artifacts are.
#[derive(Debug, Clone)]
pub enum Artifacts {
    /// The folder `content/`.
    Layout(OciLayout),
    /// containerd's content store, in the namespace of the client.
    Containerd(ContainerdContent),
}

impl Artifacts {
    /// Whether each namespace has a store of its own.
    pub(crate) const fn by_namespace(&self) -> bool {
        matches!(self, Self::Containerd(_))
    }

    /// A blob of at most `most` bytes, if it is here. Whatever goes wrong is logged, and the registry is
    /// asked.
    pub(crate) async fn get(&self, namespace: &str, digest: &Digest, most: u64) -> Option<Bytes> {
        let found = match self {
            // Boxed, here and below: calls of containerd are large futures.
            Self::Containerd(content) => Box::pin(content.get(namespace, digest, most)).await,
            Self::Layout(layout) => {
                let (layout, digest) = (layout.clone(), *digest);
                let work = move || match layout.size(&digest) {
                    Some(size) if size <= most => layout.get(&digest).map(Some),
                    _ => Ok(None),
                };
                spawn_blocking(work).await.unwrap_or(Ok(None))
            }
        };
        found.unwrap_or_else(|error| {
            tracing::warn!(digest = %digest, %error, "the content store is passed over");
            None
        })
    }

    /// Keeps an index that came from the registry, and says that its zTOCs belong to it. (Our own
    /// layout keeps it together with the note of its image, `KeptIndexes`.)
    pub(crate) async fn keep_index(
        &self,
        namespace: &str,
        digest: Digest,
        index: &SociIndex,
        bytes: &Bytes,
    ) {
        let Self::Containerd(content) = self else {
            return;
        };
        let mut labels = HashMap::from([(GC_ROOT.to_owned(), now())]);
        for (place, layer) in index.manifest.layers.iter().enumerate() {
            labels.insert(
                format!("{GC_REFERENCE}.ztoc.{place}"),
                layer.digest.to_string(),
            );
        }
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
        let kept = Box::pin(content.put(namespace, &descriptor, bytes, labels)).await;
        if let Err(error) = kept {
            tracing::warn!(digest = %digest, %error, "the SOCI index is not kept in containerd");
        }
    }

    /// Keeps a zTOC that came from the registry. (On disk it is with its layer.)
    pub(crate) async fn keep_ztoc(&self, namespace: &str, ztoc: &Descriptor, bytes: &Bytes) {
        let Self::Containerd(content) = self else {
            return;
        };
        let kept = Box::pin(content.put(namespace, ztoc, bytes, HashMap::new())).await;
        if let Err(error) = kept {
            tracing::warn!(digest = %ztoc.digest, %error, "the zTOC is not kept in containerd");
        }
    }

    /// Leaves an index to containerd's collector that nobody uses any more. Only those that this daemon
    /// fetched have the label; others are kept by whoever made them.
    pub(crate) async fn release_index(&self, namespace: &str, digest: &Digest) {
        let Self::Containerd(content) = self else {
            return;
        };
        let released = Box::pin(content.remove_label(namespace, digest, GC_ROOT)).await;
        if let Err(error) = released {
            tracing::warn!(digest = %digest, %error, "containerd keeps a SOCI index that nobody uses");
        }
    }
}
