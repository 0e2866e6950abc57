//! Images in containerd as sources and destinations of the index builder, and errors with advice.

mod layer_blob;
mod sink;
mod source;

use std::collections::BTreeSet;

use anyhow::{anyhow, bail};
use soci_containerd::{Code, ContainerdError, ImageRecord, Images, Namespace};
use soci_index::Platforms;
use soci_oci::Digest;

pub(crate) use layer_blob::LayerBlob;
pub(crate) use sink::ContainerdSink;
pub(crate) use source::{ContainerdSource, KnownZtocs};

/// Connects to the socket at `address`, a path or `unix://PATH`.
pub(crate) async fn connect(address: &str, namespace: &str) -> anyhow::Result<Namespace> {
    let containerd = soci_containerd::Containerd::connect(address).await;
    let containerd = containerd.map_err(|error| {
        anyhow!("{error}; is it running, is --address right, and may you access the socket?")
    })?;
    Ok(containerd.namespace(namespace)?)
}

/// Looks up an image that must exist.
pub(crate) async fn image(containerd: &Namespace, name: &str) -> anyhow::Result<ImageRecord> {
    if let Some(image) = Images::new(containerd).get(name).await? {
        return Ok(image);
    }
    let elsewhere = namespaces_with(containerd, name).await;
    if elsewhere.is_empty() {
        bail!(
            "image {name:?}: not found in containerd; pull it first, or list the images with `ctr images \
             ls` (is --namespace right?)"
        );
    }
    bail!(
        "image {name:?}: not found in this namespace of containerd; it is in namespace {}: give --namespace",
        elsewhere.join(", ")
    )
}

/// The manifests of an image, for these platforms.
pub(crate) async fn manifests(
    containerd: &Namespace,
    name: &str,
    platforms: &Platforms,
) -> anyhow::Result<BTreeSet<Digest>> {
    let record = image(containerd, name).await?;
    let source = ContainerdSource::new(containerd, record, KnownZtocs::new(), None);
    let image = soci_index::Image::load(&source).await?;
    let selected = image.select(platforms)?.into_iter();
    let entries = selected.filter_map(|at| image.entries.get(at));
    Ok(entries.map(|entry| entry.descriptor.digest).collect())
}

/// The other namespaces that have the image, for an error message: further failures do not matter.
async fn namespaces_with(containerd: &Namespace, name: &str) -> Vec<String> {
    let all = containerd.containerd();
    let mut found = Vec::new();
    for namespace in all.namespaces().await.unwrap_or_default() {
        if let Ok(other) = all.namespace(&namespace)
            && let Ok(Some(_)) = Images::new(&other).get(name).await
        {
            found.push(namespace);
        }
    }
    found
}

/// Adds advice to the error of a snapshotter that cannot be reached at all.
pub(crate) fn snapshotter_failed(snapshotter: &str, error: ContainerdError) -> anyhow::Error {
    let advice = match &error {
        ContainerdError::Refused(refusal) if refusal.message().contains("not loaded") => format!(
            "containerd's configuration needs it under [proxy_plugins.{snapshotter}], and \
             containerd a restart after that (see soci pull --help)"
        ),
        ContainerdError::Refused(refusal)
            if error.code() == Some(Code::Unavailable) && names_connection(refusal.message()) =>
        {
            format!(
                "is the daemon of snapshotter {snapshotter:?} running, at the address that containerd's \
             configuration has under [proxy_plugins.{snapshotter}]?"
            )
        }
        _ => return error.into(),
    };
    anyhow!("{error}; {advice}")
}

/// Whether an error is gRPC's own about the connection from containerd to the snapshotter: a
/// snapshotter that is there may be unavailable for other reasons, in other words.
fn names_connection(message: &str) -> bool {
    const WORDS: [&str; 5] = [
        "connection error",
        "error reading from server",
        "server handshake",
        "server preface",
        "transport is closing",
    ];
    WORDS.iter().any(|words| message.contains(words))
}
