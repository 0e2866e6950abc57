//! The server process: started, perhaps checked beforehand, then one life after another until it stops.

mod grpc;
mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit};
use soci_config::Config;

use crate::args::{Args, REVISION, VERSION};
use crate::control::{Predecessor, ServerEvent};
use crate::listen::{Address, PassedSocket};
use crate::memory;
use crate::own_process;
use crate::preflight;
use crate::supervision::Supervision;
use server::{Bound, Ended, Setup};

/// How long blocking work may continue after the end.
const LAST: Duration = Duration::from_secs(2);

/// Serves until a signal, or the supervisor, ends it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    own_process::of_server();
    let predecessor = Predecessor::from_environment();
    // The supervisor starts us under a name of its own.
    let name = std::ffi::CString::new("soci-snapshotte").unwrap_or_default();
    let _ = rustix::thread::set_name(&name);
    tracing::info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let setup = Setup {
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
    runtime.spawn(memory::return_freed());
    let ended = runtime.block_on(Box::pin(serve(Arc::new(setup), predecessor)));
    runtime.shutdown_timeout(LAST);
    ended
}

async fn serve(setup: Arc<Setup>, predecessor: Option<Predecessor>) -> anyhow::Result<()> {
    let mut supervision = Supervision::new(predecessor).context("cannot watch for signals")?;
    check_fuse(&setup.config)?;
    let mut predecessor = predecessor.unwrap_or(Predecessor::Unknown);
    if predecessor == Predecessor::Serving {
        let checked = setup.clone();
        soci_task::run(move || preflight::check(&checked.root, &checked.config))
            .await
            .context("the check before a hand-over panicked")??;
        supervision.notify(ServerEvent::Checked).await;
        if !supervision.may_serve(false).await {
            return Ok(());
        }
    }
    loop {
        match Box::pin(live(&setup, predecessor, &mut supervision)).await? {
            Ended::Stopped => return Ok(()),
            Ended::HandedOver => {
                supervision.notify(ServerEvent::HandedOver).await;
                if !supervision.may_serve(true).await {
                    tracing::info!("exiting after the hand-over");
                    return Ok(());
                }
                tracing::warn!("hand-over failed; serving again");
                // The new server may have died of what it adopted. If it never adopted anything, the
                // journal says that we left on purpose.
                predecessor = Predecessor::Killed;
            }
        }
    }
}

async fn live(
    setup: &Arc<Setup>,
    predecessor: Predecessor,
    supervision: &mut Supervision,
) -> anyhow::Result<Ended> {
    let (bound, supervised) = (setup.clone(), supervision.is_supervised());
    let start = async {
        let bind = move || Bound::bind(&bound, predecessor, supervised);
        let bound = soci_task::run(bind)
            .await
            .context("taking the root folder panicked")??;
        bound.restore(setup, predecessor).await
    };
    let mut serving = supervision.while_starting(start).await?;
    match serving.run(supervision).await {
        Ok(trigger) => Ok(serving.drain(trigger, supervision).await),
        Err(error) => {
            serving.abort().await;
            Err(error)
        }
    }
}

/// Reads the configuration, and logs what of it has no effect.
fn load(path: &Path) -> anyhow::Result<Config> {
    let loaded = Config::load(path)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for key in loaded.config.not_yet_supported() {
        tracing::warn!(
            key,
            "this key is accepted, but not supported in this version yet"
        );
    }
    for key in loaded.config.without_effect() {
        tracing::info!(
            key,
            "this key has no effect: it tunes a part of soci-snapshotter v0.15 that does not exist here"
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
            tracing::warn!(error = %e, "cannot open /dev/fuse; continuing because skip_check_snapshotter_supported is set");
            Ok(())
        }
        Err(e) => Err(e).context(
            "cannot open /dev/fuse: run as root, load the kernel module (modprobe fuse), \
             and in a container pass the device in",
        ),
    }
}
