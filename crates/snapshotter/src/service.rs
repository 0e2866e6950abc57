//! (API first, bodies follow)
#![allow(missing_docs)]
use crate::api::v1::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};
/// The tonic service.
pub struct SnapshotService {
    pub(crate) snapshotter: Arc<crate::Snapshotter>,
}
#[async_trait::async_trait]
impl snapshots_server::Snapshots for SnapshotService {
    type ListStream = futures::stream::BoxStream<'static, Result<ListSnapshotsResponse, Status>>;
    async fn prepare(
        &self,
        _r: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn view(
        &self,
        _r: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn mounts(&self, _r: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn commit(&self, _r: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn remove(&self, _r: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn stat(
        &self,
        _r: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn update(
        &self,
        _r: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn list(
        &self,
        _r: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn usage(&self, _r: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
    async fn cleanup(&self, _r: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        let _ = &self.snapshotter;
        Err(Status::unimplemented(""))
    }
}
