//! The daemon's life: start, serve, drain, end.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use config::Config;
use rustix::process::{Resource, Rlimit};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tower::Layer as _;

use crate::args::{Args, REVISION, VERSION};
use crate::calls::Calls;
use crate::listen::{self, Address, PassedSockets};
use crate::observe;
use crate::signals::{Signals, Stop};
use crate::wiring;

/// How long calls that run may go on after a signal. systemd kills after 90 s by default.
const DRAIN: Duration = Duration::from_secs(10);
/// How long blocking work may go on after that.
const LAST: Duration = Duration::from_secs(2);
/// containerd's own limit of a message; tonic's default is lower.
const MAX_MESSAGE: usize = 16 << 20;

/// Runs the daemon until a signal ends it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let passed = PassedSockets::take();
    tracing::info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let config = load(&args.config)?;
    let address = Address::parse(&args.address)?;
    raise_file_limit();
    // Fails only if a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("soci")
        .build()
        .context("cannot start the worker threads")?;
    let ended = runtime.block_on(Box::pin(serve(args, &config, &address, passed)));
    runtime.shutdown_timeout(LAST);
    ended
}

async fn serve(
    args: &Args,
    config: &Config,
    address: &Address,
    passed: PassedSockets,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot watch for signals")?;
    check_fuse(config)?;
    let root = std::path::absolute(&args.root).context("--root is not a path")?;
    let _lock = wiring::lock_root(&root)?;
    let listener = listen::listen(address, passed)?;
    let sockets = observe::listen(config)?;
    let running = wiring::wire(&root, config).await?;
    let sources = observe::sources(&running, &root);
    let observers = sockets.serve(&running, &sources);

    let (health, health_service) = tonic_health::server::health_reporter();
    let snapshots = snapshotter::service(running.snapshotter.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    health
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    health
        .set_service_status(
            "containerd.services.snapshots.v1.Snapshots",
            tonic_health::ServingStatus::Serving,
        )
        .await;

    let socket = listener
        .socket
        .try_clone()
        .and_then(tokio::net::UnixListener::from_std);
    let incoming = UnixListenerStream::new(socket.context("cannot serve on the socket")?);
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let calls = Calls::default();
    let server = Server::builder()
        .add_service(health_service)
        .add_service(calls.layer(snapshots))
        .add_service(calls.layer(sources.service()))
        .serve_with_incoming_shutdown(incoming, async {
            // An error means that the sender is gone, which ends the server as well.
            let _ = drained.await;
        });
    let mut server = tokio::spawn(server);

    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(
        address = listener.address,
        "soci-snapshotter-grpc successfully started"
    );

    let stop = tokio::select! {
        stop = signals.next() => stop,
        ended = &mut server => {
            let ended = ended.context("the gRPC server panicked")?.context("the gRPC server failed");
            running.close(Stop::LeaveMounts).await;
            return ended.and_then(|()| anyhow::bail!("the gRPC server ended by itself"));
        }
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    observers.close().await;
    let _ = drain.send(());
    tokio::select! {
        _ = &mut server => {}
        () = calls.answered() => {}
        () = tokio::time::sleep(DRAIN) => tracing::warn!("some calls did not end in time: they are cut off"),
        _ = signals.next() => tracing::warn!("second signal: calls that run are cut off"),
    }
    server.abort();
    running.close(stop).await;
    drop(listener);
    tracing::info!("exiting");
    Ok(())
}

/// Reads the configuration and says once what will not be as it was asked for.
fn load(path: &Path) -> anyhow::Result<Config> {
    let loaded = Config::load(path)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for key in loaded.config.not_yet_supported() {
        tracing::warn!(
            key,
            "this key is accepted, but what it asks for is not in this version yet"
        );
    }
    for key in loaded.config.without_effect() {
        tracing::info!(
            key,
            "this key tunes a part of soci-snapshotter v0.15 that does not exist here: it has no effect"
        );
    }
    Ok(loaded.config)
}

/// Every lazy layer holds files open; the usual soft limit of 1,024 is meant for `select(2)`,
/// which we do not use.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(error = %e, "cannot raise the limit of open files");
    }
}

fn check_fuse(config: &Config) -> anyhow::Result<()> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    match opened {
        Ok(_) => Ok(()),
        Err(e) if config.skip_check_snapshotter_supported => {
            tracing::warn!(error = %e, "/dev/fuse cannot be opened; going on, because skip_check_snapshotter_supported is set");
            Ok(())
        }
        Err(e) => Err(e).context(
            "cannot open /dev/fuse: run as root, load the kernel module (modprobe fuse), \
             and in a container pass the device in",
        ),
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!(error = %e, "cannot notify systemd");
    }
}
