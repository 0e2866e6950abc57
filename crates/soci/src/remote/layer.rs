//! The layers of an image at a registry: file trees, and how to read the files.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_discovery::Found;
use soci_layerfs::{Tree, TreeOptions};
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::BlobSource;
use soci_ztoc::Ztoc;
use soci_ztoc::soci_index::ZtocDescriptor;

use super::local_layer::LocalLayer;
use super::{RemoteArgs, RemoteImage, SpanReader};

/// Layers opened at a time.
const AT_ONCE: usize = 4;

/// A layer whose files can be listed and read.
pub(crate) struct RemoteLayer {
    pub(crate) digest: Digest,
    pub(crate) tree: Tree,
    pub(crate) reader: SpanReader,
    /// The zTOC: the registry's, or one that was built here.
    pub(crate) ztoc: Bytes,
    pub(crate) source: Arc<dyn BlobSource>,
    /// It has a zTOC at the registry.
    pub(crate) indexed: bool,
}

/// Opens an image at a registry and all its layers, lowest first, with or without an index.
pub(crate) async fn open_image(
    args: &RemoteArgs,
    reference: &Reference,
) -> anyhow::Result<Vec<RemoteLayer>> {
    let image = RemoteImage::open(args, reference).await?;
    let index = image.any_index(args.soci_index_digest).await;
    open_all(&image, index.as_ref()).await
}

/// Opens all layers, lowest first. Those without a zTOC are downloaded.
pub(crate) async fn open_all(
    image: &RemoteImage,
    index: Option<&Found>,
) -> anyhow::Result<Vec<RemoteLayer>> {
    let opening = image.manifest.layers.iter().map(|layer| async move {
        let ztoc = index.and_then(|found| found.index.ztoc_for(&layer.digest));
        open(image, layer, ztoc)
            .await
            .with_context(|| format!("layer {} cannot be read", layer.digest))
    });
    futures::stream::iter(opening)
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn open(
    image: &RemoteImage,
    layer: &Descriptor,
    ztoc: Option<&ZtocDescriptor>,
) -> anyhow::Result<RemoteLayer> {
    let (blob, source, disable_xattrs): (Bytes, Arc<dyn BlobSource>, bool) = match ztoc {
        Some(ztoc) => (
            image
                .client
                .blob_bytes(&image.reference, &ztoc.descriptor)
                .await?,
            Arc::new(image.client.blob(&image.reference, layer)),
            ztoc.disable_xattrs,
        ),
        None => {
            let stream = image.client.blob_stream(&image.reference, layer).await?;
            let stream = stream.map_err(io::Error::other).boxed();
            let (local, blob) = LocalLayer::download(stream, layer).await?;
            (blob, Arc::new(local), false)
        }
    };
    let parsed = blob.clone();
    let (tree, spans) = soci_task::blocking(move || {
        let parts = Ztoc::parse_index(parsed)?;
        let options = TreeOptions {
            disable_xattrs,
            ..TreeOptions::default()
        };
        let tree = Tree::of_index(&parts, options)?;
        anyhow::Ok((tree, parts.spans))
    })
    .await?;
    anyhow::ensure!(
        ztoc.is_none() || spans.compressed_size() == layer.size,
        "its zTOC is of a layer of {} bytes, not {}",
        spans.compressed_size(),
        layer.size
    );
    Ok(RemoteLayer {
        digest: layer.digest,
        tree,
        reader: SpanReader::new(spans, blob.clone(), Arc::clone(&source)),
        ztoc: blob,
        source,
        indexed: ztoc.is_some(),
    })
}
