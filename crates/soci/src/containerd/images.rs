//! Image records: what makes an image visible, and keeps its content.

use std::collections::HashMap;

use anyhow::Context as _;
use containerd_client::services::v1::{
    CreateImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types;
use prost_types::FieldMask;
use soci_oci::{Descriptor, Reference};

use super::{Containerd, failed};

/// A descriptor as containerd's API has it.
pub(crate) fn api_descriptor(descriptor: &Descriptor) -> anyhow::Result<types::Descriptor> {
    Ok(types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size)?,
        annotations: descriptor.annotations.clone().into_iter().collect(),
    })
}

/// An image as containerd knows it.
#[derive(Debug, Clone)]
pub(crate) struct ImageRecord {
    pub(crate) name: String,
    pub(crate) target: Descriptor,
    pub(crate) labels: HashMap<String, String>,
}

impl ImageRecord {
    /// The image of this name, as it stands or in Docker's long form (`alpine` is also
    /// `docker.io/library/alpine:latest`).
    pub(crate) async fn get(containerd: &Containerd, name: &str) -> anyhow::Result<Self> {
        let long = name.parse::<Reference>().ok().map(|long| long.to_string());
        let mut images = containerd.services().images();
        for name in [Some(name), long.as_deref()].into_iter().flatten() {
            let request = containerd.request(GetImageRequest {
                name: name.to_owned(),
            });
            match images.get(request).await {
                Ok(answer) => {
                    let image = answer.into_inner().image;
                    return Self::read(image.context("containerd answered without the image")?);
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(failed(&format!("look up image {name}"), &status)),
            }
        }
        anyhow::bail!(
            "image {name:?}: not found in containerd; pull it first, or see its names with \
             `ctr images ls` (is --namespace right?)"
        );
    }

    fn read(image: Image) -> anyhow::Result<Self> {
        let target = image
            .target
            .with_context(|| format!("image {} has no target", image.name))?;
        let mut descriptor = Descriptor::new(
            target.media_type,
            target
                .digest
                .parse()
                .with_context(|| format!("the target of image {}", image.name))?,
            u64::try_from(target.size)?,
        );
        descriptor.annotations = target.annotations.into_iter().collect();
        Ok(Self {
            name: image.name,
            target: descriptor,
            labels: image.labels,
        })
    }
}

/// The names of the images with this target.
pub(crate) async fn images_with_target(
    containerd: &Containerd,
    target: &str,
) -> anyhow::Result<Vec<String>> {
    let request = containerd.request(ListImagesRequest {
        filters: vec![format!("target.digest=={target}")],
    });
    let answer = containerd
        .services()
        .images()
        .list(request)
        .await
        .map_err(|status| failed("list images", &status))?;
    let mut names: Vec<String> = answer
        .into_inner()
        .images
        .into_iter()
        .map(|image| image.name)
        .collect();
    names.sort();
    Ok(names)
}

/// Sets labels of an image; an empty value removes one.
pub(crate) async fn set_labels(
    containerd: &Containerd,
    image: &ImageRecord,
    labels: HashMap<String, String>,
) -> anyhow::Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = containerd.request(UpdateImageRequest {
        image: Some(Image {
            name: image.name.clone(),
            target: Some(api_descriptor(&image.target)?),
            labels,
            ..Image::default()
        }),
        update_mask: Some(FieldMask { paths }),
        ..UpdateImageRequest::default()
    });
    containerd
        .services()
        .images()
        .update(request)
        .await
        .map_err(|status| failed(&format!("label image {}", image.name), &status))?;
    Ok(())
}

/// Creates the image record, or points the one that is there at the target.
pub(crate) async fn record(
    containerd: &Containerd,
    name: &str,
    target: &Descriptor,
) -> anyhow::Result<()> {
    let mut images = containerd.services().images();
    let image = Image {
        name: name.to_owned(),
        target: Some(api_descriptor(target)?),
        ..Image::default()
    };
    let create = containerd.request(CreateImageRequest {
        image: Some(image.clone()),
        ..CreateImageRequest::default()
    });
    match images.create(create).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(failed(&format!("create image {name}"), &status)),
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
        .map_err(|status| failed(&format!("update image {name}"), &status))?;
    Ok(())
}
