//! containerd's content store: blobs, their labels, reading and writing.

mod read;
mod write;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    DeleteContentRequest, Info, InfoRequest, ListContentRequest, UpdateRequest,
};
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Channel;
use futures::stream::BoxStream;
use prost_types::FieldMask;
use soci_oci::Digest;
use tokio::sync::OnceCell;

pub use write::BlobWriter;

use crate::client::Namespace;
use crate::error::ContainerdError;
use crate::labels::SOURCE_PREFIX;

/// Greatest message that is accepted, in bytes: twice what containerd sends at most.
const MAX_MESSAGE: usize = 32 << 20;

/// The bytes of a blob, from some offset on.
pub type BlobStream = BoxStream<'static, io::Result<Bytes>>;

/// containerd's content store in one namespace.
#[derive(Debug, Clone)]
pub struct Content {
    namespace: Namespace,
    /// Directory of the store, once it was requested; `None` inside if it is not known.
    root: Arc<OnceCell<Option<PathBuf>>>,
}

/// A blob as containerd records it.
#[derive(Debug, Clone)]
pub struct BlobInfo {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Time at which it was written.
    pub created_at: Option<SystemTime>,
    /// Labels in this namespace.
    pub labels: HashMap<String, String>,
}

impl BlobInfo {
    /// Converts a record; `None` for a blob under another kind of digest than SHA-256.
    fn read(info: Info) -> Option<Self> {
        let time = |at: prost_types::Timestamp| {
            let since = Duration::new(at.seconds.try_into().ok()?, at.nanos.try_into().ok()?);
            SystemTime::UNIX_EPOCH.checked_add(since)
        };
        Some(Self {
            digest: info.digest.parse().ok()?,
            size: u64::try_from(info.size).ok()?,
            created_at: info.created_at.and_then(time),
            labels: info.labels,
        })
    }
}

impl Content {
    /// The content store of this namespace.
    #[must_use]
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            namespace: namespace.clone(),
            root: Arc::default(),
        }
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.namespace.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns what is recorded of a blob, or `None` if it is not stored.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, ContainerdError> {
        let request = self.namespace.request(InfoRequest {
            digest: digest.to_string(),
        });
        match self.client().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.and_then(BlobInfo::read)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.namespace.failed(format!("look up blob {digest}"))(
                status,
            )),
        }
    }

    /// Lists all blobs of the namespace.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn list(&self) -> Result<Vec<BlobInfo>, ContainerdError> {
        let failed = || self.namespace.failed("list blobs");
        let request = self.namespace.request(ListContentRequest::default());
        let answers = self.client().list(request).await.map_err(failed())?;
        let mut answers = answers.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await.map_err(failed())? {
            all.extend(answer.info.into_iter().filter_map(BlobInfo::read));
        }
        Ok(all)
    }

    /// Adds labels to a stored blob. A source repository joins those that are recorded.
    ///
    /// # Errors
    /// The blob is not stored, or containerd refuses.
    pub async fn add_labels(
        &self,
        digest: &Digest,
        mut labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let info = self
            .info(digest)
            .await?
            .ok_or(ContainerdError::Incomplete {
                action: format!("label blob {digest}"),
                missing: "such blob",
            })?;
        for (key, value) in &mut labels {
            if let Some(known) = info.labels.get(key)
                && key.starts_with(SOURCE_PREFIX)
            {
                let mut all: Vec<&str> = known.split(',').collect();
                if !all.contains(&value.as_str()) {
                    all.push(value);
                }
                *value = all.join(",");
            }
        }
        labels.retain(|key, value| info.labels.get(key) != Some(value));
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        self.update(digest, labels, paths).await
    }

    /// Removes a label of a blob; a label or blob that is not there is not an error.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn remove_label(&self, digest: &Digest, label: &str) -> Result<(), ContainerdError> {
        let paths = vec![format!("labels.{label}")];
        match self.update(digest, HashMap::new(), paths).await {
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            result => result,
        }
    }

    async fn update(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
        paths: Vec<String>,
    ) -> Result<(), ContainerdError> {
        let request = self.namespace.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        });
        let updated = self.client().update(request).await;
        let failed = self.namespace.failed(format!("label blob {digest}"));
        updated.map(drop).map_err(failed)
    }

    /// Removes a blob; one that is not stored is not an error.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn delete(&self, digest: &Digest) -> Result<(), ContainerdError> {
        let request = self.namespace.request(DeleteContentRequest {
            digest: digest.to_string(),
        });
        match self.client().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.namespace.failed(format!("remove blob {digest}"))(
                status,
            )),
        }
    }
}
