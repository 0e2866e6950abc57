//! Images that another snapshotter cannot start, because containerd has not kept their layers.
//!
//! A lazy layer is not in containerd's content store, and with `discard_unpacked_layers` no layer is.
//! After a change of CRI's snapshotter such an image would be present but unusable. Its record is removed,
//! so that the kubelet pulls it again; containers that run keep their snapshots.

use std::collections::BTreeMap;

use soci_containerd::{Containerd, ContainerdError, Content, ImageRecord, Images, Namespace};
use soci_oci::{Descriptor, Index, Manifest, media_types};

/// The namespace of CRI.
pub(crate) const CRI_NAMESPACE: &str = "k8s.io";
/// Names of images that no registry has.
const LOCAL: &str = "localhost/";
/// Largest manifest that is read, in bytes.
const MOST_MANIFEST: u64 = 8 << 20;

/// What became of the images whose layers are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Incomplete {
    /// Names whose records were removed.
    pub forgotten: Vec<String>,
    /// Names that were kept, because they cannot be pulled.
    pub kept: Vec<String>,
}

/// Removes the records of CRI's images whose layers are missing.
pub(crate) async fn forget_incomplete(
    containerd: &Containerd,
) -> Result<Incomplete, ContainerdError> {
    let namespace = containerd.namespace(CRI_NAMESPACE)?;
    if !namespace.exists().await? {
        return Ok(Incomplete::default());
    }
    let images = Images::new(&namespace);
    let mut by_target: BTreeMap<String, Vec<ImageRecord>> = BTreeMap::new();
    for image in images.list().await? {
        let target = image.target.digest.to_string();
        by_target.entry(target).or_default().push(image);
    }
    let mut outcome = Incomplete::default();
    for records in by_target.into_values() {
        let Some(first) = records.first() else {
            continue;
        };
        if is_complete(&namespace, &first.target).await? {
            continue;
        }
        let names = records.iter().map(|record| record.name.clone());
        if records.iter().any(|record| record.name.starts_with(LOCAL)) {
            outcome.kept.extend(names);
            continue;
        }
        for record in &records {
            images.remove(&record.name).await?;
        }
        outcome.forgotten.extend(names);
    }
    Ok(outcome)
}

/// Whether a manifest of the image is stored, and with each of those its configuration and layers.
async fn is_complete(namespace: &Namespace, target: &Descriptor) -> Result<bool, ContainerdError> {
    let content = Content::new(namespace);
    let Some(bytes) = content.get(&target.digest, MOST_MANIFEST).await? else {
        return Ok(false);
    };
    let manifests = if media_types::is_index(&target.media_type) {
        let Ok(index) = serde_json::from_slice::<Index>(&bytes) else {
            return Ok(false);
        };
        // A SOCI index is listed beside the images, and is none.
        let images = index.manifests.into_iter();
        images
            .filter(|manifest| manifest.artifact_type.is_none())
            .collect()
    } else {
        vec![target.clone()]
    };
    let mut stored = 0;
    for descriptor in manifests {
        let Some(bytes) = content.get(&descriptor.digest, MOST_MANIFEST).await? else {
            continue;
        };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return Ok(false);
        };
        stored += 1;
        for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if content.info(&part.digest).await?.is_none() {
                return Ok(false);
            }
        }
    }
    Ok(stored > 0)
}

/// Containers of all namespaces whose root is a snapshot of ours, as `namespace/id`.
pub(crate) async fn users(containerd: &Containerd) -> Result<Vec<String>, ContainerdError> {
    let mut users = Vec::new();
    for name in containerd.namespaces().await? {
        let ids = containerd.namespace(&name)?.containers_on("soci").await?;
        users.extend(ids.into_iter().map(|id| format!("{name}/{id}")));
    }
    Ok(users)
}
