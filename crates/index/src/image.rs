//! What an image consists of: the manifests of its platforms, SOCI indexes, other artifacts.

use bytes::Bytes;
use futures::future::BoxFuture;
use soci_oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, media_types};
use soci_ztoc::soci_index::SociIndex;

use crate::IndexError;
use crate::options::Platforms;
use crate::source::{ImageSource, Root};

/// Marks the descriptor of a manifest that is about another one (BuildKit's attestations).
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Documents of one image: more than any image has, and a bound for an index that lists indexes.
const MAX_ENTRIES: usize = 4096;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// An image, its manifests read.
#[derive(Debug)]
pub struct Image {
    /// The index that lists the manifests, if there is one.
    pub list: Option<Index>,
    /// Its manifests, in the order of the index.
    pub entries: Vec<ImageEntry>,
}

/// One manifest of an image.
#[derive(Debug)]
pub struct ImageEntry {
    /// How the index lists it.
    pub descriptor: Descriptor,
    /// What it is.
    pub content: EntryContent,
}

/// What a manifest is.
#[derive(Debug)]
pub enum EntryContent {
    /// An image for one platform.
    Image {
        /// The manifest.
        manifest: Manifest,
        /// The platform, by the index or else by the configuration.
        platform: Platform,
    },
    /// The SOCI index of one of the images.
    SociIndex {
        /// The index.
        index: Box<SociIndex>,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Another manifest (an attestation, a signature), carried along as it is.
    Other {
        /// The manifest.
        manifest: Manifest,
        /// Its bytes.
        bytes: Bytes,
    },
    /// An index within the index, carried along as it is.
    Nested {
        /// The index and all that it lists, each after what it refers to.
        documents: Vec<(Descriptor, Bytes)>,
        /// Configurations and layers of these documents.
        blobs: Vec<Descriptor>,
    },
    /// An entry whose content is not read: it is absent, or of an unknown kind.
    Unread {
        /// Why.
        reason: String,
        /// Whether it is a manifest that the source lacks.
        absent: bool,
    },
}

impl Image {
    /// Reads the image's index and manifests. An entry that is absent or of an unknown kind is listed
    /// as [`EntryContent::Unread`].
    ///
    /// # Errors
    /// When one is damaged, or none is an image.
    pub async fn load(source: &dyn ImageSource) -> Result<Self, IndexError> {
        let (list, descriptors) = root(source).await?;
        let mut entries = Vec::new();
        for descriptor in descriptors {
            let content = match &list {
                None => EntryContent::load(source, &descriptor, true).await?,
                Some(_) => EntryContent::listed(source, &descriptor).await?,
            };
            entries.push(ImageEntry {
                descriptor,
                content,
            });
        }
        Self { list, entries }.with_an_image(source)
    }

    /// Reads the manifests of images only, those of indexes within the index included: a missing SOCI
    /// index, attestation or artifact does no harm.
    ///
    /// # Errors
    /// When one is damaged, or none is an image.
    pub async fn load_images(source: &dyn ImageSource) -> Result<Self, IndexError> {
        let (list, descriptors) = root(source).await?;
        let mut entries = Vec::new();
        let mut left: Vec<(Descriptor, usize)> = descriptors
            .into_iter()
            .rev()
            .map(|descriptor| (descriptor, 0))
            .collect();
        while let Some((descriptor, depth)) = left.pop() {
            if entries.len() >= MAX_ENTRIES {
                break;
            }
            let is_index = media_types::is_index(&descriptor.media_type);
            if is_index && depth < MAX_DEPTH && list.is_some() {
                if let Some(bytes) = present(source.manifest(&descriptor).await)? {
                    let index: Index = document("index", descriptor.digest, source, &bytes)?;
                    let listed = index.manifests.into_iter().rev();
                    left.extend(listed.map(|descriptor| (descriptor, depth + 1)));
                }
                continue;
            }
            let content = match &list {
                None => EntryContent::load(source, &descriptor, true).await?,
                Some(_) if descriptor.artifact_type.is_some() || is_index => continue,
                Some(_) => EntryContent::listed(source, &descriptor).await?,
            };
            entries.push(ImageEntry {
                descriptor,
                content,
            });
        }
        Self { list, entries }.with_an_image(source)
    }

    fn with_an_image(self, source: &dyn ImageSource) -> Result<Self, IndexError> {
        if self.entries.iter().any(|entry| entry.platform().is_some()) {
            return Ok(self);
        }
        let why: Vec<String> = self
            .entries
            .iter()
            .filter_map(|entry| match &entry.content {
                EntryContent::Unread { reason, .. } => {
                    Some(format!("{} {reason}", entry.descriptor.digest))
                }
                _ => None,
            })
            .take(3)
            .collect();
        let why = match why.as_slice() {
            [] => String::new(),
            why => format!(": {}", why.join("; ")),
        };
        Err(IndexError::Options(format!(
            "{} holds no image manifest{why}",
            source.describe()
        )))
    }

    /// Refuses an image of which a platform is absent at a source that holds parts of images.
    ///
    /// # Errors
    /// When one is.
    pub(crate) fn check_all_present(&self, source: &dyn ImageSource) -> Result<(), IndexError> {
        let absent = self.entries.iter().find(|entry| {
            let descriptor = &entry.descriptor;
            let known = descriptor.platform.as_ref();
            matches!(entry.content, EntryContent::Unread { absent: true, .. })
                && descriptor.artifact_type.is_none()
                && known.is_none_or(|platform| platform.os != "unknown")
        });
        let Some(ImageEntry { descriptor, .. }) = absent.filter(|_| source.holds_parts()) else {
            return Ok(());
        };
        let platform = descriptor.platform.as_ref();
        Err(IndexError::AbsentPlatform {
            platform: platform.map_or_else(|| "unknown".to_owned(), ToString::to_string),
            digest: descriptor.digest,
            place: source.describe(),
        })
    }

    /// The positions in `entries` of the images that a choice of platforms means.
    ///
    /// # Errors
    /// When the image is not there for one of them.
    pub fn select(&self, platforms: &Platforms) -> Result<Vec<usize>, IndexError> {
        let images: Vec<(usize, &Platform)> = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| Some((at, entry.platform()?)))
            .collect();
        // An index may list several images of one platform.
        let find = |wanted: &Platform| {
            let found = images.iter().filter(|(_, of)| wanted.matches(of));
            let found: Vec<usize> = found.map(|(at, _)| *at).collect();
            (!found.is_empty())
                .then_some(found)
                .ok_or_else(|| IndexError::NoSuchPlatform {
                    wanted: wanted.to_string(),
                    have: images
                        .iter()
                        .map(|(_, platform)| platform.to_string())
                        .collect::<Vec<_>>()
                        .join(", "),
                })
        };
        let mut chosen = match (platforms, images.as_slice()) {
            (Platforms::All, images) => images.iter().map(|(at, _)| *at).collect(),
            (Platforms::Default, [(only, _)]) => vec![*only],
            (Platforms::Default, _) => find(&Platform::host())?,
            (Platforms::These(wanted), _) => wanted
                .iter()
                .map(find)
                .collect::<Result<Vec<_>, _>>()?
                .concat(),
        };
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }
}

impl ImageEntry {
    /// The platform of an image.
    #[must_use]
    pub fn platform(&self) -> Option<&Platform> {
        match &self.content {
            EntryContent::Image { platform, .. } => Some(platform),
            _ => None,
        }
    }
}

impl EntryContent {
    /// Reads an entry of an index, which may be anything.
    async fn listed(source: &dyn ImageSource, descriptor: &Descriptor) -> Result<Self, IndexError> {
        let absent = || Self::Unread {
            reason: format!("is not at {}", source.describe()),
            absent: true,
        };
        if !source.contains(descriptor).await? {
            return Ok(absent());
        }
        if media_types::is_index(&descriptor.media_type) {
            let mut nested = Nested::default();
            let read = nested.read(source, descriptor, MAX_DEPTH).await;
            return Ok(match present(read)? {
                Some(()) => Self::Nested {
                    documents: nested.documents,
                    blobs: nested.blobs,
                },
                None => absent(),
            });
        }
        if !media_types::is_manifest(&descriptor.media_type) {
            return Ok(Self::Unread {
                reason: format!(
                    "has the media type {:?}, which is not that of an image manifest or an index",
                    descriptor.media_type
                ),
                absent: false,
            });
        }
        let content = present(Self::load(source, descriptor, false).await)?;
        Ok(content.unwrap_or_else(absent))
    }

    /// Reads a manifest, which is an image if it is the `only` one.
    async fn load(
        source: &dyn ImageSource,
        descriptor: &Descriptor,
        only: bool,
    ) -> Result<Self, IndexError> {
        let digest = descriptor.digest;
        if !media_types::is_manifest(&descriptor.media_type) {
            return Err(IndexError::Document {
                what: "manifest",
                digest,
                place: source.describe(),
                reason: format!(
                    "media type {:?} is not that of an image manifest",
                    descriptor.media_type
                ),
            });
        }
        let bytes = source.manifest(descriptor).await?;
        let manifest: Manifest = document("manifest", digest, source, &bytes)?;
        let config = manifest.config.media_type.as_str();
        if matches!(
            config,
            media_types::SOCI_INDEX_V1 | media_types::SOCI_INDEX_V2
        ) {
            let index = SociIndex::parse(&bytes).map_err(|e| IndexError::Document {
                what: "SOCI index",
                digest,
                place: source.describe(),
                reason: e.to_string(),
            })?;
            return Ok(Self::SociIndex {
                index: Box::new(index),
                bytes,
            });
        }
        let listed = descriptor.platform.as_ref();
        if media_types::docker_to_oci(config) != media_types::OCI_CONFIG
            || manifest.artifact_type.is_some()
            || descriptor.annotations.contains_key(REFERENCE_TYPE)
            || listed.is_some_and(|platform| platform.os == "unknown")
        {
            return Ok(Self::Other { manifest, bytes });
        }
        if source.holds_parts() && !only && !source.contains(&manifest.config).await? {
            return Ok(Self::Unread {
                reason: format!("has no configuration at {}", source.describe()),
                absent: true,
            });
        }
        let platform = match listed {
            Some(platform) if !platform.os.is_empty() && !platform.architecture.is_empty() => {
                Some(normal(platform))
            }
            _ => config_platform(source, &manifest).await?,
        };
        match platform {
            Some(platform) => Ok(Self::Image { manifest, platform }),
            // A signature, for example: an image's configuration without a platform.
            None if !only => Ok(Self::Other { manifest, bytes }),
            None => Err(IndexError::Document {
                what: "configuration",
                digest: manifest.config.digest,
                place: source.describe(),
                reason: "it names no operating system or architecture".to_owned(),
            }),
        }
    }
}

/// An index within an index, with all that it lists.
#[derive(Default)]
struct Nested {
    documents: Vec<(Descriptor, Bytes)>,
    blobs: Vec<Descriptor>,
}

impl Nested {
    fn read<'a>(
        &'a mut self,
        source: &'a dyn ImageSource,
        descriptor: &'a Descriptor,
        depth: usize,
    ) -> BoxFuture<'a, Result<(), IndexError>> {
        Box::pin(async move {
            let digest = descriptor.digest;
            let too_much = depth == 0 || self.documents.len() >= MAX_ENTRIES;
            if too_much {
                return Err(IndexError::Document {
                    what: "index",
                    digest,
                    place: source.describe(),
                    reason: format!(
                        "it lists indexes more than {MAX_DEPTH} deep, or more than {MAX_ENTRIES} documents"
                    ),
                });
            }
            let bytes = source.manifest(descriptor).await?;
            if media_types::is_index(&descriptor.media_type) {
                let index: Index = document("index", digest, source, &bytes)?;
                for listed in &index.manifests {
                    self.read(source, listed, depth - 1).await?;
                }
            } else {
                let manifest: Manifest = document("manifest", digest, source, &bytes)?;
                self.blobs.push(manifest.config);
                self.blobs.extend(manifest.layers);
            }
            self.documents.push((descriptor.clone(), bytes));
            Ok(())
        })
    }
}

/// The index of the image, if it has one, and the descriptors of its manifests.
async fn root(source: &dyn ImageSource) -> Result<(Option<Index>, Vec<Descriptor>), IndexError> {
    let index = match source.root().await? {
        Root::List(index) => index,
        Root::Descriptor(root) if media_types::is_index(&root.media_type) => {
            let bytes = source.manifest(&root).await?;
            document("index", root.digest, source, &bytes)?
        }
        Root::Descriptor(root) => return Ok((None, vec![root])),
    };
    let manifests = index.manifests.clone();
    Ok((Some(index), manifests))
}

/// `None` if the source lacks it: an index may list what was never copied there.
fn present<T>(read: Result<T, IndexError>) -> Result<Option<T>, IndexError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(IndexError::MissingBlob { .. }) => Ok(None),
        Err(IndexError::Registry(error)) if error.kind() == soci_registry::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn normal(platform: &Platform) -> Platform {
    Platform {
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        ..Platform::new(
            &platform.os,
            &platform.architecture,
            platform.variant.as_deref(),
        )
    }
}

/// The platform that the configuration names, if it names one.
async fn config_platform(
    source: &dyn ImageSource,
    manifest: &Manifest,
) -> Result<Option<Platform>, IndexError> {
    crate::source::check_document_size(&manifest.config, &source.describe())?;
    let bytes = source.bytes(&manifest.config).await?;
    let config: ImageConfig = document("configuration", manifest.config.digest, source, &bytes)?;
    let named = !config.os.is_empty() && !config.architecture.is_empty();
    Ok(named.then(|| Platform::new(&config.os, &config.architecture, config.variant.as_deref())))
}

fn document<T: serde::de::DeserializeOwned>(
    what: &'static str,
    digest: Digest,
    source: &dyn ImageSource,
    bytes: &[u8],
) -> Result<T, IndexError> {
    serde_json::from_slice(bytes).map_err(|e| IndexError::Document {
        what,
        digest,
        place: source.describe(),
        reason: e.to_string(),
    })
}
