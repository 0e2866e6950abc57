//! What an image consists of: the manifests of its platforms, SOCI indexes, other artifacts.

use bytes::Bytes;
use soci_oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, media_types};
use soci_ztoc::soci_index::SociIndex;

use crate::IndexError;
use crate::options::Platforms;
use crate::source::{ImageSource, Root};

/// Marks the descriptor of a manifest that is about another one (BuildKit's attestations).
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// An image, its manifests read.
#[derive(Debug)]
pub struct Image {
    /// The index that lists the manifests, if there is one.
    pub list: Option<Index>,
    /// The manifests that are there, in the order of the index.
    pub entries: Vec<Entry>,
}

/// One manifest of an image.
#[derive(Debug)]
pub struct Entry {
    /// How the index lists it.
    pub descriptor: Descriptor,
    /// What it is.
    pub content: Content,
}

/// What a manifest is.
#[derive(Debug)]
pub enum Content {
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
    /// Something else (an attestation, a signature), carried along as it is.
    Other {
        /// The manifest.
        manifest: Manifest,
        /// Its bytes.
        bytes: Bytes,
    },
}

impl Image {
    /// Reads the image's index and manifests. Manifests that a layout does not have are left out:
    /// it holds some of the platforms only.
    ///
    /// # Errors
    /// When one is damaged, or none is there.
    pub async fn load(source: &dyn ImageSource) -> Result<Self, IndexError> {
        Self::load_where(source, |_| true).await
    }

    /// Reads the manifests of images only: a missing SOCI index or attestation does no harm.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub async fn load_images(source: &dyn ImageSource) -> Result<Self, IndexError> {
        Self::load_where(source, |descriptor| descriptor.artifact_type.is_none()).await
    }

    async fn load_where(
        source: &dyn ImageSource,
        is_wanted: impl Fn(&Descriptor) -> bool,
    ) -> Result<Self, IndexError> {
        let (list, descriptors) = match source.root().await? {
            Root::List(index) => {
                let manifests = index.manifests.clone();
                (Some(index), manifests)
            }
            Root::Descriptor(root) if media_types::is_index(&root.media_type) => {
                let bytes = source.manifest(&root).await?;
                let index: Index = document("index", root.digest, source, &bytes)?;
                let manifests = index.manifests.clone();
                (Some(index), manifests)
            }
            Root::Descriptor(root) => (None, vec![root]),
        };
        let mut entries = Vec::new();
        let single = list.is_none();
        for descriptor in descriptors {
            if single || (is_wanted(&descriptor) && source.contains(&descriptor).await?) {
                entries.push(Entry::load(source, descriptor).await?);
            }
        }
        if !entries.iter().any(|entry| entry.platform().is_some()) {
            return Err(IndexError::Options(format!(
                "{} holds no image manifest",
                source.describe()
            )));
        }
        Ok(Self { list, entries })
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
        let find = |wanted: &Platform| {
            images
                .iter()
                .find(|(_, platform)| wanted.matches(platform))
                .map(|(at, _)| *at)
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
            (Platforms::Default, _) => vec![find(&Platform::host())?],
            (Platforms::These(wanted), _) => {
                wanted.iter().map(find).collect::<Result<Vec<_>, _>>()?
            }
        };
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }
}

impl Entry {
    async fn load(source: &dyn ImageSource, descriptor: Descriptor) -> Result<Self, IndexError> {
        let digest = descriptor.digest;
        if !media_types::is_manifest(&descriptor.media_type) {
            return Err(IndexError::Document {
                what: "manifest",
                digest,
                place: source.describe(),
                reason: format!(
                    "media type {:?} is not one of an image manifest",
                    descriptor.media_type
                ),
            });
        }
        let bytes = source.manifest(&descriptor).await?;
        let manifest: Manifest = document("manifest", digest, source, &bytes)?;
        let config = manifest.config.media_type.as_str();
        let content = if matches!(
            config,
            media_types::SOCI_INDEX_V1 | media_types::SOCI_INDEX_V2
        ) {
            let index = SociIndex::parse(&bytes).map_err(|e| IndexError::Document {
                what: "SOCI index",
                digest,
                place: source.describe(),
                reason: e.to_string(),
            })?;
            Content::SociIndex {
                index: Box::new(index),
                bytes,
            }
        } else if media_types::docker_to_oci(config) != media_types::OCI_CONFIG
            || manifest.artifact_type.is_some()
            || descriptor.annotations.contains_key(REFERENCE_TYPE)
            || descriptor
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "unknown")
        {
            Content::Other { manifest, bytes }
        } else {
            let platform = match &descriptor.platform {
                Some(platform) if !platform.os.is_empty() => normal(platform),
                _ => config_platform(source, &manifest).await?,
            };
            Content::Image { manifest, platform }
        };
        Ok(Self {
            descriptor,
            content,
        })
    }

    /// The platform of an image.
    #[must_use]
    pub fn platform(&self) -> Option<&Platform> {
        match &self.content {
            Content::Image { platform, .. } => Some(platform),
            Content::SociIndex { .. } | Content::Other { .. } => None,
        }
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

async fn config_platform(
    source: &dyn ImageSource,
    manifest: &Manifest,
) -> Result<Platform, IndexError> {
    crate::source::check_document_size(&manifest.config, &source.describe())?;
    let bytes = source.bytes(&manifest.config).await?;
    let config: ImageConfig = document("configuration", manifest.config.digest, source, &bytes)?;
    if config.os.is_empty() || config.architecture.is_empty() {
        return Err(IndexError::Document {
            what: "configuration",
            digest: manifest.config.digest,
            place: source.describe(),
            reason: "it names no operating system or architecture".to_owned(),
        });
    }
    Ok(Platform::new(
        &config.os,
        &config.architecture,
        config.variant.as_deref(),
    ))
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
