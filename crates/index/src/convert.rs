//! Turning an image into a SOCI-enabled image (version 2): an image index that lists the image
//! manifests, each annotated with the digest of its SOCI index, and the SOCI indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::channel::mpsc;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_oci::{Descriptor, Digest, Platform, media_types};
use soci_ztoc::soci_index::SociIndex;

use crate::image::{EntryContent, Image};
use crate::layer::{LayerPrefetch, LayerResult, LayerWork, Wanted, process};
use crate::options::{ConvertOptions, Platforms};
use crate::sink::ImageSink;
use crate::source::{ImageSource, SharedSource};
use crate::transfer::{Cancel, CancelOnDrop, TransferMeter};
use crate::writer::{Writer, encode};
use crate::{IndexError, Progress};

/// What a conversion made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The image index.
    pub index: Descriptor,
    /// The images that got a SOCI index.
    pub images: Vec<ConvertedImage>,
}

/// One image of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertedImage {
    /// Its platform.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Digest,
    /// Its SOCI index.
    pub soci_index: Digest,
    /// How many of its layers have a zTOC.
    pub indexed_layers: usize,
    /// The same index: how it is listed, and what it lists.
    pub written: WrittenIndex,
}

/// A SOCI index that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenIndex {
    /// Its descriptor, with the artifact type.
    pub descriptor: Descriptor,
    /// Its content.
    pub index: SociIndex,
}

/// What is kept of a layer once its zTOC is written.
#[derive(Debug)]
pub(crate) struct Indexed {
    pub(crate) ztoc: Descriptor,
    /// Neither extended attributes nor opaque directories are in the layer.
    pub(crate) plain: bool,
    pub(crate) prefetch: LayerPrefetch,
}

/// Skipped layers that an error names.
const SKIPPED_SHOWN: usize = 3;

/// Outcome of the work on the layers.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    pub(crate) indexed: BTreeMap<Digest, Indexed>,
    /// Why the first of the others have no zTOC.
    pub(crate) skipped: Vec<String>,
}

/// Converts the image of `source` into `sink`. When the future is dropped, its threads stop and
/// nothing is left at the destination.
///
/// # Errors
/// When the image is damaged or incomplete, no layer gets a zTOC, or the destination refuses it.
pub async fn convert(
    source: &SharedSource,
    sink: Box<dyn ImageSink>,
    options: &ConvertOptions,
    progress: Arc<dyn Progress>,
) -> Result<Converted, IndexError> {
    let (image, selected) = load(&**source, options).await?;
    let cancel = Cancel::new();
    let _guard = CancelOnDrop(cancel.clone());
    let layers = layers_of(&image, &**source, &selected, options);
    let blobs: Vec<Descriptor> = layers
        .iter()
        .filter(|work| !crate::layer::is_foreign(&work.layer))
        .map(|work| work.layer.clone())
        .collect();
    sink.plan(&blobs)?;
    let brought = bring_layers(layers, source, &*sink, options, &progress, &cancel).await?;

    let mut writer = Writer::new(source, &*sink, options, &*progress, brought);
    let (index, images) = writer.image(image, &selected).await?;
    let bytes = encode(&index)?;
    let descriptor = Descriptor::of(media_types::OCI_INDEX, &bytes);
    progress.committing();
    sink.finish(&descriptor, bytes).await?;
    Ok(Converted {
        index: descriptor,
        images,
    })
}

/// Reads the image, and which of its entries get an index.
pub(crate) async fn load(
    source: &dyn ImageSource,
    options: &ConvertOptions,
) -> Result<(Image, BTreeSet<usize>), IndexError> {
    options.check()?;
    let image = Image::load(source).await?;
    if options.platforms == Platforms::All {
        image.check_all_present(source)?;
    }
    let selected = image.select(&options.platforms)?.into_iter().collect();
    Ok((image, selected))
}

/// The distinct layers of the image in a fixed order, with the zTOCs that the source has of them.
pub(crate) fn layers_of(
    image: &Image,
    source: &dyn ImageSource,
    selected: &BTreeSet<usize>,
    options: &ConvertOptions,
) -> Vec<LayerWork> {
    let mut existing: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    if !options.force {
        for entry in &image.entries {
            if let EntryContent::SociIndex { index, .. } = &entry.content {
                for ztoc in &index.ztocs {
                    if ztoc.span_size == Some(options.span_size) {
                        existing.insert(ztoc.layer_digest, ztoc.descriptor.clone());
                    }
                }
            }
        }
    }
    let mut layers: Vec<LayerWork> = Vec::new();
    let mut seen: BTreeMap<Digest, usize> = BTreeMap::new();
    for (at, entry) in image.entries.iter().enumerate() {
        let blobs = match &entry.content {
            EntryContent::Image { manifest, .. } | EntryContent::Other { manifest, .. } => {
                &manifest.layers
            }
            EntryContent::Nested { blobs, .. } => blobs,
            EntryContent::SociIndex { .. } | EntryContent::Unread { .. } => continue,
        };
        let selected = selected.contains(&at);
        for layer in blobs {
            match seen.get(&layer.digest).and_then(|at| layers.get_mut(*at)) {
                Some(work) => work.selected |= selected,
                None => {
                    seen.insert(layer.digest, layers.len());
                    let known = || {
                        let known = source.known_ztoc(layer.digest, options.span_size);
                        known.filter(|_| !options.force)
                    };
                    layers.push(LayerWork {
                        layer: layer.clone(),
                        selected,
                        existing: existing.get(&layer.digest).cloned().or_else(known),
                    });
                }
            }
        }
    }
    layers
}

/// Works on several layers at a time; zTOCs are written in the order of the layers, and then only
/// what the indexes need of them is kept.
pub(crate) async fn bring_layers(
    layers: Vec<LayerWork>,
    source: &SharedSource,
    sink: &dyn ImageSink,
    options: &ConvertOptions,
    progress: &Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<Brought, IndexError> {
    let files = options.prefetch_files.iter();
    let prefetch = Wanted {
        files: files
            .map(|path| soci_ztoc::tar_path::clean(path.as_bytes()))
            .collect(),
        profile: options.profile.clone(),
    };
    let mut results = futures::stream::iter(layers.into_iter().map(|work| {
        let meter = TransferMeter::new(work.layer.digest, Arc::clone(progress), cancel.clone());
        let (prefetch, progress) = (&prefetch, &**progress);
        async move { process(work, source, sink, options, prefetch, progress, &meter).await }
    }))
    .buffered(options.parallelism.get());
    // Both sides are polled all the time. Writing between two results would leave the layers at
    // work unpolled, and one of them may hold what the writing waits for: a token
    // that is being fetched.
    let (finished, mut queue) = mpsc::unbounded();
    let working = async move {
        while let Some(result) = results.try_next().await? {
            // The receiver is dropped only when the writing has failed, which ends this too.
            let _ = finished.unbounded_send(result);
        }
        Ok::<_, IndexError>(())
    };
    let writing = async {
        let mut brought = Brought::default();
        while let Some(result) = queue.next().await {
            let LayerResult {
                layer,
                outcome,
                ztoc,
            } = result;
            if let Some(outcome) = outcome {
                progress.layer(&layer, &outcome);
                if ztoc.is_none() && brought.skipped.len() < SKIPPED_SHOWN {
                    brought.skipped.push(outcome.line(&layer));
                }
            }
            if let Some(ztoc) = ztoc {
                let descriptor = ztoc.descriptor();
                sink.put_blob(&descriptor, ztoc.blob).await?;
                let facts = Indexed {
                    ztoc: descriptor,
                    plain: ztoc.plain,
                    prefetch: ztoc.prefetch,
                };
                brought.indexed.insert(layer.digest, facts);
            }
        }
        Ok(brought)
    };
    let ((), brought) = futures::future::try_join(working, writing).await?;
    Ok(brought)
}
