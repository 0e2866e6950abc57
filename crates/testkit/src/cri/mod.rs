//! The kubelet's side of the Container Runtime Interface: pulling images and running pods through
//! the real socket.

mod images;
pub(crate) mod network;
mod options;
mod pods;

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) use options::{CNI_BIN, CNI_CONF};
pub use options::{CriOptions, CriPull};
pub use pods::{Executed, Pod, PodContainer};

use api::image_service_client::ImageServiceClient;
use api::runtime_service_client::RuntimeServiceClient;

/// The messages and clients of `runtime.v1`, as far as they are spoken here.
#[allow(
    missing_docs,
    clippy::all,
    rust_2018_idioms,
    unused_qualifications,
    reason = "generated code"
)]
pub mod api {
    tonic::include_proto!("runtime.v1");
}

/// A client of one container runtime. Calls block; it may be used from many threads.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to a socket that serves both pods and images.
    ///
    /// # Errors
    /// When no runtime answers there.
    pub fn connect(socket: &Path) -> Result<Self> {
        Self::connect_apart(socket, socket)
    }

    /// Connects to a socket for pods and another one for images (the kubelet's
    /// `--image-service-endpoint`).
    ///
    /// # Errors
    /// When no service answers at one of them.
    pub fn connect_apart(runtime_socket: &Path, image_socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("testkit-cri")
            .enable_all()
            .build()
            .context("start the threads of a CRI client")?;
        let (pods, images) = runtime.block_on(async {
            let pods = channel(runtime_socket).await?;
            anyhow::Ok((pods, channel(image_socket).await?))
        })?;
        Ok(Self {
            runtime,
            pods: RuntimeServiceClient::new(pods),
            images: ImageServiceClient::new(images),
        })
    }

    /// The version of the runtime, as it says itself.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub fn version(&self) -> Result<api::VersionResponse> {
        let request = api::VersionRequest::default();
        self.call("Version", async {
            self.pods.clone().version(request).await
        })
    }

    /// Waits for an answer.
    fn call<R>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    ) -> Result<R> {
        self.runtime
            .block_on(answer)
            .map(tonic::Response::into_inner)
            .with_context(|| format!("CRI {what}"))
    }
}

async fn channel(socket: &Path) -> Result<Channel> {
    let path = PathBuf::from(socket);
    Endpoint::from_static("http://socket")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("connect to {}", socket.display()))
}
