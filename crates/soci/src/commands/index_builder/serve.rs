//! `soci index-builder serve`: the service.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_index_builder::service::{Identity, Listener, Metrics, Pages, Secret, Service};
use soci_index_builder::{PushPolicy, Queue, WorkerPool};
use soci_registry::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::jobs::QueueArgs;
use super::settings::{Settings, WorkerArgs};
use crate::duration;
use crate::global::Global;
use crate::interrupt::interrupted;

/// Take push events over HTTP, queue them durably and index the images
///
/// Events are sent to /events; see docs/index-builder.md for the settings of each registry. The
/// status page is at /, its data at /status.json, metrics at /metrics.
#[derive(Debug, Args)]
#[command(after_help = "\
Several of these processes may share a queue folder. A killed process loses no event.

Examples:
  openssl rand -hex 32 >/etc/soci/secret
  soci index-builder serve --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem \\
    --secret-file /etc/soci/secret --filters 'prod/*:*' --registry registry.example
  soci index-builder serve --registry registry.example --poll 5m")]
pub(crate) struct Serve {
    #[command(flatten)]
    queue: QueueArgs,

    /// Where events are taken
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Where the status page and metrics are served (default: where events are taken)
    #[arg(long, value_name = "ADDRESS:PORT")]
    status_listen: Option<SocketAddr>,

    /// The certificate of the server and those that vouch for it, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// A file with the secret that events are signed with (X-Soci-Signature-256) or carry as a bearer token
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// Accept events from any client that reaches the address
    #[arg(long, conflicts_with = "secret_file")]
    no_secret: bool,

    /// Look for new images at each --registry this often
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "registries")]
    poll: Option<Duration>,

    #[command(flatten)]
    workers: WorkerArgs,

    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Serve {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let secret = match &self.secret_file {
            Some(path) => Some(Secret::read(path)?),
            None if self.listen.ip().is_loopback() || self.no_secret => None,
            None => bail!(
                "cannot take events at {} without a secret: give --secret-file, or --no-secret if something \
                 before it admits the right senders only",
                self.listen
            ),
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Identity::read(certificate, key)?),
            _ => None,
        };
        let policy = self.settings.policy();
        let indexer = Arc::new(self.settings.indexer(global)?);
        let client = self.settings.client()?;
        let queue = Queue::open(&self.queue.folder)?;
        let metrics = Arc::new(Metrics::new().context("cannot make the metrics")?);
        let pool = WorkerPool::new(queue.clone(), indexer, self.workers.pool()).await?;
        let pool = Arc::new(pool.counted_by(Arc::clone(&metrics)));
        let service = Arc::new(Service {
            queue: queue.clone(),
            policy: policy.clone(),
            pool: Arc::clone(&pool),
            secret,
            metrics,
        });
        let pages = match self.status_listen {
            Some(_) => Pages::Events,
            None => Pages::All,
        };
        let stop = CancellationToken::new();
        let mut servers = JoinSet::new();
        let addresses = [
            (Some(self.listen), pages),
            (self.status_listen, Pages::Status),
        ];
        for (address, pages) in addresses {
            let Some(address) = address else { continue };
            let bound = Listener::bind(address, tls.clone(), pages).await;
            let listener = bound.with_context(|| format!("cannot listen on {address}"))?;
            tracing::info!(address = %listener.address()?, ?pages, tls = tls.is_some(), "listening");
            servers.spawn(listener.serve(Arc::clone(&service), stop.clone()));
        }
        if let Some(interval) = self.poll {
            let registries = policy.registries.iter().cloned().collect();
            let polling = Polling {
                client,
                policy,
                queue,
                pool: Arc::clone(&pool),
            };
            tokio::spawn(polling.run(registries, interval, stop.clone()));
        }
        let work = tokio::spawn(pool.run(stop.clone()));
        let failed = tokio::select! {
            signal = interrupted() => {
                tracing::info!(reason = %signal, "stopping");
                None
            }
            ended = servers.join_next() => ended,
        };
        stop.cancel();
        let worked = work.await?;
        // Clients that keep a connection open are not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while servers.join_next().await.is_some() {}
        })
        .await;
        tracing::info!("stopped");
        soci_telemetry::flush();
        match failed {
            Some(ended) => ended?.context("cannot serve"),
            None => Ok(worked?),
        }
    }
}

/// Looks for new images again and again.
struct Polling {
    client: Client,
    policy: PushPolicy,
    queue: Queue,
    pool: Arc<WorkerPool>,
}

impl Polling {
    async fn run(self, registries: Vec<String>, interval: Duration, stop: CancellationToken) {
        loop {
            for registry in &registries {
                match self.once(registry).await {
                    Ok(0) => {}
                    Ok(new) => tracing::info!(registry, new, "found new images"),
                    Err(error) => {
                        tracing::warn!(
                            registry,
                            error = crate::output::reason(&error),
                            "cannot poll"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn once(&self, registry: &str) -> anyhow::Result<usize> {
        let found = soci_index_builder::poll(&self.client, registry, &self.policy).await?;
        let queue = self.queue.clone();
        let added = soci_task::blocking(move || queue.add_seen(&found)).await?;
        self.pool.wake();
        Ok(added.len())
    }
}
