//! The image record: what makes the image visible, and keeps its content.

use containerd_client::services::v1::{CreateImageRequest, Image, UpdateImageRequest};
use containerd_client::tonic::Code;
use containerd_client::types;
use oci::{Descriptor, Reference};
use prost_types::FieldMask;

use super::Containerd;
use super::containerd::failed;

/// A descriptor as containerd's API has it.
pub(super) fn descriptor(descriptor: &Descriptor) -> anyhow::Result<types::Descriptor> {
    Ok(types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size)?,
        annotations: descriptor.annotations.clone().into_iter().collect(),
    })
}

/// Creates the image record, or points the one that is there at the target.
pub(crate) async fn record(
    containerd: &Containerd,
    reference: &Reference,
    target: &Descriptor,
) -> anyhow::Result<()> {
    let mut images = containerd.services().images();
    let image = Image {
        name: reference.to_string(),
        target: Some(descriptor(target)?),
        ..Image::default()
    };
    let create = containerd.request(CreateImageRequest {
        image: Some(image.clone()),
        ..CreateImageRequest::default()
    });
    match images.create(create).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(failed(&format!("create image {reference}"), &status)),
    }
    let update = containerd.request(UpdateImageRequest {
        image: Some(image),
        update_mask: Some(FieldMask {
            paths: vec!["target".to_owned()],
        }),
        ..UpdateImageRequest::default()
    });
    images
        .update(update)
        .await
        .map_err(|status| failed(&format!("update image {reference}"), &status))?;
    Ok(())
}
