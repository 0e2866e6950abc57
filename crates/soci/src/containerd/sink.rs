//! containerd's content store as the destination of an index or a converted image.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use soci_containerd::labels::gc;
use soci_containerd::{Content, Images, Namespace};
use soci_index::{ImageSink, IndexError, SharedSource, TransferMeter};
use soci_oci::{Descriptor, Index, Manifest, media_types};
use soci_store::content::OciLayout;

/// Writes into containerd's content store. Everything is held by the connection's lease until the
/// image record, or a label of one, holds it.
pub(crate) struct ContainerdSink {
    containerd: Namespace,
    content: Content,
    /// The image record to make at the end.
    image: Option<String>,
    /// The snapshotter's own store, which gets SOCI artifacts (too).
    layout: Option<OciLayout>,
}

impl ContainerdSink {
    /// Writes a whole image, under this name.
    pub(crate) fn image(containerd: &Namespace, name: &str, layout: Option<OciLayout>) -> Self {
        Self {
            containerd: containerd.clone(),
            content: Content::new(containerd),
            image: Some(name.to_owned()),
            layout,
        }
    }

    /// Writes SOCI artifacts only: into `layout` if there is one, else into containerd.
    pub(crate) fn artifacts(containerd: &Namespace, layout: Option<OciLayout>) -> Self {
        Self {
            image: None,
            ..Self::image(containerd, "", layout)
        }
    }

    fn failed(&self, error: impl std::error::Error + Send + Sync + 'static) -> IndexError {
        IndexError::Store {
            place: self.describe(),
            source: error.into(),
        }
    }

    async fn put(
        &self,
        kind: &str,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
        bytes: Bytes,
    ) -> Result<(), IndexError> {
        let written = self.content.write_bytes(kind, descriptor, labels, bytes);
        written.await.map_err(|error| self.failed(error))
    }

    async fn put_index(&self, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let parsed: Index =
            serde_json::from_slice(&bytes).map_err(|error| invalid(index, &error))?;
        self.put("index", index, gc::of_index(&parsed), bytes).await
    }

    /// Writes into the snapshotter's own store; says whether that is all.
    async fn put_in_layout(
        &self,
        descriptor: &Descriptor,
        bytes: &Bytes,
    ) -> Result<bool, IndexError> {
        let Some(layout) = self.layout.clone() else {
            return Ok(false);
        };
        let (descriptor, bytes) = (descriptor.clone(), bytes.clone());
        let put = soci_task::run(move || layout.put(&descriptor, &bytes)).await?;
        put.map_err(|error| self.failed(error))?;
        Ok(self.image.is_none())
    }
}

/// Returns whether the blob is part of a SOCI index rather than of an image.
fn is_soci_blob(blob: &Descriptor) -> bool {
    matches!(
        blob.media_type.as_str(),
        media_types::ZTOC
            | media_types::PREFETCH
            | media_types::SOCI_INDEX_V1
            | media_types::SOCI_INDEX_V2
    )
}

fn invalid(what: &Descriptor, error: &serde_json::Error) -> IndexError {
    IndexError::Options(format!("cannot label {}: {error}", what.digest))
}

#[async_trait]
impl ImageSink for ContainerdSink {
    fn describe(&self) -> String {
        match &self.image {
            Some(name) => format!("containerd, image {name}"),
            None => "containerd".to_owned(),
        }
    }

    /// The layers are there: they must only stay until the new image holds them. One that is not
    /// belongs to a platform that was not pulled.
    async fn copy(
        &self,
        blob: &Descriptor,
        _: &SharedSource,
        _: &TransferMeter,
    ) -> Result<(), IndexError> {
        let info = self.content.info(&blob.digest).await;
        if info.map_err(|error| self.failed(error))?.is_some() {
            let held = self.containerd.hold_content(&blob.digest).await;
            held.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn holds_parts(&self) -> bool {
        true
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        if is_soci_blob(blob) && self.put_in_layout(blob, &bytes).await? {
            return Ok(());
        }
        self.put("blob", blob, HashMap::new(), bytes).await
    }

    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        if media_types::is_index(&manifest.media_type) {
            return self.put_index(manifest, bytes).await;
        }
        let parsed: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| invalid(manifest, &error))?;
        if matches!(
            parsed.config.media_type.as_str(),
            media_types::SOCI_INDEX_V1 | media_types::SOCI_INDEX_V2
        ) && self.put_in_layout(manifest, &bytes).await?
        {
            return Ok(());
        }
        let labels = gc::of_manifest(&parsed);
        self.put("manifest", manifest, labels, bytes).await
    }

    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.put_index(index, bytes).await?;
        if let Some(name) = &self.image {
            let recorded = Images::new(&self.containerd).record(name, index).await;
            recorded.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}
