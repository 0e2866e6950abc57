//! The image's documents: index, manifest and configuration, fetched and put into containerd.

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use soci_containerd::Content;
use soci_containerd::labels::{self, gc};
use soci_oci::{
    Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference, media_types,
};
use soci_registry::Client;

/// The documents of an image for one platform.
#[derive(Debug)]
pub(crate) struct ImageDocuments {
    /// Descriptor that the reference resolves to: the target of the image record.
    pub(crate) target: Descriptor,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
}

/// Resolves the reference and fetches its documents for one platform: those that containerd does not
/// have, for what a digest names does not change.
pub(crate) async fn fetch(
    content: &Content,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> anyhow::Result<ImageDocuments> {
    let target = client.resolve(reference).await?;
    let bytes = document(content, client, reference, &target).await?;
    // Kind, blob, labels; parents before children.
    let mut documents: Vec<(&str, Descriptor, Bytes, HashMap<String, String>)> = Vec::new();
    let (manifest_descriptor, manifest_bytes) = if media_types::is_index(&target.media_type) {
        let index: Index = serde_json::from_slice(&bytes)
            .with_context(|| format!("the image index {} is invalid", target.digest))?;
        let (at, chosen) = choose(&index, platform)?;
        documents.push((
            "index",
            target.clone(),
            bytes,
            HashMap::from([gc::of_child(at, chosen)]),
        ));
        let bytes = document(content, client, reference, chosen).await?;
        (chosen.clone(), bytes)
    } else if media_types::is_manifest(&target.media_type) {
        (target.clone(), bytes)
    } else {
        bail!(
            "{reference} has media type {:?}, which is not an image",
            target.media_type
        );
    };
    let manifest: Manifest = serde_json::from_slice(&manifest_bytes)
        .with_context(|| format!("the manifest {} is invalid", manifest_descriptor.digest))?;
    if manifest.config.size > soci_index::MAX_DOCUMENT {
        bail!(
            "the configuration of {reference} is larger than {} bytes",
            soci_index::MAX_DOCUMENT
        );
    }
    let config_bytes = match stored(content, &manifest.config).await {
        Some(bytes) => bytes,
        None => client.blob_bytes(reference, &manifest.config).await?,
    };
    let config: ImageConfig = serde_json::from_slice(&config_bytes)
        .with_context(|| format!("the configuration {} is invalid", manifest.config.digest))?;
    // An image that does not say what it is for may be for anything.
    let is_for = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    if !config.architecture.is_empty() && !platform.matches(&is_for) {
        bail!("{reference} {}", no_manifest(platform, &is_for.to_string()));
    }
    if config.rootfs.diff_ids.len() != manifest.layers.len() || manifest.layers.is_empty() {
        bail!(
            "{reference} cannot be unpacked: its manifest has {} layers, its configuration {}",
            manifest.layers.len(),
            config.rootfs.diff_ids.len()
        );
    }
    let manifest_digest = manifest_descriptor.digest;
    documents.push((
        "manifest",
        manifest_descriptor,
        manifest_bytes,
        gc::of_manifest(&manifest),
    ));
    documents.push((
        "config",
        manifest.config.clone(),
        config_bytes,
        HashMap::new(),
    ));
    // From the bottom up: a visible parent has visible children.
    for (kind, descriptor, bytes, mut labels) in documents.into_iter().rev() {
        labels.extend([labels::source(reference)]);
        content
            .write_bytes(kind, &descriptor, labels, bytes)
            .await?;
    }
    Ok(ImageDocuments {
        target,
        manifest_digest,
        manifest,
        config,
    })
}

/// Reads a document from containerd, which has verified it. One that cannot be read counts as
/// missing.
async fn stored(content: &Content, descriptor: &Descriptor) -> Option<Bytes> {
    let (digest, size) = (descriptor.digest, descriptor.size);
    let limit = size.min(soci_index::MAX_DOCUMENT);
    let read = content.get(&digest, limit).await;
    let read = read.unwrap_or_else(|error| {
        let error = soci_errors::chain(&error);
        tracing::debug!(%digest, error, "cannot read a stored document");
        None
    });
    read.filter(|bytes| bytes.len() as u64 == size)
}

async fn document(
    content: &Content,
    client: &Client,
    reference: &Reference,
    descriptor: &Descriptor,
) -> anyhow::Result<Bytes> {
    if let Some(bytes) = stored(content, descriptor).await {
        return Ok(bytes);
    }
    let (_, bytes) = client.manifest(reference, descriptor.digest).await?;
    if bytes.len() as u64 != descriptor.size {
        bail!(
            "{} has {} bytes where {} were announced",
            descriptor.digest,
            bytes.len(),
            descriptor.size
        );
    }
    Ok(bytes)
}

/// The image for a platform and its position; SOCI indexes and attestations are not images.
fn choose<'a>(index: &'a Index, platform: &Platform) -> anyhow::Result<(usize, &'a Descriptor)> {
    let images = || {
        index
            .manifests
            .iter()
            .enumerate()
            .filter(|(_, descriptor)| {
                media_types::is_manifest(&descriptor.media_type)
                    && descriptor.artifact_type.is_none()
            })
    };
    images()
        .find(|(_, image)| image.platform.as_ref().is_some_and(|p| platform.matches(p)))
        .with_context(|| {
            let have: Vec<String> = images()
                .filter_map(|(_, image)| image.platform.as_ref())
                .filter(|platform| platform.os != "unknown")
                .map(ToString::to_string)
                .collect();
            format!("the image {}", no_manifest(platform, &have.join(", ")))
        })
}

fn no_manifest(platform: &Platform, have: &str) -> String {
    format!("has no manifest for platform {platform}; it has {have} (choose with --platform)")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_soci_index_is_never_taken_for_the_image() {
        let entry = |name: &str, artifact: bool| Descriptor {
            platform: Some(Platform::new("linux", "amd64", None)),
            artifact_type: artifact.then(|| media_types::SOCI_INDEX_V2.to_owned()),
            ..Descriptor::of(media_types::OCI_MANIFEST, name.as_bytes())
        };
        let index = Index {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            artifact_type: None,
            manifests: vec![entry("soci", true), entry("image", false)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let (at, chosen) = choose(&index, &Platform::new("linux", "x86_64", None)).unwrap();
        assert_eq!((at, chosen.digest), (1, Digest::of(b"image")));
        let error = choose(&index, &Platform::new("linux", "s390x", None)).unwrap_err();
        assert!(error.to_string().contains("it has linux/amd64"), "{error}");
    }
}
