//! Where everything is on a node.

use std::path::PathBuf;

/// Paths of a node, and names of its units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Folder that every path of the node is below: `/`, except in tests.
    pub root: PathBuf,
    /// Folder of the two programs.
    pub programs: PathBuf,
    /// Folder of systemd's units.
    pub units: PathBuf,
    /// The daemon's configuration file.
    pub daemon_config: PathBuf,
    /// The daemon's root folder.
    pub daemon_root: PathBuf,
    /// containerd's configuration file.
    pub containerd_config: PathBuf,
    /// containerd's program, looked for in `PATH` if it has no slash.
    pub containerd: String,
    /// containerd's unit.
    pub containerd_unit: String,
    /// containerd's socket.
    pub containerd_socket: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            root: "/".into(),
            programs: "/usr/local/bin".into(),
            units: "/etc/systemd/system".into(),
            daemon_config: "/etc/soci-snapshotter-grpc/config.toml".into(),
            daemon_root: "/var/lib/soci-snapshotter-grpc".into(),
            containerd_config: "/etc/containerd/config.toml".into(),
            containerd: "containerd".into(),
            containerd_unit: "containerd.service".into(),
            containerd_socket: "/run/containerd/containerd.sock".into(),
        }
    }
}

/// The daemon's socket, which its socket unit fixes.
pub(crate) const DAEMON_SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
/// The daemon's units.
pub(crate) const SERVICE: &str = "soci-snapshotter.service";
/// The unit of the daemon's socket.
pub(crate) const SOCKET: &str = "soci-snapshotter.socket";
/// The programs.
pub(crate) const PROGRAMS: [&str; 2] = ["soci", "soci-snapshotter-grpc"];
