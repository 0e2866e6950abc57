//! A snapshotter on a temporary directory, served on a unix socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{UnmountFlags, unmount};
use soci_layer::MountedInfo;
use soci_snapshotter::api::v1::snapshots_client::SnapshotsClient;
use soci_snapshotter::{MetadataError, Snapshotter, SnapshotterConfig, SnapshotterError, service};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::double::{Behaviour, Layers};

/// A root directory and a provider, which outlive the daemons that are started on them.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
    pub(crate) layers: Arc<Layers>,
}

/// Makes `levels` folders, each in the one before, more than any path reaches.
pub(crate) fn nest(top: &Path, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) client: SnapshotsClient<Channel>,
    pub(crate) snapshotter: Arc<Snapshotter>,
    server: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            layers: Arc::default(),
        }
    }

    /// As [`Machine::new`], for trees of so many folders that a disk takes minutes to make them.
    pub(crate) fn in_memory() -> Self {
        Self {
            directory: tempfile::tempdir_in("/dev/shm").unwrap(),
            layers: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root().join("snapshots")
    }

    /// Creates a directory to mount on or for a layer.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Adds a layer that can be mounted lazily, with one file of its own name.
    pub(crate) fn lazy_layer(&self, layer: &str) -> PathBuf {
        let folder = self.folder(&format!("layer-{layer}"));
        fs::write(folder.join(layer), layer).unwrap();
        let behaviour = Behaviour::Lazy(folder.clone(), MountedInfo::default());
        self.layers.set(layer, behaviour);
        folder
    }

    pub(crate) async fn open(&self, require_all: bool) -> Result<Snapshotter, SnapshotterError> {
        self.open_within(require_all, Duration::from_secs(60)).await
    }

    /// Opens it; waits for lazy layers for at most `patience`.
    pub(crate) async fn open_within(
        &self,
        require_all: bool,
        restore_patience: Duration,
    ) -> Result<Snapshotter, SnapshotterError> {
        let config = SnapshotterConfig {
            root: self.root(),
            require_all_mounts: require_all,
            restore_patience,
            userxattr: false,
        };
        // The database of a daemon that was dropped is closed a moment later.
        for _ in 0..6000 {
            match Snapshotter::open(config.clone(), self.layers.clone()).await {
                Err(SnapshotterError::Metadata(MetadataError::Database { source, .. }))
                    if source.to_string().contains("already open") =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => return opened,
            }
        }
        panic!("the database stays open");
    }

    pub(crate) async fn start(&self) -> Daemon {
        self.start_with(true).await
    }

    pub(crate) async fn start_with(&self, require_all: bool) -> Daemon {
        let snapshotter = self.open(require_all).await.unwrap();
        self.serve(snapshotter).await
    }

    pub(crate) async fn serve(&self, snapshotter: Snapshotter) -> Daemon {
        let snapshotter = Arc::new(snapshotter);
        let socket = self.path("socket");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Server::builder().add_service(service(snapshotter.clone()));
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            router
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped)
                .await
                .unwrap();
        });
        let channel = Endpoint::from_static("http://socket")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        Daemon {
            client: SnapshotsClient::new(channel),
            snapshotter,
            server,
            stop,
        }
    }

    /// Lists the names in `snapshots/`.
    pub(crate) fn directories(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.snapshots())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Lists mount points below the temporary directory, deepest last.
    pub(crate) fn mounted(&self) -> Vec<PathBuf> {
        let real = fs::canonicalize(self.directory.path()).unwrap();
        let table = soci_mountinfo::Table::read().unwrap();
        let below = table.under(&real);
        below.map(|mount| mount.point.into_owned()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for path in self.mounted().iter().rev() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

impl Daemon {
    /// Stops the daemon as SIGTERM (mounts stay) or SIGINT does.
    pub(crate) async fn stop(self, unmount_all: bool) {
        self.snapshotter.close(unmount_all).await;
        self.kill().await;
    }

    /// Ends the daemon as a crash does: the snapshotter is not closed.
    pub(crate) async fn kill(self) {
        drop(self.client);
        let _ = self.stop.send(());
        self.server.await.unwrap();
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
