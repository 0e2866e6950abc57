//! Turning an image into a SOCI-enabled image (version 2): an image index that lists the image
//! manifests, each annotated with the digest of its SOCI index, and the SOCI indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use oci::{Descriptor, Digest, Index, Manifest, Platform, annotations, media_types};
use ztoc::prefetch::{Prefetch, PrefetchSpan};
use ztoc::soci_index::{IndexVersion, PrefetchDescriptor, SociIndex, ZtocDescriptor};

use crate::image::{Content, Entry, Image};
use crate::layer::{LayerResult, LayerWork, process};
use crate::options::ConvertOptions;
use crate::sink::ImageSink;
use crate::source::SharedSource;
use crate::transfer::{Cancel, CancelOnDrop, Meter};
use crate::{IndexError, Progress};

/// The config of every SOCI index.
const EMPTY_CONFIG: &[u8] = b"{}";
/// BuildKit's attestations say with this which manifest they are about.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

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
}

/// What is kept of a layer once its zTOC is written.
#[derive(Debug)]
struct Indexed {
    ztoc: Descriptor,
    plain: bool,
    prefetch: Vec<Option<PrefetchSpan>>,
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
    options.check()?;
    let cancel = Cancel::new();
    let _guard = CancelOnDrop(cancel.clone());
    let image = Image::load(&**source).await?;
    let selected: BTreeSet<usize> = image.select(&options.platforms)?.into_iter().collect();

    let layers = layers_of(&image, &selected, options);
    let blobs: Vec<Descriptor> = layers
        .iter()
        .filter(|work| !crate::layer::is_foreign(&work.layer))
        .map(|work| work.layer.clone())
        .collect();
    sink.plan(&blobs)?;
    let indexed = bring_layers(layers, source, &*sink, options, &progress, &cancel).await?;

    let mut writer = Writer {
        source,
        sink: &*sink,
        options,
        progress: &*progress,
        indexed,
        written: BTreeSet::new(),
    };
    writer.check_prefetch_files();
    let (index, images) = writer.image(image, &selected).await?;
    let bytes = encode(&index)?;
    let descriptor = Descriptor::of(media_types::OCI_INDEX, &bytes);
    sink.finish(&descriptor, bytes).await?;
    Ok(Converted {
        index: descriptor,
        images,
    })
}

/// The distinct layers of the image in a fixed order, with the zTOCs that the source has of them.
fn layers_of(
    image: &Image,
    selected: &BTreeSet<usize>,
    options: &ConvertOptions,
) -> Vec<LayerWork> {
    let mut existing: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    if !options.force {
        for entry in &image.entries {
            if let Content::SociIndex { index, .. } = &entry.content {
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
        let manifest = match &entry.content {
            Content::Image { manifest, .. } | Content::Other { manifest, .. } => manifest,
            Content::SociIndex { .. } => continue,
        };
        let selected = selected.contains(&at);
        for layer in &manifest.layers {
            match seen.get(&layer.digest).and_then(|at| layers.get_mut(*at)) {
                Some(work) => work.selected |= selected,
                None => {
                    seen.insert(layer.digest, layers.len());
                    layers.push(LayerWork {
                        layer: layer.clone(),
                        selected,
                        existing: existing.get(&layer.digest).cloned(),
                    });
                }
            }
        }
    }
    layers
}

/// Works on several layers at a time; zTOCs are written in the order of the layers, and then only
/// what the indexes need of them is kept.
async fn bring_layers(
    layers: Vec<LayerWork>,
    source: &SharedSource,
    sink: &dyn ImageSink,
    options: &ConvertOptions,
    progress: &Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<BTreeMap<Digest, Indexed>, IndexError> {
    let prefetch: Vec<Vec<u8>> = options
        .prefetch_files
        .iter()
        .map(|path| crate::prefetch::clean(path.as_bytes()))
        .collect();
    let mut indexed = BTreeMap::new();
    let mut results = futures::stream::iter(layers.into_iter().map(|work| {
        let meter = Meter::new(work.layer.digest, Arc::clone(progress), cancel.clone());
        let (prefetch, progress) = (&prefetch, &**progress);
        async move { process(work, source, sink, options, prefetch, progress, &meter).await }
    }))
    .buffered(options.parallelism.get());
    while let Some(result) = results.try_next().await? {
        let LayerResult {
            layer,
            outcome,
            ztoc,
        } = result;
        if let Some(outcome) = outcome {
            progress.layer(&layer, &outcome);
        }
        if let Some(ztoc) = ztoc {
            let descriptor = ztoc.descriptor();
            sink.put_blob(&descriptor, ztoc.blob).await?;
            let facts = Indexed {
                ztoc: descriptor,
                plain: ztoc.plain,
                prefetch: ztoc.prefetch,
            };
            indexed.insert(layer.digest, facts);
        }
    }
    Ok(indexed)
}

/// Writes manifests, indexes and small blobs.
struct Writer<'a> {
    source: &'a SharedSource,
    sink: &'a dyn ImageSink,
    options: &'a ConvertOptions,
    progress: &'a dyn Progress,
    indexed: BTreeMap<Digest, Indexed>,
    written: BTreeSet<Digest>,
}

impl Writer<'_> {
    /// The new image index, everything that it refers to written.
    async fn image(
        &mut self,
        image: Image,
        selected: &BTreeSet<usize>,
    ) -> Result<(Index, Vec<ConvertedImage>), IndexError> {
        let mut images = Vec::new();
        let mut renamed: BTreeMap<Digest, Digest> = BTreeMap::new();
        let mut new_indexes: Vec<(Platform, Descriptor)> = Vec::new();
        let mut manifests: Vec<Descriptor> = Vec::new();
        let mut old_indexes: Vec<(Descriptor, Box<SociIndex>, Bytes)> = Vec::new();
        let mut others: Vec<(Descriptor, Manifest, Bytes)> = Vec::new();
        for (at, entry) in image.entries.into_iter().enumerate() {
            let Entry {
                mut descriptor,
                content,
            } = entry;
            match content {
                Content::SociIndex { index, bytes } => old_indexes.push((descriptor, index, bytes)),
                Content::Other { manifest, bytes } => {
                    // Keeps its place in the list; what it is about may yet be renamed.
                    manifests.push(descriptor.clone());
                    others.push((descriptor, manifest, bytes));
                }
                Content::Image {
                    mut manifest,
                    platform,
                } => {
                    let old = descriptor.digest;
                    let index = if selected.contains(&at) {
                        self.soci_index(&manifest).await?
                    } else {
                        None
                    };
                    manifest.media_type = media_types::OCI_MANIFEST.to_owned();
                    manifest.config.media_type = media_types::OCI_CONFIG.to_owned();
                    if let Some((index, _)) = &index {
                        manifest.annotations.insert(
                            annotations::INDEX_DIGEST.to_owned(),
                            index.digest.to_string(),
                        );
                    }
                    self.copy_small(&manifest.config).await?;
                    let new = self.manifest(&manifest).await?;
                    renamed.insert(old, new.digest);
                    descriptor.media_type = new.media_type;
                    descriptor.digest = new.digest;
                    descriptor.size = new.size;
                    descriptor.annotations = manifest.annotations;
                    descriptor.data = None;
                    if descriptor.platform.is_none() || image.list.is_none() {
                        descriptor.platform = Some(platform.clone());
                    }
                    manifests.push(descriptor);
                    if let Some((index, indexed_layers)) = index {
                        images.push(ConvertedImage {
                            platform: platform.clone(),
                            manifest: new.digest,
                            soci_index: index.digest,
                            indexed_layers,
                        });
                        let mut listed = index
                            .annotated(annotations::IMAGE_MANIFEST_DIGEST, new.digest.to_string());
                        listed.platform = Some(platform.clone());
                        new_indexes.push((platform, listed));
                    }
                }
            }
        }
        if images.is_empty() {
            return Err(IndexError::EmptyIndex);
        }
        for (mut descriptor, manifest, bytes) in others {
            let old = descriptor.digest;
            self.other(&manifest, &descriptor, bytes).await?;
            if rename(&mut descriptor, REFERENCE_DIGEST, &renamed)
                && let Some(listed) = manifests.iter_mut().find(|listed| listed.digest == old)
            {
                *listed = descriptor;
            }
        }
        for (mut descriptor, index, bytes) in old_indexes {
            // The old index of an image that got a new one is replaced.
            let replaced = new_indexes.iter_mut().find(|(platform, _)| {
                descriptor
                    .platform
                    .as_ref()
                    .is_some_and(|old| old.matches(platform))
            });
            match replaced {
                Some(_) => {}
                None => {
                    self.old_index(&index, &descriptor, bytes).await?;
                    rename(
                        &mut descriptor,
                        annotations::IMAGE_MANIFEST_DIGEST,
                        &renamed,
                    );
                    manifests.push(descriptor);
                }
            }
        }
        manifests.extend(new_indexes.into_iter().map(|(_, listed)| listed));
        let index = Index {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            artifact_type: image
                .list
                .as_ref()
                .and_then(|list| list.artifact_type.clone()),
            manifests,
            subject: image.list.as_ref().and_then(|list| list.subject.clone()),
            annotations: image.list.map(|list| list.annotations).unwrap_or_default(),
        };
        Ok((index, images))
    }

    /// The SOCI index of an image and how many layers it describes; `None` if that were none.
    async fn soci_index(
        &mut self,
        manifest: &Manifest,
    ) -> Result<Option<(Descriptor, usize)>, IndexError> {
        let mut ztocs = Vec::new();
        for layer in &manifest.layers {
            if let Some(indexed) = self.indexed.get(&layer.digest) {
                ztocs.push(self.listed(layer, indexed));
            }
        }
        if ztocs.is_empty() {
            return Ok(None);
        }
        let indexed_layers = ztocs.len();
        let prefetch = self.prefetch(manifest).await?;
        let index = SociIndex::new(
            IndexVersion::V2,
            ztocs,
            prefetch,
            None,
            BTreeMap::from([(
                annotations::BUILD_TOOL_IDENTIFIER.to_owned(),
                self.options.build_tool_identifier.clone(),
            )]),
        );
        let config = Bytes::from_static(EMPTY_CONFIG);
        self.blob(&Descriptor::of(media_types::SOCI_INDEX_V2, &config), config)
            .await?;
        let bytes = Bytes::from(index.encode());
        let mut descriptor = Descriptor::of(media_types::OCI_MANIFEST, &bytes);
        self.put_manifest(&descriptor, bytes).await?;
        descriptor.artifact_type = Some(media_types::SOCI_INDEX_V2.to_owned());
        Ok(Some((descriptor, indexed_layers)))
    }

    fn listed(&self, layer: &Descriptor, indexed: &Indexed) -> ZtocDescriptor {
        let disable_xattrs = self.options.optimize_xattrs && indexed.plain;
        let mut descriptor = indexed
            .ztoc
            .clone()
            .annotated(annotations::IMAGE_LAYER_DIGEST, layer.digest.to_string())
            .annotated(
                annotations::IMAGE_LAYER_MEDIA_TYPE,
                layer.media_type.as_str(),
            )
            .annotated(annotations::SPAN_SIZE, self.options.span_size.to_string());
        if disable_xattrs {
            descriptor = descriptor.annotated(annotations::DISABLE_XATTRS, "true");
        }
        ZtocDescriptor {
            descriptor,
            layer_digest: layer.digest,
            layer_media_type: layer.media_type.clone(),
            span_size: Some(self.options.span_size),
            disable_xattrs,
        }
    }

    /// Each file is looked for from the uppermost layer downwards, as a container would see it.
    async fn prefetch(
        &mut self,
        manifest: &Manifest,
    ) -> Result<Vec<PrefetchDescriptor>, IndexError> {
        let mut by_layer: BTreeMap<Digest, Vec<PrefetchSpan>> = BTreeMap::new();
        for file in 0..self.options.prefetch_files.len() {
            let found = manifest.layers.iter().rev().find_map(|layer| {
                let span = self
                    .indexed
                    .get(&layer.digest)?
                    .prefetch
                    .get(file)?
                    .as_ref()?;
                Some((layer.digest, *span))
            });
            if let Some((layer, span)) = found {
                by_layer.entry(layer).or_default().push(span);
            }
        }
        let mut listed = Vec::new();
        for layer in &manifest.layers {
            let Some(spans) = by_layer.remove(&layer.digest) else {
                continue;
            };
            let bytes = Bytes::from(Prefetch::new(spans).encode());
            let artifact = PrefetchDescriptor::new(&bytes, layer.digest);
            if !self.written.contains(&artifact.descriptor.digest) {
                self.progress
                    .prefetch(layer.digest, artifact.descriptor.digest);
            }
            self.blob(&artifact.descriptor, bytes).await?;
            listed.push(artifact);
        }
        Ok(listed)
    }

    fn check_prefetch_files(&self) {
        for (at, path) in self.options.prefetch_files.iter().enumerate() {
            let found = self
                .indexed
                .values()
                .any(|layer| layer.prefetch.get(at).is_some_and(Option::is_some));
            if !found {
                self.progress.warn(&format!(
                    "prefetch file {path} not found in any indexed layer"
                ));
            }
        }
    }

    /// An artifact that is carried along: its layers are at the destination already.
    async fn other(
        &mut self,
        manifest: &Manifest,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        self.copy_small(&manifest.config).await?;
        self.put_manifest(descriptor, bytes).await
    }

    /// The SOCI index of an image that was not chosen this time.
    async fn old_index(
        &mut self,
        index: &SociIndex,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        self.copy_small(&index.manifest.config).await?;
        for blob in &index.manifest.layers {
            self.copy_small(blob).await?;
        }
        self.put_manifest(descriptor, bytes).await
    }

    async fn copy_small(&mut self, blob: &Descriptor) -> Result<(), IndexError> {
        if !self.written.contains(&blob.digest) {
            let bytes = self.source.bytes(blob).await?;
            self.blob(blob, bytes).await?;
        }
        Ok(())
    }

    async fn blob(&mut self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        if self.written.insert(blob.digest) {
            self.sink.put_blob(blob, bytes).await?;
        }
        Ok(())
    }

    async fn manifest(&mut self, manifest: &Manifest) -> Result<Descriptor, IndexError> {
        let bytes = encode(manifest)?;
        let descriptor = Descriptor::of(media_types::OCI_MANIFEST, &bytes);
        self.put_manifest(&descriptor, bytes).await?;
        Ok(descriptor)
    }

    async fn put_manifest(
        &mut self,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        if self.written.insert(descriptor.digest) {
            self.sink.put_manifest(descriptor, bytes).await?;
        }
        Ok(())
    }
}

/// Makes an annotation that names a manifest name its successor. Says whether it did.
fn rename(descriptor: &mut Descriptor, key: &str, renamed: &BTreeMap<Digest, Digest>) -> bool {
    let Some(value) = descriptor.annotations.get_mut(key) else {
        return false;
    };
    match value
        .parse::<Digest>()
        .ok()
        .and_then(|old| renamed.get(&old))
    {
        Some(new) => {
            *value = new.to_string();
            true
        }
        None => false,
    }
}

fn encode<T: serde::Serialize>(document: &T) -> Result<Bytes, IndexError> {
    oci::json::to_vec(document)
        .map(Bytes::from)
        .map_err(|e| IndexError::Options(format!("cannot encode a manifest: {e}")))
}
