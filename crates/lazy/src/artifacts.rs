//! The content store that SOCI indexes and zTOCs are looked for in before the registry is asked:
//! our own OCI layout (`[content_store] type = "soci"`), or containerd's (`type = "containerd"`). `soci
//! create` puts there what was never pushed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use soci_containerd::labels::gc;
use soci_containerd::{Containerd, ContainerdError, Content, within};
use soci_oci::{Descriptor, Digest, media_types};
use soci_store::content::OciLayout;
use soci_ztoc::soci_index::SociIndex;
use tokio::task::spawn_blocking;

/// Longest time for one call: containerd may hang, and itself waits for our answer to a Prepare.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where artifacts are.
#[derive(Debug, Clone)]
pub enum Artifacts {
    /// The folder `content/`.
    Layout(OciLayout),
    /// containerd's content store, in the namespace of the client.
    Containerd(Containerd),
}

impl Artifacts {
    /// containerd's content store, by the address of its socket.
    #[must_use]
    pub fn containerd(address: &str) -> Self {
        Self::Containerd(Containerd::new(address))
    }

    /// Whether each namespace has a store of its own.
    pub(crate) const fn by_namespace(&self) -> bool {
        matches!(self, Self::Containerd(_))
    }

    /// A blob of at most `most` bytes, if it is here. Whatever goes wrong is logged, and the registry is
    /// asked.
    pub(crate) async fn get(&self, namespace: &str, digest: &Digest, most: u64) -> Option<Bytes> {
        let passed_over = |error: &dyn std::error::Error| {
            tracing::warn!(digest = %digest, %error, "the content store is passed over");
            None
        };
        match self {
            Self::Containerd(containerd) => {
                let get = async |content: Content| content.get(digest, most).await;
                let found = limited(containerd, namespace, get).await;
                found.unwrap_or_else(|error| passed_over(&error))
            }
            Self::Layout(layout) => {
                let (layout, digest) = (layout.clone(), *digest);
                let work = move || match layout.size(&digest) {
                    Some(size) if size <= most => layout.get(&digest).map(Some),
                    _ => Ok(None),
                };
                let found = spawn_blocking(work).await.unwrap_or(Ok(None));
                found.unwrap_or_else(|error| passed_over(&error))
            }
        }
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
        let Self::Containerd(containerd) = self else {
            return;
        };
        let mut labels = HashMap::from([gc::root()]);
        for (place, layer) in index.manifest.layers.iter().enumerate() {
            labels.insert(
                format!("{}.ztoc.{place}", gc::CONTENT),
                layer.digest.to_string(),
            );
        }
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
        let put = async |content: Content| {
            let bytes = bytes.clone();
            content.put("manifest", &descriptor, labels, bytes).await
        };
        let kept = limited(containerd, namespace, put).await;
        if let Err(error) = kept {
            tracing::warn!(digest = %digest, %error, "the SOCI index is not kept in containerd");
        }
    }

    /// Keeps a zTOC that came from the registry. (On disk it is with its layer.)
    pub(crate) async fn keep_ztoc(&self, namespace: &str, ztoc: &Descriptor, bytes: &Bytes) {
        let Self::Containerd(containerd) = self else {
            return;
        };
        let put = async |content: Content| {
            let bytes = bytes.clone();
            content.put("blob", ztoc, HashMap::new(), bytes).await
        };
        let kept = limited(containerd, namespace, put).await;
        if let Err(error) = kept {
            tracing::warn!(digest = %ztoc.digest, %error, "the zTOC is not kept in containerd");
        }
    }

    /// Leaves an index to containerd's collector that nobody uses any more. Only those that this daemon
    /// fetched have the label; others are kept by whoever made them.
    pub(crate) async fn release_index(&self, namespace: &str, digest: &Digest) {
        let Self::Containerd(containerd) = self else {
            return;
        };
        let remove = async |content: Content| content.remove_label(digest, gc::ROOT).await;
        let released = limited(containerd, namespace, remove).await;
        if let Err(error) = released {
            tracing::warn!(digest = %digest, %error, "containerd keeps a SOCI index that nobody uses");
        }
    }
}

/// Calls containerd's content store for a limited time.
async fn limited<T>(
    containerd: &Containerd,
    namespace: &str,
    call: impl AsyncFnOnce(Content) -> Result<T, ContainerdError>,
) -> Result<T, ContainerdError> {
    let content = Content::new(&containerd.namespace(namespace)?);
    // Boxed: calls of containerd are large futures.
    within(PATIENCE, Box::pin(call(content))).await
}
