//! Images through CRI.

use anyhow::{Result, ensure};

use super::Cri;
use super::api::{
    AuthConfig, Image, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};

impl Cri {
    /// Pulls an image without credentials; returns the name that containers may use for it.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn pull(&self, reference: &str) -> Result<String> {
        self.pull_with(reference, None)
    }

    /// Pulls an image with credentials.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn pull_with(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String> {
        let request = PullImageRequest {
            image: Some(spec(reference)),
            auth,
            sandbox_config: None,
        };
        let pulled = self.call(&format!("PullImage {reference}"), async {
            self.images.clone().pull_image(request).await
        })?;
        Ok(pulled.image_ref)
    }

    /// What the runtime knows of an image, if it has it.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub fn image(&self, reference: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest {
            image: Some(spec(reference)),
            verbose: false,
        };
        let status = self.call("ImageStatus", async {
            self.images.clone().image_status(request).await
        })?;
        Ok(status.image)
    }

    /// All images.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub fn images(&self) -> Result<Vec<Image>> {
        let request = ListImagesRequest::default();
        let listed = self.call("ListImages", async {
            self.images.clone().list_images(request).await
        })?;
        Ok(listed.images)
    }

    /// Removes an image, which must be there. The runtime itself would not mind if it were not.
    ///
    /// # Errors
    /// When there is no such image, or the runtime refuses.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        ensure!(
            self.image(reference)?.is_some(),
            "there is no image {reference} to remove"
        );
        let request = RemoveImageRequest {
            image: Some(spec(reference)),
        };
        self.call(&format!("RemoveImage {reference}"), async {
            self.images.clone().remove_image(request).await
        })
        .map(drop)
    }
}

pub(super) fn spec(reference: &str) -> ImageSpec {
    ImageSpec {
        image: reference.to_owned(),
        ..ImageSpec::default()
    }
}
