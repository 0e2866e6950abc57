//! The gRPC server on the daemon's socket: the Snapshots API, health, CRI's image service and
//! `soci status`.

use anyhow::Context as _;
use soci_status::Sources;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tower::Layer as _;

use crate::in_flight_calls::InFlightCalls;
use crate::listen::Listener;
use crate::wiring::Subsystems;

/// containerd's own limit of a message; tonic's default is lower.
const MAX_MESSAGE: usize = 16 << 20;

/// The names under which the health service answers.
const HEALTHY: [&str; 2] = ["", "containerd.services.snapshots.v1.Snapshots"];

/// The running gRPC server.
pub(super) struct GrpcServer {
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    /// Sent to, or dropped: no new calls are accepted.
    drain: Option<oneshot::Sender<()>>,
    calls: InFlightCalls,
}

impl GrpcServer {
    /// Starts to serve on the daemon's socket.
    pub(super) async fn start(
        listener: &Listener,
        subsystems: &Subsystems,
        sources: Sources,
    ) -> anyhow::Result<Self> {
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in HEALTHY {
            let serving = tonic_health::ServingStatus::Serving;
            health.set_service_status(name, serving).await;
        }
        let snapshots = soci_snapshotter::service(subsystems.snapshotter.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let image_service = subsystems.image_service.clone();
        let socket = listener
            .socket
            .try_clone()
            .and_then(tokio::net::UnixListener::from_std);
        let incoming = UnixListenerStream::new(socket.context("cannot serve on the socket")?);
        let (drain, drained) = oneshot::channel::<()>();
        let calls = InFlightCalls::default();
        let server = Server::builder()
            .add_service(health_service)
            .add_service(calls.layer(snapshots))
            .add_optional_service(image_service.map(|proxy| calls.layer(proxy)))
            .add_service(calls.layer(sources.service()))
            .serve_with_incoming_shutdown(incoming, async {
                // An error means that the sender is gone, which ends the server as well.
                let _ = drained.await;
            });
        Ok(Self {
            task: tokio::spawn(server),
            drain: Some(drain),
            calls,
        })
    }

    /// Returns when the server ends by itself, which it should not. Can be cancelled and called again.
    pub(super) async fn failure(&mut self) -> anyhow::Error {
        let ended = (&mut self.task).await;
        match ended.context("the gRPC server panicked") {
            Ok(Ok(())) => anyhow::anyhow!("the gRPC server ended by itself"),
            Ok(Err(error)) => anyhow::Error::from(error).context("the gRPC server failed"),
            Err(panic) => panic,
        }
    }

    /// Returns when no call is in flight. New calls are accepted. Can be cancelled.
    pub(super) async fn idle(&self) {
        self.calls.answered().await;
    }

    /// Accepts no new calls, and returns when those in flight are answered. Can be cancelled: those that
    /// remain are cut off by [`GrpcServer::abort`].
    pub(super) async fn drain(&mut self) {
        if let Some(drain) = self.drain.take() {
            let _ = drain.send(());
        }
        tokio::select! {
            _ = &mut self.task => {}
            () = self.calls.answered() => {}
        }
    }

    /// Ends the server.
    pub(super) fn abort(self) {
        self.task.abort();
    }
}
