//! The documents of a SOCI-enabled image: SOCI indexes, annotated manifests, the image index.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use soci_oci::{Descriptor, Digest, Index, Manifest, Platform, annotations, media_types};
use soci_ztoc::prefetch::{Prefetch, PrefetchSpan};
use soci_ztoc::soci_index::{IndexVersion, PrefetchDescriptor, SociIndex, ZtocDescriptor};

use crate::convert::{Brought, ConvertedImage, Indexed, WrittenIndex};
use crate::image::{EntryContent, Image};
use crate::options::ConvertOptions;
use crate::sink::ImageSink;
use crate::source::SharedSource;
use crate::{IndexError, Progress};

/// The config of every SOCI index.
const EMPTY_CONFIG: &[u8] = b"{}";
/// BuildKit's attestations say with this which manifest they are about.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Writes manifests, indexes and small blobs.
pub(crate) struct Writer<'a> {
    source: &'a SharedSource,
    sink: &'a dyn ImageSink,
    options: &'a ConvertOptions,
    progress: &'a dyn Progress,
    indexed: BTreeMap<Digest, Indexed>,
    /// Why the first of the other layers have no zTOC.
    pub(crate) skipped: Vec<String>,
    written: BTreeSet<Digest>,
}

/// The image that is written: what its index lists, and what changed.
#[derive(Default)]
struct NewImage {
    manifests: Vec<Descriptor>,
    /// The new SOCI indexes, which come after the manifests, and the platforms of their images.
    indexes: Vec<(Platform, Descriptor)>,
    images: Vec<ConvertedImage>,
    /// New digests of image manifests, by the old ones.
    renamed: BTreeMap<Digest, Digest>,
}

impl<'a> Writer<'a> {
    /// Creates a writer for an image whose layers are at the destination. Warns about files and profiles
    /// to prefetch of which no layer has anything.
    pub(crate) fn new(
        source: &'a SharedSource,
        sink: &'a dyn ImageSink,
        options: &'a ConvertOptions,
        progress: &'a dyn Progress,
        brought: Brought,
    ) -> Self {
        let writer = Self {
            source,
            sink,
            options,
            progress,
            indexed: brought.indexed,
            skipped: brought.skipped,
            written: BTreeSet::new(),
        };
        writer.check_prefetch();
        writer
    }

    /// The new image index, everything that it refers to written.
    pub(crate) async fn image(
        &mut self,
        image: Image,
        selected: &BTreeSet<usize>,
    ) -> Result<(Index, Vec<ConvertedImage>), IndexError> {
        let mut new = NewImage::default();
        let mut old_indexes = Vec::new();
        let mut others = Vec::new();
        for (at, entry) in image.entries.into_iter().enumerate() {
            let mut descriptor = entry.descriptor;
            match entry.content {
                EntryContent::SociIndex { index, bytes } => {
                    old_indexes.push((descriptor, index, bytes))
                }
                EntryContent::Nested { documents, .. } => {
                    for (document, bytes) in documents {
                        self.put_manifest(&document, bytes).await?;
                    }
                    new.manifests.push(descriptor);
                }
                // Where a part of an image may be stored, the rest stays listed.
                EntryContent::Unread { .. } if self.sink.holds_parts() => {
                    new.manifests.push(descriptor)
                }
                EntryContent::Unread { reason, .. } => self.progress.warn(&format!(
                    "{} is left out of the converted image: it {reason}",
                    listed_as(&descriptor)
                )),
                EntryContent::Other { manifest, bytes } => {
                    // Keeps its place in the list; what it is about may yet be renamed.
                    new.manifests.push(descriptor.clone());
                    others.push((descriptor, manifest, bytes));
                }
                EntryContent::Image { manifest, platform } => {
                    if descriptor.platform.is_none() || image.list.is_none() {
                        descriptor.platform = Some(platform.clone());
                    }
                    let indexed = selected.contains(&at);
                    self.converted(&mut new, descriptor, manifest, platform, indexed)
                        .await?;
                }
            }
        }
        if new.images.is_empty() {
            return Err(IndexError::EmptyIndex {
                skipped: std::mem::take(&mut self.skipped),
            });
        }
        for (descriptor, manifest, bytes) in others {
            self.other(&mut new, descriptor, &manifest, bytes).await?;
        }
        for (descriptor, index, bytes) in old_indexes {
            self.old_index(&mut new, descriptor, &index, bytes).await?;
        }
        new.manifests
            .extend(new.indexes.into_iter().map(|(_, listed)| listed));
        let list = image.list.as_ref();
        let index = Index {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            artifact_type: list.and_then(|list| list.artifact_type.clone()),
            manifests: new.manifests,
            subject: list.and_then(|list| list.subject.clone()),
            annotations: image.list.map(|list| list.annotations).unwrap_or_default(),
        };
        Ok((index, new.images))
    }

    /// Writes the manifest of an image, with its index if it is to have one, and lists them.
    async fn converted(
        &mut self,
        new: &mut NewImage,
        mut descriptor: Descriptor,
        mut manifest: Manifest,
        platform: Platform,
        indexed: bool,
    ) -> Result<(), IndexError> {
        let index = match indexed {
            true => self.soci_index(&manifest, IndexVersion::V2, None).await?,
            false => None,
        };
        manifest.media_type = media_types::OCI_MANIFEST.to_owned();
        manifest.config.media_type = media_types::OCI_CONFIG.to_owned();
        if let Some(written) = &index {
            manifest.annotations.insert(
                annotations::INDEX_DIGEST.to_owned(),
                written.descriptor.digest.to_string(),
            );
        }
        self.copy_small(&manifest.config).await?;
        let written = self.manifest(&manifest).await?;
        new.renamed.insert(descriptor.digest, written.digest);
        descriptor.media_type = written.media_type;
        descriptor.digest = written.digest;
        descriptor.size = written.size;
        descriptor.annotations = manifest.annotations;
        descriptor.data = None;
        if let Some(index) = index {
            let (key, digest) = (annotations::IMAGE_MANIFEST_DIGEST, descriptor.digest);
            let mut listed = index.descriptor.clone().annotated(key, digest.to_string());
            // As the image's own descriptor has it, its variant included.
            listed.platform.clone_from(&descriptor.platform);
            new.images.push(ConvertedImage {
                platform: platform.clone(),
                manifest: digest,
                soci_index: index.descriptor.digest,
                indexed_layers: index.index.ztocs.len(),
                written: index,
            });
            new.indexes.push((platform, listed));
        }
        new.manifests.push(descriptor);
        Ok(())
    }

    /// The SOCI index of an image; `None` if it described no layer. `subject` is the image manifest
    /// that an index of version 1 refers to.
    pub(crate) async fn soci_index(
        &mut self,
        manifest: &Manifest,
        version: IndexVersion,
        subject: Option<Descriptor>,
    ) -> Result<Option<WrittenIndex>, IndexError> {
        let mut ztocs = Vec::new();
        for layer in &manifest.layers {
            if let Some(indexed) = self.indexed.get(&layer.digest) {
                ztocs.push(self.listed(layer, indexed));
            }
        }
        if ztocs.is_empty() {
            return Ok(None);
        }
        let prefetch = self.prefetch(manifest).await?;
        let index = SociIndex::new(
            version,
            ztocs,
            prefetch,
            subject,
            BTreeMap::from([(
                annotations::BUILD_TOOL_IDENTIFIER.to_owned(),
                self.options.build_tool_identifier.clone(),
            )]),
        );
        let config = Bytes::from_static(EMPTY_CONFIG);
        self.blob(&Descriptor::of(version.media_type(), &config), config)
            .await?;
        let bytes = Bytes::from(index.encode());
        let mut descriptor = Descriptor::of(media_types::OCI_MANIFEST, &bytes);
        self.put_manifest(&descriptor, bytes).await?;
        descriptor.artifact_type = Some(version.media_type().to_owned());
        Ok(Some(WrittenIndex { descriptor, index }))
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

    /// Each file is looked for from the uppermost layer downwards, as a container would see it. Files
    /// come before what the recorded start read.
    async fn prefetch(
        &mut self,
        manifest: &Manifest,
    ) -> Result<Vec<PrefetchDescriptor>, IndexError> {
        let mut by_layer: BTreeMap<Digest, Vec<PrefetchSpan>> = BTreeMap::new();
        for file in 0..self.options.prefetch_files.len() {
            let found = manifest.layers.iter().rev().find_map(|layer| {
                let indexed = self.indexed.get(&layer.digest)?;
                let span = indexed.prefetch.files.get(file)?.as_ref()?;
                Some((layer.digest, *span))
            });
            if let Some((layer, span)) = found {
                by_layer.entry(layer).or_default().push(span);
            }
        }
        let mut listed = Vec::new();
        let mut seen = BTreeSet::new();
        for layer in &manifest.layers {
            if !seen.insert(layer.digest) {
                continue;
            }
            let files = by_layer.remove(&layer.digest).unwrap_or_default();
            let recorded = self.indexed.get(&layer.digest);
            let recorded = recorded.map(|indexed| &indexed.prefetch.recorded);
            let Some(artifact) = prefetch_artifact(files, recorded) else {
                continue;
            };
            let bytes = Bytes::from(artifact.encode());
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

    /// Warns of what shall be prefetched and is in no layer.
    fn check_prefetch(&self) {
        for (at, path) in self.options.prefetch_files.iter().enumerate() {
            let found = self
                .indexed
                .values()
                .any(|layer| layer.prefetch.files.get(at).is_some_and(Option::is_some));
            if !found {
                self.progress.warn(&format!(
                    "prefetch file {path} not found in any indexed layer"
                ));
            }
        }
        let recorded = self.indexed.values();
        let recorded: usize = recorded.map(|layer| layer.prefetch.recorded.len()).sum();
        if self.options.profile.is_some() && recorded == 0 {
            self.progress
                .warn("the start-up profile is of no indexed layer: nothing of it is listed");
        }
    }

    /// Carries an artifact along: its layers are at the destination already.
    async fn other(
        &mut self,
        new: &mut NewImage,
        mut descriptor: Descriptor,
        manifest: &Manifest,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        let old = descriptor.digest;
        self.copy_small(&manifest.config).await?;
        self.put_manifest(&descriptor, bytes).await?;
        if rename(&mut descriptor, REFERENCE_DIGEST, &new.renamed)
            && let Some(listed) = new.manifests.iter_mut().find(|listed| listed.digest == old)
        {
            *listed = descriptor;
        }
        Ok(())
    }

    /// Carries along the SOCI index of an image that was not chosen this time. That of an image that
    /// got a new one is replaced.
    async fn old_index(
        &mut self,
        new: &mut NewImage,
        mut descriptor: Descriptor,
        index: &SociIndex,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        let old = descriptor.platform.as_ref();
        let replaces = |platform: &Platform| old.is_some_and(|old| old.matches(platform));
        if new.indexes.iter().any(|(platform, _)| replaces(platform)) {
            return Ok(());
        }
        self.copy_small(&index.manifest.config).await?;
        for blob in &index.manifest.layers {
            self.copy_small(blob).await?;
        }
        self.put_manifest(&descriptor, bytes).await?;
        let key = annotations::IMAGE_MANIFEST_DIGEST;
        rename(&mut descriptor, key, &new.renamed);
        new.manifests.push(descriptor);
        Ok(())
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

/// The artifact of a layer: files first, then what a start read, in its order. `None` if there is
/// nothing to list.
fn prefetch_artifact(
    files: Vec<PrefetchSpan>,
    recorded: Option<&BTreeMap<u32, u64>>,
) -> Option<Prefetch> {
    let recorded = recorded.filter(|recorded| !recorded.is_empty());
    let Some(recorded) = recorded else {
        return (!files.is_empty()).then(|| Prefetch::new(files));
    };
    let behind = i64::from(!files.is_empty());
    let files = files.iter().flat_map(PrefetchSpan::range);
    let files = files.map(|span| (span, 0));
    let recorded = recorded.iter().map(|(span, place)| {
        let place = i64::try_from(*place).unwrap_or(i64::MAX);
        (*span, place.saturating_add(behind))
    });
    Some(Prefetch::of_spans(files.chain(recorded)))
}

/// Names an entry of an index for a message.
fn listed_as(descriptor: &Descriptor) -> String {
    match &descriptor.platform {
        Some(platform) => format!("{} ({platform})", descriptor.digest),
        None => descriptor.digest.to_string(),
    }
}

/// Replaces a manifest's digest in an annotation by that of its successor. Returns whether it did.
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

/// A document as Go's encoder writes it.
pub(crate) fn encode<T: serde::Serialize>(document: &T) -> Result<Bytes, IndexError> {
    soci_oci::json::to_vec(document)
        .map(Bytes::from)
        .map_err(|e| IndexError::Options(format!("cannot encode a manifest: {e}")))
}
