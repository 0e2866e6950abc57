//! Where the snapshotter daemon listens.

use std::path::{Path, PathBuf};

use clap::Args;

/// The flag for the daemon's socket.
#[derive(Debug, Args)]
pub(crate) struct SnapshotterArgs {
    /// The socket of the snapshotter daemon
    #[arg(
        long,
        value_name = "PATH",
        env = "SOCI_SNAPSHOTTER_ADDRESS",
        hide_env_values = true,
        default_value = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
    )]
    snapshotter_address: PathBuf,
}

impl SnapshotterArgs {
    /// The path of the socket.
    pub(crate) fn socket(&self) -> &Path {
        let address = &self.snapshotter_address;
        address.strip_prefix("unix://").unwrap_or(address)
    }
}
