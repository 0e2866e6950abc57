//! What operators can look at: metrics, the debug address, the sources of `soci status`.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::Router;
use soci_config::{Config, MetricsNetwork};
use soci_status::Sources;
use soci_store::Owner;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::debug::{self, Debug};
use crate::http_socket::{HttpSocket, Place, SocketError};
use crate::metrics::{self, Metrics};
use crate::status_sources::{DaemonSource, HoldingSource, LayersSource, StoreSource};
use crate::wiring::Running;

/// How long answers under way may take at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sockets, which nobody serves yet.
pub(crate) struct Sockets {
    metrics: Option<HttpSocket>,
    debug: Option<HttpSocket>,
}

/// The servers.
pub(crate) struct Observers {
    end: CancellationToken,
    servers: JoinSet<()>,
}

/// Listens where the configuration says; an address that is taken stops the start.
pub(crate) fn listen(config: &Config) -> Result<Sockets, SocketError> {
    let wanted = |address: &str| !address.is_empty();
    let mut sockets = Sockets {
        metrics: None,
        debug: None,
    };
    if wanted(&config.metrics_address) && config.no_prometheus {
        tracing::info!("metrics_address is not served, because no_prometheus is set");
    } else if wanted(&config.metrics_address) {
        let address = config.metrics_address.clone();
        let place = if config.metrics_network == MetricsNetwork::Unix {
            Place::Unix(address.into())
        } else {
            Place::Tcp(address)
        };
        sockets.metrics = Some(HttpSocket::bind(&place, "metrics_address")?);
    }
    if wanted(&config.debug_address) {
        let place = Place::parse(&config.debug_address);
        sockets.debug = Some(HttpSocket::bind(&place, "debug_address")?);
    }
    Ok(sockets)
}

/// The parts of `soci status` that this daemon knows.
pub(crate) fn sources(running: &Running, root: &Path, owner: Owner) -> Sources {
    Sources::default()
        .with(DaemonSource {
            root: root.to_owned(),
            started: Instant::now(),
            owner,
        })
        .with(HoldingSource {
            keeper: running.keeper.clone(),
            pool: running.pool.clone(),
            snapshotter: running.snapshotter.clone(),
        })
        .with(StoreSource {
            store: running.store.clone(),
        })
        .with(LayersSource {
            snapshotter: running.snapshotter.clone(),
            lazy: running.lazy.clone(),
        })
}

impl Sockets {
    /// Starts to serve.
    pub(crate) fn serve(self, running: &Running, sources: &Sources) -> Observers {
        let mut observers = Observers {
            end: CancellationToken::new(),
            servers: JoinSet::new(),
        };
        if let Some(socket) = self.metrics {
            let router = metrics::router(Metrics {
                meters: running.meters.clone(),
                snapshotter: running.snapshotter.clone(),
                lazy: running.lazy.clone(),
                fetcher: running.fetcher.clone(),
                store: running.store.clone(),
                asking: Mutex::default(),
            });
            tracing::info!(address = socket.address(), "serving /metrics");
            observers.serve(socket, router);
        }
        if let Some(socket) = self.debug {
            let router = debug::router(Debug {
                sources: sources.clone(),
                fetcher: running.fetcher.clone(),
                pool: running.pool.clone(),
            });
            tracing::info!(address = socket.address(), "serving /debug/");
            observers.serve(socket, router);
        }
        observers
    }
}

impl Observers {
    fn serve(&mut self, socket: HttpSocket, router: Router) {
        let (address, end) = (socket.address(), self.end.clone());
        self.servers.spawn(async move {
            if let Err(error) = socket.serve(router, end.cancelled_owned()).await {
                tracing::error!(address, %error, "an HTTP server ended");
            }
        });
    }

    /// Stops serving. To be called before the subsystems are closed: they are asked no more.
    pub(crate) async fn close(mut self) {
        self.end.cancel();
        let all = async { while self.servers.join_next().await.is_some() {} };
        // Connections that a client keeps open are cut off when this is dropped.
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}
