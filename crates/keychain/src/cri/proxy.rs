//! A proxy of CRI's image service. It forwards requests, responses and errors byte by byte, with
//! calls and fields of later versions. Only the requests to pull are decoded.

use std::convert::Infallible;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message as _;
use soci_errors::chain;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tower::{Service, ServiceExt as _};

use super::messages::PullImageRequest;
use super::remembered::{Change, CriKeychain};

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const REMOVE: &str = "/runtime.v1.ImageService/RemoveImage";
/// The largest request that is decoded, in bytes: it holds names and credentials.
const MAX_REQUEST: usize = 4 << 20;
/// A gRPC message starts with a byte that says whether it is compressed, and four of length.
const PREFIX: usize = 5;

/// A proxy that serves `runtime.v1.ImageService` in front of the real one.
#[derive(Clone)]
pub struct ImageServiceProxy {
    backend: Channel,
    path: PathBuf,
    keychain: CriKeychain,
}

impl ImageServiceProxy {
    /// Creates a proxy of the service on a unix socket, `[cri_keychain] image_service_path` (a path or
    /// `unix://PATH`), and connects with the first request. Must be called on a tokio runtime.
    #[must_use]
    pub fn new(image_service: &str, keychain: CriKeychain) -> Self {
        let path = soci_grpc::socket_path(image_service);
        Self {
            backend: soci_grpc::lazy_channel(path),
            path: path.to_owned(),
            keychain,
        }
    }

    /// Returns the socket of the real image service.
    #[must_use]
    pub fn image_service(&self) -> &Path {
        &self.path
    }

    async fn forward(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let call = request.uri().path().to_owned();
        let (request, change) = match call.as_str() {
            PULL => self.inspect(request).await?,
            _ => (request, None),
        };
        let mut backend = self.backend.clone();
        let answer = match backend.ready().await {
            Ok(backend) => backend.call(request).await,
            Err(error) => Err(error),
        };
        let failed = match &answer {
            Ok(answer) => answer
                .headers()
                .get("grpc-status")
                .is_some_and(|status| status != "0"),
            Err(_) => true,
        };
        if let Some(change) = change.filter(|_| !failed) {
            change.keep();
        }
        if !failed && call == REMOVE {
            self.keychain.image_removed();
        }
        answer.map_err(|error| {
            Status::unavailable(format!(
                "cannot reach the CRI image service at {}: {}",
                self.path.display(),
                chain(&error)
            ))
        })
    }

    /// Remembers the credentials of a request to pull, which stays unchanged.
    async fn inspect(
        &self,
        request: http::Request<Body>,
    ) -> Result<(http::Request<Body>, Option<Change>), Status> {
        let (head, body) = request.into_parts();
        let whole = Limited::new(body, MAX_REQUEST)
            .collect()
            .await
            .map_err(|_| {
                Status::resource_exhausted("the request is truncated, or larger than 4 MiB")
            })?
            .to_bytes();
        let mut change = None;
        match message(&whole) {
            Some(message) => {
                if let Ok(pull) = PullImageRequest::decode(message)
                    && let (Some(image), Some(auth)) = (pull.image, pull.auth)
                {
                    change = self.keychain.remember(&image.image, &auth);
                }
            }
            None => tracing::warn!(
                call = PULL,
                "cannot read credentials of a compressed image service request"
            ),
        }
        let body = Body::new(Full::new(whole));
        Ok((http::Request::from_parts(head, body), change))
    }
}

/// Returns the message of a request; `None` if it is compressed or truncated.
fn message(body: &Bytes) -> Option<BytesMut> {
    let (flag, length) = body.get(..PREFIX)?.split_first()?;
    let length = u32::from_be_bytes(*length.first_chunk()?);
    let message = body.get(PREFIX..)?.get(..usize::try_from(length).ok()?)?;
    (*flag == 0).then(|| BytesMut::from(message))
}

impl NamedService for ImageServiceProxy {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for ImageServiceProxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move {
            let answer = proxy.forward(request).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}
