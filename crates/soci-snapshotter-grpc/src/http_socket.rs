//! The sockets of the small HTTP servers: metrics and debugging.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use axum::Router;
use soci_registry::listen_addresses;

use crate::listen::{self, ListenError};

/// The address of an HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HttpAddress {
    /// `HOST:PORT`; an empty host is this machine alone.
    Tcp(String),
    /// The path of a socket to be created.
    Unix(PathBuf),
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("{key} = {address:?} is taken by another process: stop it, or choose another {key}")]
    Taken { key: &'static str, address: String },
    #[error("cannot listen on {key} = {address:?}")]
    Failed {
        key: &'static str,
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A listening socket. The file of a unix socket is removed when it is dropped.
#[derive(Debug)]
pub(crate) enum HttpSocket {
    Tcp(TcpListener),
    Unix(listen::Listener),
}

impl HttpSocket {
    /// Listens on an address; `key` of the configuration is for the error.
    pub(crate) fn bind(place: &HttpAddress, key: &'static str) -> Result<Self, SocketError> {
        match place {
            HttpAddress::Tcp(address) => bind_tcp(address).map(Self::Tcp).map_err(|error| {
                let address = address.clone();
                match error.kind() {
                    io::ErrorKind::AddrInUse => SocketError::Taken { key, address },
                    _ => SocketError::Failed {
                        key,
                        address,
                        source: error.into(),
                    },
                }
            }),
            HttpAddress::Unix(path) => listen::at_path(path).map(Self::Unix).map_err(|error| {
                let address = path.display().to_string();
                match error {
                    ListenError::InUse { .. } => SocketError::Taken { key, address },
                    error => SocketError::Failed {
                        key,
                        address,
                        source: error.into(),
                    },
                }
            }),
        }
    }

    /// The address that it listens on, for the log.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(socket) => socket.local_addr().map_or_else(
                |error| format!("(unknown: {error})"),
                |address| address.to_string(),
            ),
            Self::Unix(listener) => listener.address.clone(),
        }
    }

    /// Serves until `end`.
    pub(crate) async fn serve(
        self,
        router: Router,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                let socket = tokio::net::TcpListener::from_std(socket)?;
                axum::serve(socket, router)
                    .with_graceful_shutdown(end)
                    .await
            }
            Self::Unix(listener) => {
                let socket = tokio::net::UnixListener::from_std(listener.socket.try_clone()?)?;
                axum::serve(socket, router)
                    .with_graceful_shutdown(end)
                    .await
            }
        }
    }
}

fn bind_tcp(address: &str) -> io::Result<TcpListener> {
    let own;
    let address = match address.strip_prefix(':') {
        // There is no authentication, and the answers name the images of all tenants.
        Some(port) => {
            own = format!("127.0.0.1:{port}");
            &own
        }
        None => address,
    };
    let socket = TcpListener::bind(&*listen_addresses(address)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl HttpAddress {
    /// An absolute path is a unix socket, everything else HOST:PORT.
    pub(crate) fn parse(address: &str) -> Self {
        if Path::new(address).is_absolute() {
            Self::Unix(address.into())
        } else {
            Self::Tcp(address.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named_with_its_key() {
        let first =
            HttpSocket::bind(&HttpAddress::parse("127.0.0.1:0"), "metrics_address").unwrap();
        let place = HttpAddress::parse(&first.address());
        let error = HttpSocket::bind(&place, "metrics_address").unwrap_err();
        assert!(
            error.to_string().contains("metrics_address")
                && error.to_string().contains("taken by another process"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let place = HttpAddress::Unix(path.clone());
        let first = HttpSocket::bind(&place, "debug_address").unwrap();
        let error = HttpSocket::bind(&place, "debug_address").unwrap_err();
        assert!(error.to_string().contains("debug_address"), "{error}");
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        listen::tests::leave_stale_socket(&path);
        HttpSocket::bind(&HttpAddress::Unix(path), "metrics_address").unwrap();
    }

    #[test]
    fn a_port_alone_means_loopback_and_all_addresses_must_be_requested() {
        let socket = HttpSocket::bind(&HttpAddress::parse(":0"), "metrics_address").unwrap();
        assert!(socket.address().starts_with("127.0.0.1:"), "{socket:?}");
        let place = HttpAddress::parse("0.0.0.0:0");
        let socket = HttpSocket::bind(&place, "metrics_address").unwrap();
        assert!(socket.address().starts_with("0.0.0.0:"), "{socket:?}");
    }
}
