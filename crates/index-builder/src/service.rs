//! The service: an HTTP server that takes events, and the workers behind it.

mod auth;
mod http;
mod metrics;
mod page;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::auth::{Secret, SecretError};
pub use self::metrics::Metrics;
pub use self::tls::{Identity, TlsError};
use crate::{PushPolicy, Queue, WorkerPool};

/// What the HTTP server needs.
#[derive(Debug)]
pub struct Service {
    /// Where events go.
    pub queue: Queue,
    /// Which of them are taken.
    pub policy: PushPolicy,
    /// The workers to be woken.
    pub pool: Arc<WorkerPool>,
    /// What senders of events must know; `None`: nothing.
    pub secret: Option<Secret>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Which pages a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// `/events` and `/healthz`.
    Events,
    /// The status page, `/status.json`, `/metrics` and `/healthz`.
    Status,
    /// All of them.
    All,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Identity>,
    pages: Pages,
}

impl Listener {
    /// Listens on an address.
    ///
    /// # Errors
    /// The address cannot be used.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<Identity>,
        pages: Pages,
    ) -> std::io::Result<Self> {
        Ok(Self {
            socket: TcpListener::bind(address).await?,
            tls,
            pages,
        })
    }

    /// Returns the address, with the port that the system chose.
    ///
    /// # Errors
    /// The system does not know it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is cancelled; requests under way are ended properly.
    ///
    /// # Errors
    /// The server failed.
    pub async fn serve(
        self,
        service: Arc<Service>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let router = http::router(service, self.pages);
        let stopped = stop.clone().cancelled_owned();
        match self.tls {
            None => {
                axum::serve(self.socket, router)
                    .with_graceful_shutdown(stopped)
                    .await
            }
            Some(identity) => {
                let listener = tls::TlsListener::new(self.socket, identity, stop);
                axum::serve(listener, router)
                    .with_graceful_shutdown(stopped)
                    .await
            }
        }
    }
}
