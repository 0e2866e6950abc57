//! Indexing one image at its registry. Layers stream from the registry through the builder of
//! zTOCs; nothing is written to the disk.

mod already;
mod failure;
mod meter;
mod reuse;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use soci_index::{
    ConvertOptions, EntryContent, Image, IndexError, Platforms, RegistrySink, RegistrySource,
    SharedSource,
};
use soci_oci::{Digest, Reference};
use soci_registry::Client;

pub use self::failure::Failure;
use self::meter::BytesRead;
use self::reuse::WithZtocs;
use crate::Push;

/// Moves of a tag that are followed; the event of the last one comes as well.
const MAX_MOVES: usize = 4;

/// Which versions of SOCI indexes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Versions {
    /// Version 1: beside the image, found through its referrers.
    V1,
    /// Version 2: a copy of the image under another tag, bound to its indexes.
    #[default]
    V2,
    /// Both.
    Both,
}

impl Versions {
    const fn v1(self) -> bool {
        matches!(self, Self::V1 | Self::Both)
    }

    const fn v2(self) -> bool {
        matches!(self, Self::V2 | Self::Both)
    }
}

/// What is made of images.
#[derive(Debug, Clone)]
pub struct IndexSettings {
    /// Which versions.
    pub versions: Versions,
    /// What is appended to the tag of an image of version 2.
    pub suffix: String,
    /// Images of which all layers together have fewer bytes are left alone.
    pub min_image_size: u64,
    /// How zTOCs are built.
    pub convert: ConvertOptions,
}

/// What was made of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The manifest or index that was pushed.
    pub digest: Option<Digest>,
    /// The image of version 2, with its tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its image index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Digest>,
    /// The SOCI indexes of version 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Digest>,
    /// Layers that have a zTOC, of all platforms.
    pub layers: usize,
    /// Bytes of layers that were read.
    pub bytes: u64,
}

/// Carries out jobs.
#[async_trait]
pub trait ImageIndexer: Send + Sync + 'static {
    /// Indexes an image.
    ///
    /// # Errors
    /// It is not to be indexed, it cannot be, or it may succeed later.
    async fn index(&self, push: &Push) -> Result<Outcome, Failure>;

    /// Returns the push that has moved the tag of `push` since.
    ///
    /// # Errors
    /// The tag cannot be read.
    async fn newer(&self, _push: &Push) -> Result<Option<Push>, Failure> {
        Ok(None)
    }

    /// Whether the image of a push is indexed under its tag. By default it is not known, and it
    /// is indexed again.
    ///
    /// # Errors
    /// The registry cannot be read.
    async fn is_indexed(&self, _push: &Push) -> Result<bool, Failure> {
        Ok(false)
    }
}

/// Indexes an image, and leaves the indexed image of its tag at what the tag points at: builders that do
/// not share a queue get the events of a tag in any order.
///
/// # Errors
/// As for [`ImageIndexer::index`].
pub(crate) async fn index_in_order(
    indexer: &dyn ImageIndexer,
    push: &Push,
) -> Result<Outcome, Failure> {
    if let Some(newer) = indexer.newer(push).await?
        && indexer.is_indexed(&newer).await?
    {
        return Err(Failure::NotWanted(
            "a later push of the tag is indexed already".to_owned(),
        ));
    }
    let mut outcome = indexer.index(push).await?;
    let mut last = push.clone();
    for _ in 0..MAX_MOVES {
        let Some(newer) = indexer.newer(&last).await? else {
            break;
        };
        tracing::info!(image = %last, newer = %newer, "the tag has moved");
        match indexer.index(&newer).await {
            Ok(later) => {
                outcome = Outcome {
                    layers: outcome.layers.saturating_add(later.layers),
                    bytes: outcome.bytes.saturating_add(later.bytes),
                    ..later
                };
            }
            Err(Failure::NotWanted(reason)) => {
                tracing::info!(image = %newer, reason, "not to be indexed");
                break;
            }
            Err(error) => return Err(error),
        }
        last = newer;
    }
    Ok(outcome)
}

/// Indexes images at registries.
#[derive(Debug, Clone)]
pub struct Indexer {
    client: Client,
    settings: Arc<IndexSettings>,
}

impl Indexer {
    /// Creates an indexer that reads and writes with `client`.
    #[must_use]
    pub fn new(client: Client, settings: IndexSettings) -> Self {
        Self {
            client,
            settings: Arc::new(settings),
        }
    }

    /// Reads the manifests of the image under `tag` that has this digest.
    async fn load(&self, tag: &Reference, digest: Digest) -> Result<Chosen, Failure> {
        let settings = &*self.settings;
        let at = tag.at(digest);
        let source: SharedSource = Arc::new(RegistrySource::new(self.client.clone(), at.clone()));
        let image = Box::pin(Image::load(&*source))
            .await
            .map_err(not_an_image)?;
        if image.entries.iter().any(is_index_of_v2) {
            return Err(Failure::NotWanted(
                "it is an indexed image already".to_owned(),
            ));
        }
        let options = ConvertOptions {
            platforms: present(&image, &settings.convert.platforms),
            ..settings.convert.clone()
        };
        let selected = image
            .select(&options.platforms)
            .map_err(Failure::of_index)?;
        let size = size_of(&image, &selected);
        if size < settings.min_image_size {
            return Err(Failure::NotWanted(format!(
                "its layers have {size} bytes, fewer than the least of {}",
                settings.min_image_size
            )));
        }
        Ok(Chosen {
            at,
            source,
            image,
            options,
            selected,
        })
    }

    /// The image of version 2 under `target`, if it was made of this image.
    async fn find(&self, chosen: &Chosen, target: &Reference) -> Result<Option<Digest>, Failure> {
        let wanted = already::Wanted {
            image: &chosen.image,
            selected: &chosen.selected,
            span_size: self.settings.convert.span_size,
        };
        let found = wanted.find(&self.client, target).await;
        found.map_err(Failure::of_index)
    }

    async fn work(&self, push: &Push) -> Result<Outcome, Failure> {
        let settings = &*self.settings;
        let tag = tag_of(push)?;
        // The digest of the event counts, wherever the tag points by now.
        let digest = match push.digest {
            Some(digest) => digest,
            None => self.client.resolve(&tag).await.map_err(Failure::of)?.digest,
        };
        let read = Arc::new(BytesRead::default());
        let chosen = self.load(&tag, digest).await?;
        let (source, options) = (Arc::clone(&chosen.source), &chosen.options);
        let mut outcome = Outcome {
            digest: Some(digest),
            ..Outcome::default()
        };
        let mut known = Vec::new();
        if settings.versions.v2() {
            let target = self.target(push)?;
            let there = match options.force {
                true => None,
                false => self.find(&chosen, &target).await?,
            };
            outcome.image = Some(target.to_string());
            match there {
                Some(there) => outcome.image_digest = Some(there),
                None => {
                    let sink = RegistrySink::create(self.client.clone(), target)
                        .map_err(Failure::of_index)?;
                    let work = soci_index::convert(&source, Box::new(sink), options, read.clone());
                    let converted = Box::pin(work).await.map_err(Failure::of_index)?;
                    outcome.image_digest = Some(converted.index.digest);
                    for image in &converted.images {
                        outcome.layers += image.indexed_layers;
                        known.extend(image.written.index.ztocs.iter().cloned());
                    }
                }
            }
        }
        if settings.versions.v1() {
            let beside = Beside {
                source,
                at: chosen.at,
                image: &chosen.image,
                selected: &chosen.selected,
                options,
                known,
            };
            self.beside(beside, &read, &mut outcome).await?;
        }
        outcome.bytes = read.total();
        Ok(outcome)
    }

    /// Makes indexes of version 1, unless each image has one.
    async fn beside(
        &self,
        work: Beside<'_>,
        read: &Arc<BytesRead>,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let there = match work.options.force {
            true => None,
            false => already::referrers(&self.client, &work.at, work.image, work.selected)
                .await
                .map_err(Failure::of)?,
        };
        if let Some(there) = there {
            outcome.indexes = there;
            return Ok(());
        }
        let source: SharedSource = Arc::new(WithZtocs::new(work.source, work.known));
        let sink = RegistrySink::beside(self.client.clone(), work.at);
        let progress: Arc<dyn soci_index::Progress> = Arc::clone(read) as Arc<_>;
        let work = soci_index::create(&source, &sink, work.options, progress);
        let created = Box::pin(work).await.map_err(Failure::of_index)?;
        let layers = created.iter().map(|one| one.written.index.ztocs.len());
        outcome.layers = outcome.layers.max(layers.sum());
        outcome.indexes = created
            .iter()
            .map(|one| one.written.descriptor.digest)
            .collect();
        Ok(())
    }

    /// The name of the image of version 2.
    fn target(&self, push: &Push) -> Result<Reference, Failure> {
        let suffix = &self.settings.suffix;
        let Some(tag) = &push.tag else {
            return Err(Failure::Permanent(
                "an index of version 2 needs a tag, which the image was pushed without".to_owned(),
            ));
        };
        format!("{}/{}:{tag}{suffix}", push.registry, push.repository)
            .parse()
            .map_err(|error: soci_oci::ReferenceError| Failure::Permanent(error.to_string()))
    }
}

/// An image at its registry, and what of it is indexed.
struct Chosen {
    /// Its name, with the digest.
    at: Reference,
    source: SharedSource,
    image: Image,
    options: ConvertOptions,
    /// Entries of the image.
    selected: Vec<usize>,
}

/// An image that gets indexes of version 1.
struct Beside<'a> {
    source: SharedSource,
    /// Its name, with the digest.
    at: Reference,
    image: &'a Image,
    selected: &'a [usize],
    options: &'a ConvertOptions,
    /// The zTOCs that are at the registry.
    known: Vec<soci_ztoc::soci_index::ZtocDescriptor>,
}

#[async_trait]
impl ImageIndexer for Indexer {
    async fn index(&self, push: &Push) -> Result<Outcome, Failure> {
        self.work(push).await
    }

    async fn newer(&self, push: &Push) -> Result<Option<Push>, Failure> {
        // What was pushed without a digest is what the tag pointed at; indexes of version 1 are found by
        // the digest of the image, and are in no other's way.
        let Some(digest) = push.digest.filter(|_| self.settings.versions.v2()) else {
            return Ok(None);
        };
        let now = match self.client.resolve(&tag_of(push)?).await {
            Ok(now) => now.digest,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(Failure::of(error)),
        };
        Ok((now != digest).then(|| Push {
            digest: Some(now),
            event: None,
            ..push.clone()
        }))
    }

    async fn is_indexed(&self, push: &Push) -> Result<bool, Failure> {
        let (true, Some(digest)) = (self.settings.versions == Versions::V2, push.digest) else {
            return Ok(false);
        };
        match self.load(&tag_of(push)?, digest).await {
            Ok(chosen) => Ok(self.find(&chosen, &self.target(push)?).await?.is_some()),
            Err(Failure::NotWanted(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn tag_of(push: &Push) -> Result<Reference, Failure> {
    let parsed = push.tagged_name().parse();
    parsed.map_err(|error: soci_oci::ReferenceError| Failure::Permanent(error.to_string()))
}

/// Those of the platforms that the image is there for. With none of them, the choice stays, and is
/// refused with the platforms that the image has.
fn present(image: &Image, platforms: &Platforms) -> Platforms {
    let Platforms::These(wanted) = platforms else {
        return platforms.clone();
    };
    let there: Vec<_> = wanted
        .iter()
        .filter(|one| {
            image
                .select(&Platforms::These(vec![(*one).clone()]))
                .is_ok()
        })
        .cloned()
        .collect();
    Platforms::These(if there.is_empty() {
        wanted.clone()
    } else {
        there
    })
}

/// Charts, signatures and SOCI indexes come the way that images do.
fn not_an_image(error: IndexError) -> Failure {
    match error {
        IndexError::Options(reason) => Failure::NotWanted(reason),
        error => Failure::of_index(error),
    }
}

fn is_index_of_v2(entry: &soci_index::ImageEntry) -> bool {
    matches!(entry.content, EntryContent::SociIndex { .. })
}

/// Bytes of the layers of the selected images; a layer that they share counts once.
fn size_of(image: &Image, selected: &[usize]) -> u64 {
    let entries = selected.iter().filter_map(|at| image.entries.get(*at));
    let mut seen = std::collections::BTreeSet::new();
    let mut size: u64 = 0;
    for entry in entries {
        if let EntryContent::Image { manifest, .. } = &entry.content {
            for layer in &manifest.layers {
                if seen.insert(layer.digest) {
                    size = size.saturating_add(layer.size);
                }
            }
        }
    }
    size
}
