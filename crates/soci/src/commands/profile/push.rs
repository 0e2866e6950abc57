//! `soci profile push`.

use std::path::PathBuf;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use soci_discovery::Policy;
use soci_index::{ImageSink as _, RegistrySink};
use soci_oci::{Descriptor, Reference, media_types};

use crate::age::rfc3339;
use crate::global::Global;
use crate::interrupt::committing;
use crate::output;
use crate::profiles::{self, ProfileName};
use crate::remote::{RemoteArgs, RemoteImage, reason};

/// Put a start-up profile beside its image at the registry, where pulls find it
///
/// The image keeps its digest: the profile is an artifact that refers to its manifest. A node that has recorded no start
/// of the image asks the registry for it. `soci convert --profile` puts it into the index instead.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci profile push registry.example/app:1-soci
  soci profile push --profile app.profile registry.example/app:1-soci")]
pub(crate) struct Push {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The profile (default: what the daemon of this machine recorded of the image)
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Push {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let mut profile = match &self.profile {
            Some(path) => profiles::read(path)?,
            None => {
                let manifest = ProfileName::Manifest(image.descriptor.digest);
                match profiles::find(global, &manifest)? {
                    Some(stored) => stored.profile,
                    None => {
                        profiles::known(global, &ProfileName::Image(self.reference.clone()))?
                            .profile
                    }
                }
            }
        };
        let explicit = self.remote.soci_index_digest;
        let index = image.find_index(explicit, Policy::ALL).await;
        let index = index
            .map_err(|none| anyhow::anyhow!(reason(&none.into())))?
            .index;
        let spans = profile.merged();
        let is_listed = |layer: &soci_profile::ProfiledLayer| {
            let ztoc = index.ztoc_for(&layer.layer);
            ztoc.is_some_and(|ztoc| ztoc.descriptor.digest == layer.ztoc)
        };
        if !spans.spans().iter().any(|span| is_listed(&span.layer)) {
            bail!(
                "cannot push the start-up profile of {}: the index of {} lists none of the zTOCs that it was recorded \
                 with; record a start of {} itself",
                profile.image,
                self.reference,
                self.reference
            );
        }
        profile.manifest = image.descriptor.digest;
        profile.image = self.reference.to_string();
        let registry = &self.remote.registry;
        let client = registry.push_client(&self.reference, registry.user.as_ref())?;
        let sink = RegistrySink::beside(client, self.reference.clone());
        let bytes = Bytes::from(profile.encode());
        let created = rfc3339(std::time::SystemTime::now());
        let manifest = soci_profile::artifact_manifest(&image.descriptor, &bytes, &created);
        sink.put_blob(&manifest.config, Bytes::from_static(b"{}"))
            .await?;
        for layer in &manifest.layers {
            sink.put_blob(layer, bytes.clone()).await?;
        }
        let encoded = Bytes::from(soci_oci::json::to_vec(&manifest)?);
        let descriptor = Descriptor::of(media_types::OCI_MANIFEST, &encoded);
        committing();
        sink.put_manifest(&descriptor, encoded).await?;
        output::line(descriptor.digest.to_string());
        Ok(())
    }
}
