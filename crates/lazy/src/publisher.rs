//! Publishes what this node has recorded of an image beside the image at its registry, unless a
//! profile is there.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::{Digest, media_types};
use soci_profile::{MEDIA_TYPE, artifact_manifest};
use soci_registry::{Client, RegistryError};
use soci_store::{ProfileFileError, ProfileFiles};

use crate::image_layer::ImageKey;

/// Number of images that are remembered as published.
const MOST_REMEMBERED: usize = 4096;

/// Why a profile cannot be published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    File(#[from] ProfileFileError),
    #[error("cannot encode its manifest")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Interrupted(#[from] soci_task::Interrupted),
    #[error("the registry did not answer within mount_timeout_sec")]
    Late,
}

/// Publishes profiles, each image's once in the life of the process.
pub(crate) struct Publisher {
    pub(crate) files: ProfileFiles,
    pub(crate) client: Client,
    pub(crate) time_limit: Duration,
    /// The manifests that need no further look.
    done: Mutex<HashSet<Digest>>,
}

impl Publisher {
    pub(crate) fn new(files: ProfileFiles, client: Client, time_limit: Duration) -> Self {
        Self {
            files,
            client,
            time_limit,
            done: Mutex::default(),
        }
    }

    /// Publishes the profile of an image unless its registry has one. A failure is logged, and not
    /// tried again: most credentials of nodes may only pull.
    pub(crate) async fn publish(&self, image: &ImageKey) {
        {
            let mut done = self.done.lock();
            if done.len() >= MOST_REMEMBERED {
                done.clear();
            }
            if !done.insert(image.manifest) {
                return;
            }
        }
        // Boxed: a request to a registry is a large future.
        let work = Box::pin(self.push(image));
        let pushed = tokio::time::timeout(self.time_limit, work).await;
        let (manifest, image) = (image.manifest, &image.reference);
        match pushed.unwrap_or(Err(PublishError::Late)) {
            Ok(Some(digest)) => {
                tracing::info!(%manifest, %image, %digest, "published start-up profile");
            }
            Ok(None) => tracing::debug!(%manifest, %image, "start-up profile already published"),
            Err(error) => {
                let error = soci_errors::chain(&error);
                tracing::warn!(%manifest, %image, error, "cannot publish start-up profile");
            }
        }
    }

    /// Returns the digest of the artifact; `None`: there is a profile at the registry, or none here.
    async fn push(&self, image: &ImageKey) -> Result<Option<Digest>, PublishError> {
        let (client, reference) = (&self.client, &image.reference);
        let known = client.referrers(reference, image.manifest, Some(MEDIA_TYPE));
        if !known.await?.is_empty() {
            return Ok(None);
        }
        let (files, manifest) = (self.files.clone(), image.manifest);
        let Some(profile) = soci_task::run(move || files.load(&manifest)).await?? else {
            return Ok(None);
        };
        let (subject, _) = client.manifest(reference, image.manifest).await?;
        let bytes = Bytes::from(profile.encode());
        let created = jiff::Timestamp::try_from(SystemTime::now());
        let created = created.map_or_else(|_| String::new(), |at| at.to_string());
        let artifact = artifact_manifest(&subject, &bytes, &created);
        let empty = Bytes::from_static(b"{}");
        client
            .push_blob(reference, &artifact.config, empty.into(), None, None)
            .await?;
        for layer in &artifact.layers {
            client
                .push_blob(reference, layer, bytes.clone().into(), None, None)
                .await?;
        }
        let encoded = Bytes::from(soci_oci::json::to_vec(&artifact)?);
        let at = reference.at(Digest::of(&encoded));
        let pushed = client.push_manifest(&at, media_types::OCI_MANIFEST, encoded);
        Ok(Some(pushed.await?))
    }
}
