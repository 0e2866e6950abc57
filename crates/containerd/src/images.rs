//! Image records: what makes an image visible, and keeps its content.

use std::collections::HashMap;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Channel;
use containerd_client::types;
use prost_types::FieldMask;
use soci_oci::{Descriptor, Reference};

use crate::client::{Namespace, signed};
use crate::error::ContainerdError;

/// Greatest size of a list of images in bytes: some hundred thousand images.
const MAX_LIST: usize = 64 << 20;

/// An image as containerd records it.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    /// Name, usually a reference.
    pub name: String,
    /// The manifest or image index.
    pub target: Descriptor,
    /// Labels of the record.
    pub labels: HashMap<String, String>,
    /// Time of the last change, in seconds and nanoseconds since 1970.
    pub updated: (i64, i32),
}

/// The image records of a namespace.
#[derive(Debug, Clone)]
pub struct Images {
    namespace: Namespace,
}

impl Images {
    /// The image records of this namespace.
    #[must_use]
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            namespace: namespace.clone(),
        }
    }

    fn client(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.namespace.channel.clone())
    }

    /// Looks up the image of this name, as it stands or in Docker's long form (`alpine` is also
    /// `docker.io/library/alpine:latest`).
    ///
    /// # Errors
    /// containerd refuses, or its record is unusable.
    pub async fn get(&self, name: &str) -> Result<Option<ImageRecord>, ContainerdError> {
        let long = name.parse::<Reference>().ok().map(|long| long.to_string());
        for name in [Some(name), long.as_deref()].into_iter().flatten() {
            let action = format!("look up image {name}");
            let request = self.namespace.request(GetImageRequest {
                name: name.to_owned(),
            });
            match self.client().get(request).await {
                Ok(answer) => {
                    let image = answer.into_inner().image.and_then(read);
                    return image.map(Some).ok_or(ContainerdError::Incomplete {
                        action,
                        missing: "usable target",
                    });
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(self.namespace.failed(action)(status)),
            }
        }
        Ok(None)
    }

    /// Lists the names of the images with this target, sorted.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn with_target(&self, target: &str) -> Result<Vec<String>, ContainerdError> {
        let request = self.namespace.request(ListImagesRequest {
            filters: vec![format!("target.digest=={target}")],
        });
        let answer = self.client().list(request).await;
        let images = answer.map_err(self.namespace.failed("list images"))?;
        let images = images.into_inner().images.into_iter();
        let mut names: Vec<String> = images.map(|image| image.name).collect();
        names.sort();
        Ok(names)
    }

    /// Lists all images. Records with an unusable target are left out.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, ContainerdError> {
        let request = self.namespace.request(ListImagesRequest::default());
        let answer = self.client().max_decoding_message_size(MAX_LIST);
        let answer = { answer }.list(request).await;
        let images = answer.map_err(self.namespace.failed("list images"))?;
        let images = images.into_inner().images.into_iter();
        Ok(images.filter_map(read).collect())
    }

    /// Removes the record of an image; one that does not exist counts as removed. What only it kept is
    /// garbage from then on.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn remove(&self, name: &str) -> Result<(), ContainerdError> {
        let request = self.namespace.request(DeleteImageRequest {
            name: name.to_owned(),
            ..DeleteImageRequest::default()
        });
        match self.client().delete(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(self.namespace.failed(format!("remove image {name}"))(
                    status,
                ))
            }
            _ => Ok(()),
        }
    }

    /// Sets labels of an image; an empty value removes one.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn set_labels(
        &self,
        image: &ImageRecord,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let record = Image {
            name: image.name.clone(),
            target: Some(api_descriptor(&image.target)),
            labels,
            ..Image::default()
        };
        let action = format!("label image {}", image.name);
        self.update(record, paths, action).await
    }

    /// Creates the record of an image, or makes an existing one point at the target.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn record(&self, name: &str, target: &Descriptor) -> Result<(), ContainerdError> {
        let image = Image {
            name: name.to_owned(),
            target: Some(api_descriptor(target)),
            ..Image::default()
        };
        let create = self.namespace.request(CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        });
        match self.client().create(create).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let action = format!("update image {name}");
                self.update(image, vec!["target".to_owned()], action).await
            }
            Err(status) => Err(self.namespace.failed(format!("create image {name}"))(
                status,
            )),
        }
    }

    async fn update(
        &self,
        image: Image,
        paths: Vec<String>,
        action: String,
    ) -> Result<(), ContainerdError> {
        let request = self.namespace.request(UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        });
        let updated = self.client().update(request).await;
        updated.map(drop).map_err(self.namespace.failed(action))
    }
}

/// Converts a descriptor to the form of containerd's API.
pub(crate) fn api_descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: signed(descriptor.size),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}

/// Converts a record; `None` if its target is absent or malformed.
fn read(image: Image) -> Option<ImageRecord> {
    let target = image.target?;
    let digest = target.digest.parse().ok()?;
    let mut descriptor = Descriptor::new(target.media_type, digest, target.size.try_into().ok()?);
    descriptor.annotations = target.annotations.into_iter().collect();
    Some(ImageRecord {
        name: image.name,
        target: descriptor,
        labels: image.labels,
        updated: image.updated_at.map_or((0, 0), |at| (at.seconds, at.nanos)),
    })
}
