//! The calls of a client, simpler than those of the generated one.

use std::collections::BTreeMap;

use soci_snapshotter::api::types::Mount;
use soci_snapshotter::api::v1::*;
use tonic::{Code, Request, Status};

use crate::fixture::Daemon;

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";

impl Daemon {
    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let mut request = Request::new(PrepareSnapshotRequest {
            snapshotter: "soci".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        let namespace = "testing".parse().unwrap();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        let response = self.client.clone().prepare(request).await?;
        Ok(response.into_inner().mounts)
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, Labels::new()).await
    }

    /// Prepares an image layer the way containerd does.
    pub(crate) async fn prepare_layer(
        &self,
        key: &str,
        parent: &str,
        target: &str,
        layer: &str,
    ) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, layer_labels(target, layer))
            .await
    }

    /// Prepares an image layer that must be mounted lazily.
    pub(crate) async fn pull_lazily(&self, target: &str, parent: &str, layer: &str) {
        let key = format!("extract {target}");
        let answer = self.prepare_layer(&key, parent, target, layer).await;
        assert_code(&answer, Code::AlreadyExists);
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.view_with(key, parent, Labels::new()).await
    }

    pub(crate) async fn view_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let request = ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
            ..Default::default()
        };
        Ok(self.client.clone().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        let response = self.client.clone().mounts(request).await?;
        Ok(response.into_inner().mounts)
    }

    pub(crate) async fn commit_with(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            ..Default::default()
        };
        self.client.clone().commit(request).await?;
        Ok(())
    }

    /// Commits a snapshot that was prepared without a parent onto one.
    pub(crate) async fn commit_onto(
        &self,
        parent: &str,
        name: &str,
        key: &str,
    ) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        self.client.clone().commit(request).await?;
        Ok(())
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, Labels::new()).await
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        self.client.clone().remove(request).await?;
        Ok(())
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        let response = self.client.clone().stat(request).await?;
        Ok(response.into_inner().info.unwrap())
    }

    pub(crate) async fn update(&self, info: Info, mask: &[&str]) -> Result<Info, Status> {
        let request = UpdateSnapshotRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask {
                paths: mask.iter().map(|path| (*path).to_owned()).collect(),
            }),
            ..Default::default()
        };
        let response = self.client.clone().update(request).await?;
        Ok(response.into_inner().info.unwrap())
    }

    pub(crate) async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let request = ListSnapshotsRequest {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..Default::default()
        };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(batch) = stream.message().await? {
            assert!((1..=100).contains(&batch.info.len()));
            infos.extend(batch.decode().unwrap());
        }
        Ok(infos)
    }

    pub(crate) async fn names(&self, filters: &[&str]) -> Vec<String> {
        let infos = self.list(filters).await.unwrap();
        infos.into_iter().map(|info| info.name).collect()
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = UsageRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self.client.clone().usage(request).await?.into_inner())
    }

    pub(crate) async fn cleanup(&self) {
        let request = CleanupRequest::default();
        self.client.clone().cleanup(request).await.unwrap();
    }
}

pub(crate) fn layer_labels(target: &str, layer: &str) -> Labels {
    labels(&[
        (TARGET, target),
        ("containerd.io/snapshot/cri.layer-digest", layer),
        ("containerd.io/snapshot/cri.image-ref", "registry/image:tag"),
    ])
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn assert_code<T: std::fmt::Debug>(result: &Result<T, Status>, code: Code) {
    match result {
        Ok(value) => panic!("expected {code:?}, got {value:?}"),
        Err(status) => assert_eq!(status.code(), code, "{status:?}"),
    }
}
