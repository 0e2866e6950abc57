//! Copying the SOCI index of an image from one registry to another that has the same image.

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use soci_discovery::{RegistryManifests, referring_index};
use soci_index::{Image, ImageSource as _, RegistrySource, Source};
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::{BlobBody, Client};
use soci_ztoc::soci_index::SociIndex;

use super::Push;
use crate::interrupt::committing;
use crate::output;

pub(super) async fn run(push: &Push) -> anyhow::Result<()> {
    let Some(destination) = &push.destination else {
        bail!(
            "soci push {} needs a DST: docker://REFERENCE of a repository that has the image too",
            push.reference
        );
    };
    let reference = |text: &str| -> anyhow::Result<Reference> {
        let source: Source = text.parse()?;
        let reference = source.reference().cloned();
        reference.with_context(|| format!("{text:?} is not of the form docker://REFERENCE"))
    };
    let (from, to) = (reference(&push.reference)?, reference(destination)?);
    let user = push.registry.user.as_ref();
    let reader = push
        .registry
        .client(&from, user.filter(|_| from.registry() == to.registry()))?;
    let writer = push.registry.push_client(&to, user)?;
    let source = RegistrySource::new(reader.clone(), from.clone());
    let manifests = RegistryManifests::new(reader.clone(), from.clone());
    let image = Image::load(&source).await?;
    for at in image.select(&push.platforms.chosen())? {
        let Some(entry) = image.entries.get(at) else {
            continue;
        };
        let manifest = entry.descriptor.digest;
        let index = referring_index(&manifests, manifest).await?;
        let index = index.with_context(|| {
            format!(
                "{from} has no SOCI index of version 1 (make one with `soci create docker://{from}`)"
            )
        })?;
        if !push.wanted(&writer, &to, manifest).await? {
            continue;
        }
        if !writer.manifest_exists(&to.at(manifest)).await? {
            bail!(
                "{} has no image manifest {manifest}: copy the image there first",
                to.name()
            );
        }
        push.announce(index);
        copy(push, &source, &reader, &from, &writer, &to, index).await?;
    }
    Ok(())
}

async fn copy(
    push: &Push,
    source: &RegistrySource,
    reader: &Client,
    from: &Reference,
    writer: &Client,
    to: &Reference,
    digest: Digest,
) -> anyhow::Result<()> {
    let (_, bytes) = reader.manifest(from, digest).await?;
    let index = SociIndex::parse(&bytes).with_context(|| format!("SOCI index {digest}"))?;
    let mount_from = (from.registry() == to.registry()).then(|| from.repository());
    let blobs = std::iter::once(&index.manifest.config).chain(&index.manifest.layers);
    let upload = |blob: &Descriptor| {
        let blob = blob.clone();
        async move {
            let bytes = source.bytes(&blob).await?;
            writer
                .push_blob(to, &blob, BlobBody::from(bytes), mount_from, None)
                .await?;
            if !push.quiet {
                output::line(format!(
                    "successfully pushed artifact with digest: {}",
                    blob.digest
                ));
            }
            anyhow::Ok(())
        }
    };
    futures::stream::iter(blobs.map(upload))
        .buffer_unordered(push.uploads())
        .try_collect::<()>()
        .await?;
    committing();
    writer
        .push_manifest(&to.at(digest), &index.manifest.media_type, bytes)
        .await?;
    if !push.quiet {
        output::line(format!(
            "successfully pushed artifact with digest: {digest}"
        ));
    }
    Ok(())
}
