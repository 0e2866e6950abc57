//! What operators can observe: metrics, the debug address, the sources of `soci status`.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::Router;
use soci_config::{Config, MetricsNetwork};
use soci_status::Sources;
use soci_store::Owner;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::collector::DaemonCollector;
use crate::debug::{self, Debug};
use crate::http_socket::{HttpAddress, HttpSocket, SocketError};
use crate::metrics::{self, Metrics};
use crate::status_sources::{
    DaemonSource, HolderSource, ImageFiller, LayersSource, ProfilesSource, PullsSource,
    RegistriesSource, StoreSource,
};
use crate::wiring::Subsystems;

/// How long responses in flight may take at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sockets, which are not served yet.
pub(crate) struct Sockets {
    metrics: Option<HttpSocket>,
    debug: Option<HttpSocket>,
}

/// The servers.
pub(crate) struct Observers {
    end: CancellationToken,
    servers: JoinSet<()>,
}

/// Listens on the configured addresses. One that is in use stops the start.
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
        let address = if config.metrics_network == MetricsNetwork::Unix {
            HttpAddress::Unix(address.into())
        } else {
            HttpAddress::Tcp(address)
        };
        sockets.metrics = Some(HttpSocket::bind(&address, "metrics_address")?);
    }
    if wanted(&config.debug_address) {
        let address = HttpAddress::parse(&config.debug_address);
        sockets.debug = Some(HttpSocket::bind(&address, "debug_address")?);
    }
    Ok(sockets)
}

/// The sources of the parts of `soci status`.
pub(crate) fn sources(subsystems: &Subsystems, root: &Path, owner: Owner) -> Sources {
    Sources::default()
        .with(DaemonSource {
            root: root.to_owned(),
            started: Instant::now(),
            owner,
        })
        .with(HolderSource {
            keeper: subsystems.keeper.clone(),
            pool: subsystems.pool.clone(),
            snapshotter: subsystems.snapshotter.clone(),
        })
        .with(RegistriesSource {
            client: subsystems.client.clone(),
        })
        .with(StoreSource {
            store: subsystems.store.clone(),
        })
        .with(ProfilesSource {
            lazy: subsystems.lazy.clone(),
        })
        .with(LayersSource {
            snapshotter: subsystems.snapshotter.clone(),
            lazy: subsystems.lazy.clone(),
        })
        .with(PullsSource {
            eager: subsystems.eager.clone(),
        })
        .with_collector(DaemonCollector {
            root: root.to_owned(),
            snapshotter: subsystems.snapshotter.clone(),
            lazy: subsystems.lazy.clone(),
        })
        .with_filler(ImageFiller {
            snapshotter: subsystems.snapshotter.clone(),
            lazy: subsystems.lazy.clone(),
        })
}

impl Sockets {
    /// Starts to serve.
    pub(crate) fn serve(self, subsystems: &Subsystems, sources: &Sources) -> Observers {
        let mut observers = Observers {
            end: CancellationToken::new(),
            servers: JoinSet::new(),
        };
        if let Some(socket) = self.metrics {
            let router = metrics::router(Metrics {
                meters: subsystems.meters.clone(),
                snapshotter: subsystems.snapshotter.clone(),
                lazy: subsystems.lazy.clone(),
                eager: subsystems.eager.clone(),
                pipeline: subsystems.pipeline.clone(),
                fetcher: subsystems.fetcher.clone(),
                store: subsystems.store.clone(),
                journal: subsystems.journal.clone(),
                scraping: Mutex::default(),
            });
            tracing::info!(address = socket.address(), "serving /metrics");
            observers.serve(socket, router);
        }
        if let Some(socket) = self.debug {
            let router = debug::router(Debug {
                sources: sources.clone(),
                fetcher: subsystems.fetcher.clone(),
                pool: subsystems.pool.clone(),
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
                tracing::error!(address, %error, "HTTP server failed");
            }
        });
    }

    /// Stops serving. To be called before the subsystems are closed, which must not be asked afterwards.
    pub(crate) async fn close(mut self) {
        self.end.cancel();
        let all = async { while self.servers.join_next().await.is_some() {} };
        // Connections that a client keeps open are cut off when this is dropped.
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}
