//! What `REF[:PATH]` names at a registry.

use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_discovery::{Found, ImageQuery, NoIndex, Policy, RegistryManifests};
use soci_index::{EntryContent, Image, Platforms, RegistrySource};
use soci_layer::LayerRefusal;
use soci_oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, Reference};
use soci_registry::Client;

use crate::output;
use crate::registry_args::RegistryArgs;

/// An image at a registry, and perhaps a path in it. `docker://` in front is allowed.
#[derive(Debug, Clone)]
pub(crate) struct ImagePath {
    pub(crate) reference: Reference,
    pub(crate) path: Option<String>,
}

impl FromStr for ImagePath {
    type Err = soci_oci::ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_prefix("docker://").unwrap_or(text);
        // A path starts with a slash; no reference has a colon before a slash.
        let (reference, path) = match text.find(":/") {
            Some(at) => (
                text.get(..at).unwrap_or_default(),
                text.get(at.saturating_add(1)..),
            ),
            None => (text, None),
        };
        Ok(Self {
            reference: reference.parse()?,
            path: path.map(ToOwned::to_owned),
        })
    }
}

/// Flags about an image at a registry.
#[derive(Debug, Args)]
pub(crate) struct RemoteArgs {
    /// The platform (default: this machine's, or the only one)
    #[arg(short, long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<Platform>,

    /// Use this SOCI index, whatever the image says
    #[arg(long, value_name = "DIGEST")]
    pub(crate) soci_index_digest: Option<Digest>,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// The image for one platform.
pub(crate) struct RemoteImage {
    pub(crate) client: Client,
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
}

impl RemoteImage {
    pub(crate) async fn open(args: &RemoteArgs, reference: &Reference) -> anyhow::Result<Self> {
        let client = args
            .registry
            .client(reference, args.registry.user.as_ref())?;
        let source = RegistrySource::new(client.clone(), reference.clone());
        let image = Image::load_images(&source).await?;
        let platforms = match &args.platform {
            Some(platform) => Platforms::These(vec![platform.clone()]),
            None => Platforms::Default,
        };
        let chosen = image.select(&platforms)?;
        let entry = chosen
            .first()
            .and_then(|at| image.entries.into_iter().nth(*at))
            .with_context(|| format!("{reference} holds no image"))?;
        let EntryContent::Image { manifest, platform } = entry.content else {
            bail!("{reference} holds no image");
        };
        Ok(Self {
            client,
            reference: reference.clone(),
            platform,
            descriptor: entry.descriptor,
            manifest,
        })
    }

    /// Finds the SOCI index of the image, of a kind that `policy` allows.
    pub(crate) async fn find_index(
        &self,
        explicit: Option<Digest>,
        policy: Policy,
    ) -> Result<Found, NoIndex> {
        let source = RegistryManifests::new(self.client.clone(), self.reference.clone());
        let image = ImageQuery {
            digest: self.descriptor.digest,
            manifest: Some(&self.manifest),
            explicit,
        };
        soci_discovery::find(&source, image, policy).await
    }

    /// Finds the SOCI index of whichever kind, for commands that also work without one.
    pub(crate) async fn any_index(&self, explicit: Option<Digest>) -> Option<Found> {
        let found = self.find_index(explicit, Policy::ALL).await;
        if let Err(none @ NoIndex::Unavailable { .. }) = &found {
            output::warning(&reason(&none.clone().into()));
        }
        found.ok()
    }

    /// The image's configuration as JSON, and the part of it that we know.
    pub(crate) async fn config(&self) -> anyhow::Result<(ImageConfig, serde_json::Value)> {
        let config = &self.manifest.config;
        if config.size > soci_index::MAX_DOCUMENT {
            bail!("the configuration of {} is too large", self.reference);
        }
        let bytes = self.client.blob_bytes(&self.reference, config).await?;
        let what = || format!("the configuration {} is invalid", config.digest);
        let known = serde_json::from_slice(&bytes).with_context(what)?;
        Ok((known, serde_json::from_slice(&bytes).with_context(what)?))
    }
}

/// Explains why a layer is not lazy, with the remedy where there is one.
pub(crate) fn reason(refusal: &LayerRefusal) -> String {
    let text = soci_errors::chain(refusal);
    match refusal {
        LayerRefusal::NotIndexed { source: None, .. } => {
            format!("{text} (create one with `soci convert` or `soci create`)")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::ImagePath;

    #[test]
    fn a_path_follows_the_reference_after_a_colon() {
        for (text, reference, path) in [
            ("localhost:5000/app:1", "localhost:5000/app:1", None),
            (
                "localhost:5000/app:1:/etc/motd",
                "localhost:5000/app:1",
                Some("/etc/motd"),
            ),
            (
                "docker://alpine:/",
                "docker.io/library/alpine:latest",
                Some("/"),
            ),
            ("a/b:c:/d:/e", "docker.io/a/b:c", Some("/d:/e")),
        ] {
            let read: ImagePath = text.parse().unwrap();
            assert_eq!(read.reference.to_string(), reference);
            assert_eq!(read.path.as_deref(), path);
        }
        assert!(":/etc".parse::<ImagePath>().is_err());
    }
}
