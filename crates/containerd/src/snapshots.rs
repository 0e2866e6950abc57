//! Snapshots of one snapshotter, and applying a layer to one.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Channel;
use containerd_client::types::Mount;
use soci_oci::Descriptor;

use crate::client::Namespace;
use crate::error::ContainerdError;
use crate::images::api_descriptor;

/// The snapshots of one snapshotter in a namespace.
#[derive(Debug, Clone)]
pub struct Snapshots {
    namespace: Namespace,
    snapshotter: String,
}

impl Snapshots {
    /// The snapshots of the snapshotter with this name.
    #[must_use]
    pub fn new(namespace: &Namespace, snapshotter: &str) -> Self {
        Self {
            namespace: namespace.clone(),
            snapshotter: snapshotter.to_owned(),
        }
    }

    /// Name of the snapshotter.
    #[must_use]
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.namespace.channel.clone())
    }

    /// Returns the labels of a snapshot, or `None` if it does not exist.
    ///
    /// # Errors
    /// The snapshotter is not there or refuses.
    pub async fn labels(
        &self,
        key: &str,
    ) -> Result<Option<HashMap<String, String>>, ContainerdError> {
        let request = self.namespace.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        match self.client().stat(request).await {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => {
                let action = format!("use snapshotter {:?}", self.snapshotter);
                Err(self.namespace.failed(action)(status))
            }
        }
    }

    /// Prepares a snapshot on `parent` (empty: none), and returns the mounts to fill; `None` if the
    /// snapshotter has the layer that the labels describe.
    ///
    /// # Errors
    /// The snapshotter is not there or refuses.
    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Option<Vec<Mount>>, ContainerdError> {
        let request = self.namespace.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        match self.client().prepare(request).await {
            Ok(answer) => Ok(Some(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(self.namespace.failed(format!("prepare snapshot {key:?}"))(
                status,
            )),
        }
    }

    /// Commits a snapshot as `name`; `false` if that name exists already.
    ///
    /// # Errors
    /// The snapshotter refuses.
    pub async fn commit(
        &self,
        key: &str,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<bool, ContainerdError> {
        let request = self.namespace.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
        });
        match self.client().commit(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.namespace.failed(format!("commit snapshot {name}"))(
                status,
            )),
        }
    }

    /// Removes a snapshot; one that does not exist is not an error.
    ///
    /// # Errors
    /// The snapshotter refuses.
    pub async fn remove(&self, key: &str) -> Result<(), ContainerdError> {
        let request = self.namespace.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        match self.client().remove(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.namespace.failed(format!("remove snapshot {key:?}"))(
                status,
            )),
        }
    }
}

/// Unpacks a layer of the content store into mounts, and returns the digest of the uncompressed
/// content (the diff ID) as containerd computed it.
///
/// # Errors
/// containerd cannot unpack the layer.
pub async fn apply(
    namespace: &Namespace,
    layer: &Descriptor,
    mounts: Vec<Mount>,
) -> Result<String, ContainerdError> {
    let action = format!("unpack layer {}", layer.digest);
    let request = namespace.request(ApplyRequest {
        diff: Some(api_descriptor(layer)),
        mounts,
        ..ApplyRequest::default()
    });
    match DiffClient::new(namespace.channel.clone())
        .apply(request)
        .await
    {
        Ok(answer) => match answer.into_inner().applied {
            Some(applied) => Ok(applied.digest),
            None => Err(ContainerdError::Incomplete {
                action,
                missing: "descriptor of the unpacked content",
            }),
        },
        Err(status) => Err(namespace.failed(action)(status)),
    }
}
