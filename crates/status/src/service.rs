//! The service: an answer put together from sources.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use crate::api::status_server::{Status as StatusApi, StatusServer};
use crate::api::{
    CollectRequest, CollectResponse, FillRequest, FillResponse, GetRequest, GetResponse, Image,
};

/// More than the layers of 10,000 images take.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Knows a part of the answer.
#[async_trait]
pub trait StatusSource: Send + Sync + 'static {
    /// Fills in its part, and leaves the others alone.
    ///
    /// # Errors
    /// The part cannot be had; then there is no answer.
    async fn fill(&self, status: &mut GetResponse) -> Result<(), SourceError>;
}

/// Fills images before others.
#[async_trait]
pub trait Filler: Send + Sync + 'static {
    /// Requests it for the next seconds. Returns the images that are meant.
    ///
    /// # Errors
    /// The images cannot be listed.
    async fn fill(&self, image: &str, namespace: &str) -> Result<Vec<Image>, SourceError>;
}

/// Finds and frees what nothing uses.
#[async_trait]
pub trait Collector: Send + Sync + 'static {
    /// Finds what nothing uses, and frees it unless this is a dry run.
    ///
    /// # Errors
    /// It cannot be found out.
    async fn collect(&self, dry_run: bool) -> Result<CollectResponse, SourceError>;
}

/// A part of the answer cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the status is incomplete: {0}")]
pub struct SourceError(String);

impl SourceError {
    /// With the reason as text.
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// The sources of an answer, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Sources {
    parts: Vec<Arc<dyn StatusSource>>,
    filler: Option<Arc<dyn Filler>>,
    collector: Option<Arc<dyn Collector>>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sources({})", self.parts.len())
    }
}

impl Sources {
    /// Adds one that is asked after those that are there.
    #[must_use]
    pub fn with(mut self, source: impl StatusSource) -> Self {
        self.parts.push(Arc::new(source));
        self
    }

    /// Adds the part that fills images.
    #[must_use]
    pub fn with_filler(mut self, filler: impl Filler) -> Self {
        self.filler = Some(Arc::new(filler));
        self
    }

    /// Adds a collector, which finds and frees what nothing uses.
    #[must_use]
    pub fn with_collector(mut self, collector: impl Collector) -> Self {
        self.collector = Some(Arc::new(collector));
        self
    }

    /// The answer.
    ///
    /// # Errors
    /// That of the first source that fails.
    pub async fn collect(&self) -> Result<GetResponse, SourceError> {
        let mut status = GetResponse::default();
        for source in &self.parts {
            source.fill(&mut status).await?;
        }
        Ok(status)
    }

    /// The gRPC service.
    #[must_use]
    pub fn service(self) -> StatusServer<impl StatusApi> {
        StatusServer::new(Service(self)).max_encoding_message_size(MAX_MESSAGE)
    }
}

struct Service(Sources);

#[async_trait]
impl StatusApi for Service {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        match self.0.collect().await {
            Ok(status) => Ok(Response::new(status)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn fill(&self, request: Request<FillRequest>) -> Result<Response<FillResponse>, Status> {
        let Some(filler) = &self.0.filler else {
            return Err(Status::unimplemented("this daemon fills no images"));
        };
        let FillRequest { image, namespace } = request.into_inner();
        let images = filler.fill(&image, &namespace).await;
        let images = images.map_err(|error| Status::unavailable(error.to_string()))?;
        match images.is_empty() {
            true => Err(Status::not_found(
                "no layer of such an image is on this node",
            )),
            false => Ok(Response::new(FillResponse { images })),
        }
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<CollectResponse>, Status> {
        let Some(collector) = &self.0.collector else {
            return Err(Status::unimplemented("this daemon collects nothing"));
        };
        let dry_run = request.into_inner().dry_run;
        match collector.collect(dry_run).await {
            Ok(collected) => Ok(Response::new(collected)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
