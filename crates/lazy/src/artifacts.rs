//! The content store that is searched for SOCI indexes and zTOCs before the registry: our own OCI
//! layout (`[content_store] type = "soci"`), or containerd's (`type = "containerd"`). It has what
//! `soci create` made and was never pushed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use soci_containerd::labels::gc;
use soci_containerd::{Containerd, ContainerdError, Content, within};
use soci_oci::{Descriptor, Digest, media_types};
use soci_store::content::OciLayout;
use soci_ztoc::soci_index::SociIndex;

/// Time limit of one call: containerd may hang, and itself waits for our answer to a Prepare.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A content store with SOCI indexes and zTOCs.
#[derive(Debug, Clone)]
pub enum Artifacts {
    /// The directory `content/`.
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

    /// Reads a blob of at most `most` bytes, if it is stored. Failures are logged, and the registry is
    /// asked instead.
    pub(crate) async fn get(&self, namespace: &str, digest: &Digest, most: u64) -> Option<Bytes> {
        let unavailable = |error: &dyn std::error::Error| {
            tracing::warn!(digest = %digest, %error, "content store unavailable, falling back to the registry");
            None
        };
        match self {
            Self::Containerd(containerd) => {
                let get = async |content: Content| content.get(digest, most).await;
                let found = limited(containerd, namespace, get).await;
                found.unwrap_or_else(|error| unavailable(&error))
            }
            Self::Layout(layout) => {
                let (layout, digest) = (layout.clone(), *digest);
                let work = move || match layout.size(&digest) {
                    Some(size) if size <= most => layout.get(&digest).map(Some),
                    _ => Ok(None),
                };
                match soci_task::run(work).await {
                    Ok(found) => found.unwrap_or_else(|error| unavailable(&error)),
                    Err(error) => unavailable(&error),
                }
            }
        }
    }

    /// Stores an index from the registry in containerd, with labels that keep its zTOCs. (Our own
    /// layout stores it together with the note of its image, see `IndexFiles`.)
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
        for (at, layer) in index.manifest.layers.iter().enumerate() {
            labels.insert(
                format!("{}.ztoc.{at}", gc::CONTENT),
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
            tracing::warn!(digest = %digest, %error, "cannot store the SOCI index in containerd");
        }
    }

    /// Keeps an index in containerd that this daemon stored there and released, and that the collector
    /// has not removed since. It has labels for its zTOCs alone: what others stored stays as it is.
    pub(crate) async fn keep_again(&self, namespace: &str, digest: &Digest) {
        let Self::Containerd(containerd) = self else {
            return;
        };
        let keep = async |content: Content| {
            let info = content.info(digest).await?;
            match info.is_some_and(|info| was_released(&info.labels)) {
                true => content.add_labels(digest, [gc::root()].into()).await,
                false => Ok(()),
            }
        };
        let kept = limited(containerd, namespace, keep).await;
        if let Err(error) = kept {
            tracing::warn!(digest = %digest, %error, "cannot keep the SOCI index in containerd");
        }
    }

    /// Stores a zTOC from the registry in containerd. (On disk it is stored with its layer.)
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
            tracing::warn!(digest = %ztoc.digest, %error, "cannot store the zTOC in containerd");
        }
    }

    /// Releases, for containerd's collector, an index that is not used any more, if this daemon fetched
    /// it: only then it has the label.
    pub(crate) async fn release_index(&self, namespace: &str, digest: &Digest) {
        let Self::Containerd(containerd) = self else {
            return;
        };
        let remove = async |content: Content| content.remove_label(digest, gc::ROOT).await;
        let released = limited(containerd, namespace, remove).await;
        if let Err(error) = released {
            tracing::warn!(digest = %digest, %error, "cannot release an unused SOCI index in containerd");
        }
    }
}

/// Whether these are the labels of an index that [`Artifacts::keep_index`] stored and
/// [`Artifacts::release_index`] released.
fn was_released(labels: &HashMap<String, String>) -> bool {
    let of_content = |key: &String| Some(key.strip_prefix(gc::CONTENT)?.starts_with(".ztoc."));
    let keeps_ztocs = labels.keys().any(|key| of_content(key).unwrap_or_default());
    let config = format!("{}.config", gc::CONTENT);
    keeps_ztocs && !labels.contains_key(&config) && !labels.contains_key(gc::ROOT)
}

/// Calls containerd's content store for a limited time.
async fn limited<T>(
    containerd: &Containerd,
    namespace: &str,
    call: impl AsyncFnOnce(Content) -> Result<T, ContainerdError>,
) -> Result<T, ContainerdError> {
    let content = Content::new(&containerd.namespace(namespace)?);
    // Boxed: calls of containerd are large futures.
    within(CALL_LIMIT, Box::pin(call(content))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_was_released_differs_from_those_of_others() {
        let labels = |keys: &[&str]| {
            let keys = keys.iter().map(|key| (key.to_string(), String::new()));
            keys.collect::<HashMap<_, _>>()
        };
        let ztoc = "containerd.io/gc.ref.content.ztoc.0";
        assert!(was_released(&labels(&[ztoc])));
        assert!(!was_released(&labels(&[ztoc, gc::ROOT])));
        // As `soci pull` and `soci create` store it.
        let config = "containerd.io/gc.ref.content.config";
        assert!(!was_released(&labels(&[ztoc, config])));
        assert!(!was_released(&labels(&["made.by/test"])));
    }
}
