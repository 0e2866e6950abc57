//! gRPC channels over unix sockets.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

/// The HTTP/2 authority of every request. It is never resolved: the connector has the path.
const AUTHORITY: &str = "http://localhost";

/// Returns the path of the socket that an address names: a path, or `unix://PATH`.
#[must_use]
pub fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Opens a channel to a unix socket, connected on first use and again whenever it broke.
///
/// # Panics
/// Outside a tokio runtime.
#[must_use]
pub fn lazy_channel(socket: impl Into<PathBuf>) -> Channel {
    let socket = socket.into();
    Endpoint::from_static(AUTHORITY).connect_with_connector_lazy(service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

/// Opens a channel to a unix socket and waits until it is connected.
///
/// # Errors
/// The socket does not exist, no process listens on it, or it may not be used.
pub async fn connect(socket: impl Into<PathBuf>) -> Result<Channel, Error> {
    let socket = socket.into();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static(AUTHORITY)
        .connect_with_connector(connector)
        .await
}
