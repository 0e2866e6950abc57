//! One life of a server: bind, restore, run, drain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use soci_config::Config;
use soci_holder::Keeper;
use soci_store::{Owner, RootLock};

use super::grpc::GrpcServer;
use crate::control::{Predecessor, ServerEvent};
use crate::holder_setup::{self, Inherited};
use crate::listen::{self, Address, Listener, PassedSocket};
use crate::observe::{self, Observers, Sockets};
use crate::supervision::{Stop, Supervision, Trigger};
use crate::wiring::{self, Subsystems};
use crate::{credentials, preflight, root_lock};

/// How long calls in flight may take after a signal. systemd kills after 90 s by default.
const DRAIN: Duration = Duration::from_secs(10);
/// As [`DRAIN`], once no new calls are accepted and the next server waits for this one.
const GAP: Duration = Duration::from_millis(500);

/// What a server is started with.
pub(super) struct Setup {
    pub(super) config: Config,
    pub(super) address: Address,
    pub(super) root: PathBuf,
    pub(super) passed: Option<PassedSocket>,
}

/// How a life ends.
pub(super) enum Ended {
    /// For good.
    Stopped,
    /// Another server is about to take over.
    HandedOver,
}

/// A server that has the root folder, the holder and its sockets, and serves nothing.
pub(super) struct Bound {
    lock: RootLock,
    owner: Owner,
    listener: Listener,
    keeper: Option<Arc<Keeper>>,
    inherited: Inherited,
    sockets: Sockets,
}

/// A server that serves.
pub(super) struct Serving {
    lock: RootLock,
    owner: Owner,
    listener: Listener,
    keeper: Option<Arc<Keeper>>,
    subsystems: Subsystems,
    observers: Observers,
    grpc: GrpcServer,
}

impl Bound {
    /// Takes the root folder, what an earlier server left with the holder, and the sockets. Blocks: an
    /// earlier server may have to end first, and a holder to be started.
    pub(super) fn bind(
        setup: &Setup,
        predecessor: Predecessor,
        supervised: bool,
    ) -> anyhow::Result<Self> {
        let Setup { config, root, .. } = setup;
        let owner = root_lock::ourselves(supervised);
        let lock = root_lock::lock(root, owner)?;
        preflight::clear_away(root);
        let passed = setup.passed.as_ref().map(PassedSocket::try_clone);
        let mut inherited = holder_setup::open(root, config, predecessor)?;
        let socket = inherited.socket.take();
        let listener = listen::listen(&setup.address, passed.transpose()?, socket)?;
        let keeper = inherited.keeper.clone();
        if let Some(keeper) = &keeper {
            listener.hold(keeper).context("too many open files")?;
        }
        credentials::check(config, &listener.address)?;
        let sockets = observe::listen(config)?;
        Ok(Self {
            lock,
            owner,
            listener,
            keeper,
            inherited,
            sockets,
        })
    }

    /// Builds the subsystems, mounts the layers of earlier runs again, and starts to serve.
    pub(super) async fn restore(
        self,
        setup: &Setup,
        predecessor: Predecessor,
    ) -> anyhow::Result<Serving> {
        let subsystems = wiring::wire(&setup.root, &setup.config, self.inherited).await?;
        if predecessor == Predecessor::Serving {
            soci_faults::point("hand-over-taken-up");
        }
        let sources = observe::sources(&subsystems, &setup.root, self.owner);
        let observers = self.sockets.serve(&subsystems, &sources);
        let grpc = GrpcServer::start(&self.listener, &subsystems, sources).await?;
        Ok(Serving {
            lock: self.lock,
            owner: self.owner,
            listener: self.listener,
            keeper: self.keeper,
            subsystems,
            observers,
            grpc,
        })
    }
}

impl Serving {
    /// Serves until a signal or the supervisor ends that.
    ///
    /// # Errors
    /// If the gRPC server ends by itself.
    pub(super) async fn run(&mut self, supervision: &mut Supervision) -> anyhow::Result<Trigger> {
        supervision.notify(ServerEvent::Ready).await;
        tracing::info!(
            address = self.listener.address,
            "soci-snapshotter-grpc successfully started"
        );
        loop {
            let trigger = tokio::select! {
                trigger = supervision.next() => trigger,
                error = self.grpc.failure() => return Err(error),
            };
            if trigger != Trigger::Orphaned {
                return Ok(trigger);
            }
            tracing::error!("supervisor lost; start the daemon again to have one");
            self.lock.set_owner(Owner {
                supervisor: None,
                ..self.owner
            });
        }
    }

    /// Drains the calls in flight, and then stops everything else.
    pub(super) async fn drain(mut self, trigger: Trigger, supervision: &mut Supervision) -> Ended {
        if trigger != Trigger::HandOver {
            supervision.notify(ServerEvent::Stopping).await;
        }
        self.observers.close().await;
        let calls = async {
            let mut limit = DRAIN;
            if trigger == Trigger::HandOver {
                // A pull may take minutes. Until it is cut off, other calls are answered here: a client
                // waits for the next server's first answer for a second at most.
                let _ = tokio::time::timeout(DRAIN, self.grpc.idle()).await;
                limit = GAP;
            }
            tokio::time::timeout(limit, self.grpc.drain()).await
        };
        let drained = tokio::select! {
            drained = calls => Some(drained),
            () = supervision.hurry() => None,
        };
        match drained {
            Some(Ok(())) => {}
            Some(Err(_)) => {
                tracing::warn!(
                    "cutting off calls that did not end within {} s",
                    DRAIN.as_secs()
                );
            }
            None => tracing::warn!("second signal; cutting off calls in flight"),
        }
        self.grpc.abort();
        let stop = match trigger {
            Trigger::Stop(stop) => stop,
            Trigger::HandOver | Trigger::Orphaned => Stop::LeaveMounts,
        };
        if trigger == Trigger::HandOver {
            self.subsystems.close(stop).await;
            self.listener.leave();
            if let Some(keeper) = self.keeper {
                keeper.leave().await;
            }
            return Ended::HandedOver;
        }
        close(self.subsystems, self.listener, self.keeper, stop).await;
        tracing::info!("exiting");
        Ended::Stopped
    }

    /// Ends without draining, after [`Serving::run`] failed.
    pub(super) async fn abort(self) {
        close(
            self.subsystems,
            self.listener,
            self.keeper,
            Stop::LeaveMounts,
        )
        .await;
    }
}

/// Ends everything. Mounts and socket are left to the next start if there are mounts and they are to stay.
async fn close(
    subsystems: Subsystems,
    listener: Listener,
    keeper: Option<Arc<Keeper>>,
    stop: Stop,
) {
    let mounts = subsystems.close(stop).await;
    match keeper {
        Some(keeper) if stop == Stop::LeaveMounts && mounts > 0 => {
            tracing::info!(
                mounts,
                "leaving the mounts with the holder; requests wait for the next start"
            );
            keeper.leave().await;
            listener.leave();
        }
        Some(keeper) => keeper.quit().await,
        None => {}
    }
}
