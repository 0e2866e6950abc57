//! Making SOCI indexes of version 1: beside an image that stays as it is, found through `subject`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use soci_oci::{Descriptor, Platform};
use soci_ztoc::soci_index::IndexVersion;

use crate::convert::{WrittenIndex, bring_layers, layers_of, load};
use crate::image::EntryContent;
use crate::options::ConvertOptions;
use crate::sink::ImageSink;
use crate::source::SharedSource;
use crate::transfer::{Cancel, CancelOnDrop};
use crate::writer::Writer;
use crate::{IndexError, Progress};

/// An index that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedIndex {
    /// The platform of its image.
    pub platform: Platform,
    /// The image manifest that it refers to.
    pub manifest: Descriptor,
    /// The index.
    pub written: WrittenIndex,
}

/// Makes an index of version 1 of each chosen image and writes it, with all that it lists, into
/// `sink`. The image itself is not copied: the destination of the index must have the image, or get it.
///
/// # Errors
/// When the image is damaged or incomplete, no layer gets a zTOC, or the destination refuses it.
pub async fn create(
    source: &SharedSource,
    sink: &dyn ImageSink,
    options: &ConvertOptions,
    progress: Arc<dyn Progress>,
) -> Result<Vec<CreatedIndex>, IndexError> {
    let (image, selected) = load(&**source, options).await?;
    let cancel = Cancel::new();
    let _guard = CancelOnDrop(cancel.clone());
    let layers = layers_of(&image, &**source, &selected, options)
        .into_iter()
        .filter(|work| work.selected)
        .collect();
    let artifacts = ArtifactsOnly(sink);
    let brought = bring_layers(layers, source, &artifacts, options, &progress, &cancel).await?;
    let mut writer = Writer::new(source, sink, options, &*progress, brought);
    progress.committing();
    let mut created = Vec::new();
    for (at, entry) in image.entries.into_iter().enumerate() {
        let EntryContent::Image { manifest, platform } = entry.content else {
            continue;
        };
        if !selected.contains(&at) {
            continue;
        }
        let subject = Descriptor::new(
            entry.descriptor.media_type,
            entry.descriptor.digest,
            entry.descriptor.size,
        );
        let written = writer
            .soci_index(&manifest, IndexVersion::V1, Some(subject.clone()))
            .await?;
        if let Some(written) = written {
            created.push(CreatedIndex {
                platform,
                manifest: subject,
                written,
            });
        }
    }
    if created.is_empty() {
        return Err(IndexError::EmptyIndex {
            skipped: writer.skipped,
        });
    }
    Ok(created)
}

/// A destination that gets the artifacts of an image but none of its layers.
struct ArtifactsOnly<'a>(&'a dyn ImageSink);

#[async_trait]
impl ImageSink for ArtifactsOnly<'_> {
    fn describe(&self) -> String {
        self.0.describe()
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.0.put_blob(blob, bytes).await
    }

    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.0.put_manifest(manifest, bytes).await
    }

    async fn finish(self: Box<Self>, _: &Descriptor, _: Bytes) -> Result<(), IndexError> {
        Ok(())
    }
}
