//! Whether an image is indexed already: an event may come twice, and several workers may see it.

use std::sync::Arc;

use soci_discovery::{RegistryManifests, referring_index};
use soci_index::{EntryContent, Image, ImageSource as _, IndexError, RegistrySource};
use soci_oci::{Digest, Manifest, Reference};
use soci_registry::{Client, RegistryError};

/// What an indexed image of version 2 must hold to be the result of indexing an image.
pub(super) struct Wanted<'a> {
    pub(super) image: &'a Image,
    pub(super) selected: &'a [usize],
    pub(super) span_size: u64,
}

impl Wanted<'_> {
    /// Returns the image index under `target` if it is the result of indexing the image.
    pub(super) async fn find(
        &self,
        client: &Client,
        target: &Reference,
    ) -> Result<Option<Digest>, IndexError> {
        let root = match client.resolve(target).await {
            Ok(root) => root,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let source = Arc::new(RegistrySource::new(client.clone(), target.at(root.digest)));
        let there = match Box::pin(Image::load(&*source)).await {
            Ok(there) => there,
            // What is under the tag is replaced, whatever it is.
            Err(IndexError::Registry(error)) if !error.is_not_found() => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        let all = self
            .image
            .entries
            .iter()
            .enumerate()
            .all(|(at, entry)| match &entry.content {
                EntryContent::Image { manifest, .. } => {
                    self.has(&there, manifest, self.selected.contains(&at))
                }
                _ => true,
            });
        tracing::debug!(
            image = source.describe(),
            indexed = all,
            "looked for an earlier result"
        );
        Ok(all.then_some(root.digest))
    }

    /// Whether an image with the same content, and an index if it is to have one, is among `there`.
    fn has(&self, there: &Image, manifest: &Manifest, indexed: bool) -> bool {
        there.entries.iter().any(|entry| {
            let EntryContent::Image {
                manifest: other, ..
            } = &entry.content
            else {
                return false;
            };
            let layers = |manifest: &Manifest| -> Vec<Digest> {
                manifest.layers.iter().map(|layer| layer.digest).collect()
            };
            other.config.digest == manifest.config.digest
                && layers(other) == layers(manifest)
                && (!indexed || self.has_index(there, other))
        })
    }

    fn has_index(&self, there: &Image, manifest: &Manifest) -> bool {
        let Some(Ok(named)) = manifest.soci_index() else {
            return false;
        };
        there.entries.iter().any(|entry| {
            let EntryContent::SociIndex { index, .. } = &entry.content else {
                return false;
            };
            let size = Some(self.span_size);
            entry.descriptor.digest == named
                && index.ztocs.iter().all(|ztoc| ztoc.span_size == size)
        })
    }
}

/// Returns the indexes of version 1 if each of the selected images has one.
pub(super) async fn referrers(
    client: &Client,
    at: &Reference,
    image: &Image,
    selected: &[usize],
) -> Result<Option<Vec<Digest>>, RegistryError> {
    let source = RegistryManifests::new(client.clone(), at.clone());
    let mut found = Vec::new();
    for entry in selected.iter().filter_map(|at| image.entries.get(*at)) {
        match referring_index(&source, entry.descriptor.digest).await? {
            Some(index) => found.push(index),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}
