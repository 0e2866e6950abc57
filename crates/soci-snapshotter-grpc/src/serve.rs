//! A server's life: start, serve, drain, end; or hand over, and perhaps go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit};
use soci_config::Config;
use soci_holder::Keeper;
use soci_store::Owner;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tower::Layer as _;

use crate::args::{Args, REVISION, VERSION};
use crate::calls::Calls;
use crate::control::{Predecessor, Tell};
use crate::listen::{self, Address, Listener, PassedSocket};
use crate::signals::{Event, Outside, Stop};
use crate::wiring::{self, Running};
use crate::{credentials, holding, observe, proving, root, vault};

/// How long calls that run may go on after a signal. systemd kills after 90 s by default.
const DRAIN: Duration = Duration::from_secs(10);
/// How long blocking work may go on after that.
const LAST: Duration = Duration::from_secs(2);
/// containerd's own limit of a message; tonic's default is lower.
const MAX_MESSAGE: usize = 16 << 20;

/// What a server is started with.
struct Start {
    config: Config,
    address: Address,
    root: PathBuf,
    passed: Option<PassedSocket>,
}

/// How a life ends.
enum Ended {
    /// For good.
    Stopped,
    /// Another server is about to take over.
    HandedOver,
}

/// Serves until a signal, or the supervisor, ends it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let predecessor = Predecessor::from_environment();
    // The supervisor starts us under a name of its own.
    let name = std::ffi::CString::new("soci-snapshotte").unwrap_or_default();
    let _ = rustix::thread::set_name(&name);
    tracing::info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let start = Start {
        config: load(&args.config)?,
        address: Address::parse(&args.address)?,
        root: std::path::absolute(&args.root).context("--root is not a path")?,
        passed: PassedSocket::from_supervisor()?,
    };
    raise_file_limit();
    // Fails only if a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("soci")
        .build()
        .context("cannot start the worker threads")?;
    let ended = runtime.block_on(Box::pin(serve(&start, predecessor)));
    runtime.shutdown_timeout(LAST);
    ended
}

async fn serve(start: &Start, predecessor: Option<Predecessor>) -> anyhow::Result<()> {
    let mut outside = Outside::new(predecessor).context("cannot watch for signals")?;
    check_fuse(&start.config)?;
    let mut predecessor = predecessor.unwrap_or(Predecessor::Unknown);
    if predecessor == Predecessor::Serving {
        let (root, config) = (start.root.clone(), start.config.clone());
        tokio::task::spawn_blocking(move || proving::prove(&root, &config))
            .await
            .context("proving panicked")??;
        outside.tell(Tell::Proved).await;
        if !outside.may_serve(false).await {
            return Ok(());
        }
    }
    loop {
        match Box::pin(live(start, predecessor, &mut outside)).await? {
            Ended::Stopped => return Ok(()),
            Ended::HandedOver => {
                outside.tell(Tell::HandedOver).await;
                if !outside.may_serve(true).await {
                    tracing::info!("exiting after the hand-over");
                    return Ok(());
                }
                tracing::warn!("the hand-over failed: serving again");
                // The other one may have died of what it took up. If it never took anything up, the
                // journal says that we left on purpose.
                predecessor = Predecessor::Killed;
            }
        }
    }
}

async fn live(
    start: &Start,
    predecessor: Predecessor,
    outside: &mut Outside,
) -> anyhow::Result<Ended> {
    let Start {
        config,
        address,
        root,
        ..
    } = start;
    let owner = root::ourselves(outside.is_supervised());
    let lock = root::lock(root, owner)?;
    proving::clear_away(root);
    let passed = start
        .passed
        .as_ref()
        .map(PassedSocket::try_clone)
        .transpose()?;
    let holding = holding::open(root, config, predecessor)?;
    let keeper = holding.keeper.clone();
    let listener = listen::listen(address, passed, holding.socket)?;
    if let Some(keeper) = &keeper {
        listener.hold(keeper).context("too many open files")?;
    }
    let left = wiring::Left {
        keeper: holding.keeper,
        journal: holding.journal,
        credentials: holding.credentials.and_then(vault::secrets),
        connections: holding.connections,
    };
    credentials::check(config, &listener.address)?;
    let sockets = observe::listen(config)?;
    let running = wiring::wire(root, config, left).await?;
    if predecessor == Predecessor::Serving {
        soci_faults::point("hand-over-taken-up");
    }
    let sources = observe::sources(&running, root, owner);
    let observers = sockets.serve(&running, &sources);

    let (health, health_service) = tonic_health::server::health_reporter();
    let snapshots = soci_snapshotter::service(running.snapshotter.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let image_service = running.image_service.clone();
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
        .add_optional_service(image_service.map(|proxy| calls.layer(proxy)))
        .add_service(calls.layer(sources.service()))
        .serve_with_incoming_shutdown(incoming, async {
            // An error means that the sender is gone, which ends the server as well.
            let _ = drained.await;
        });
    let mut server = tokio::spawn(server);

    outside.tell(Tell::Ready).await;
    tracing::info!(
        address = listener.address,
        "soci-snapshotter-grpc successfully started"
    );

    let event = loop {
        let event = tokio::select! {
            event = outside.next() => event,
            ended = &mut server => {
                let ended = ended.context("the gRPC server panicked")?.context("the gRPC server failed");
                close(running, listener, keeper, Stop::LeaveMounts).await;
                return ended.and_then(|()| anyhow::bail!("the gRPC server ended by itself"));
            }
        };
        if event != Event::Orphaned {
            break event;
        }
        tracing::error!(
            "the supervisor is gone: serving on without; start the daemon again to have one"
        );
        lock.set_owner(Owner {
            supervisor: None,
            ..owner
        });
    };
    let stop = match event {
        Event::Stop(stop) => stop,
        Event::HandOver | Event::Orphaned => Stop::LeaveMounts,
    };
    if event != Event::HandOver {
        outside.tell(Tell::Stopping).await;
    }
    observers.close().await;
    let _ = drain.send(());
    tokio::select! {
        _ = &mut server => {}
        () = calls.answered() => {}
        () = tokio::time::sleep(DRAIN) => tracing::warn!("some calls did not end in time: they are cut off"),
        () = outside.hurry() => tracing::warn!("second signal: calls that run are cut off"),
    }
    server.abort();
    if event == Event::HandOver {
        running.close(stop).await;
        listener.leave();
        if let Some(keeper) = keeper {
            keeper.leave().await;
        }
        return Ok(Ended::HandedOver);
    }
    close(running, listener, keeper, stop).await;
    tracing::info!("exiting");
    Ok(Ended::Stopped)
}

/// Ends everything. Mounts and socket are left to the next start if there are mounts and they are to stay.
async fn close(running: Running, listener: Listener, keeper: Option<Arc<Keeper>>, stop: Stop) {
    let mounts = running.close(stop).await;
    match keeper {
        Some(keeper) if stop == Stop::LeaveMounts && mounts > 0 => {
            tracing::info!(
                mounts,
                "the mounts stay with the holder; what needs the daemon waits for the next start"
            );
            keeper.leave().await;
            listener.leave();
        }
        Some(keeper) => keeper.quit().await,
        None => {}
    }
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
