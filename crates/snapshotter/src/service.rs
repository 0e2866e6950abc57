//! The gRPC service: unpacks requests, and turns errors into statuses.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::api::v1::snapshots_server::{Snapshots, SnapshotsServer};
use crate::api::v1::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, MountsResponse,
    PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::error::SnapshotterError;
use crate::filter::Filters;
use crate::info_batch::ListSnapshotsResponse;
use crate::snapshotter::Snapshotter;

/// The header in which containerd's clients send the namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// Snapshots per message of List, as containerd sends them.
const BATCH: usize = 100;

/// Implements `containerd.services.snapshots.v1.Snapshots`.
pub struct SnapshotService {
    snapshotter: Arc<Snapshotter>,
}

/// Returns the service, to be added to a tonic server.
pub fn service(snapshotter: Arc<Snapshotter>) -> SnapshotsServer<SnapshotService> {
    SnapshotsServer::new(SnapshotService { snapshotter })
}

/// Returns the namespace of a call, from its header or else from its key: containerd 1.6 calls a proxy
/// plugin without the header, but its keys are `<namespace>/<number>/<client's key>`.
fn namespace(metadata: &MetadataMap, key: &str) -> Option<String> {
    match metadata.get(NAMESPACE_HEADER) {
        Some(value) => value.to_str().ok().map(str::to_owned),
        None => namespace_of_key(key).map(str::to_owned),
    }
}

fn namespace_of_key(key: &str) -> Option<&str> {
    let (namespace, rest) = key.split_once('/')?;
    let (number, name) = rest.split_once('/')?;
    let numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (!namespace.is_empty() && !name.is_empty() && numbered).then_some(namespace)
}

#[async_trait]
impl Snapshots for SnapshotService {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let request_namespace = namespace(request.metadata(), &request.get_ref().key);
        let request = request.into_inner();
        let mounts = self
            .snapshotter
            .prepare(
                request_namespace,
                request.key,
                request.parent,
                request.labels,
            )
            .await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let request_namespace = namespace(request.metadata(), &request.get_ref().key);
        let request = request.into_inner();
        let mounts = self
            .snapshotter
            .view(
                request_namespace,
                request.key,
                request.parent,
                request.labels,
            )
            .await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let request_namespace = namespace(request.metadata(), &request.get_ref().key);
        let key = request.into_inner().key;
        let mounts = self.snapshotter.mounts(request_namespace, key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.snapshotter
            .commit(request.name, request.key, request.parent, request.labels)
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        self.snapshotter.remove(request.into_inner().key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let info = self.snapshotter.stat(request.into_inner().key).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let info = request
            .info
            .ok_or(SnapshotterError::MissingField { field: "info" })?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let info = self.snapshotter.update(info, mask).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info) }))
    }

    type ListStream = BoxStream<'static, Result<ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        drop(self.snapshotter.calls.enter()?);
        let filters =
            Filters::parse(&request.into_inner().filters).map_err(SnapshotterError::from)?;
        let store = Arc::clone(&self.snapshotter.store);
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let send = |info| {
                sender
                    .blocking_send(Ok(ListSnapshotsResponse { info }))
                    .is_ok()
            };
            let listed = store.metadata.list(&filters, |info| {
                batch.push(info);
                batch.len() < BATCH || send(std::mem::take(&mut batch))
            });
            match listed {
                Ok(()) if batch.is_empty() => {}
                Ok(()) => {
                    send(batch);
                }
                // Fails if the client is gone.
                Err(error) => {
                    let status = SnapshotterError::from(error).into();
                    drop(sender.blocking_send(Err(status)));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let usage = self.snapshotter.usage(request.into_inner().key).await?;
        Ok(Response::new(UsageResponse {
            size: usage.size,
            inodes: usage.inodes,
        }))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.snapshotter.cleanup().await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_header_s_or_else_the_key_s() {
        let mut metadata = MetadataMap::new();
        assert_eq!(
            namespace(&metadata, "k8s.io/12/extract-1 sha256:ab"),
            Some("k8s.io".into())
        );
        for without in ["", "key", "a/b", "a/b/c", "/1/c", "a//c", "a/1/", "a/1x/c"] {
            assert_eq!(namespace(&metadata, without), None, "{without}");
        }
        let header = "testing".parse().unwrap();
        metadata.insert(NAMESPACE_HEADER, header);
        assert_eq!(
            namespace(&metadata, "k8s.io/12/key"),
            Some("testing".into())
        );
    }
}
