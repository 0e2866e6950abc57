//! The errors of mounting and serving.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// Why a file system cannot be mounted, served or unmounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// /dev/fuse cannot be opened.
    #[error("cannot open /dev/fuse: {0}; is the kernel's fuse module loaded?")]
    Device(#[source] Errno),
    /// mount(2) failed.
    #[error("cannot mount on {mountpoint:?}: {source}")]
    Mount {
        /// The mount point.
        mountpoint: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// umount2(2) failed.
    #[error("cannot unmount {mountpoint:?}: {source}")]
    Unmount {
        /// The mount point.
        mountpoint: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// Reading or writing /dev/fuse failed during INIT.
    #[error("cannot begin the FUSE session of {mountpoint:?}: {source}")]
    Session {
        /// The mount point.
        mountpoint: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// The kernel sent no INIT.
    #[error("the kernel did not begin the FUSE session of {mountpoint:?} within {waited:?}")]
    NoInit {
        /// The mount point.
        mountpoint: PathBuf,
        /// The limit of the wait.
        waited: Duration,
    },
    /// The kernel's protocol version is not supported.
    #[error("the kernel speaks FUSE {major}.{minor}; 7.23 (Linux 3.15) or a later 7.x is needed")]
    Version {
        /// Major part.
        major: u32,
        /// Minor part.
        minor: u32,
    },
    /// No thread, no epoll, no eventfd.
    #[error("cannot start the FUSE worker pool: {0}")]
    Pool(#[source] std::io::Error),
    /// The journal of requests in flight cannot be created or adopted.
    #[error("cannot use the journal of FUSE requests: {0}")]
    Journal(#[source] std::io::Error),
    /// The connection's descriptor cannot be watched.
    #[error("cannot serve {mountpoint:?}: {source}")]
    Serve {
        /// The mount point.
        mountpoint: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
}
