//! What can go wrong with a mount.

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
        /// Where.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// umount2(2) failed.
    #[error("cannot unmount {mountpoint:?}: {source}")]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Reading or writing /dev/fuse failed while the session began.
    #[error("beginning the FUSE session of {mountpoint:?} failed: {source}")]
    Session {
        /// Which mount.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel sent nothing, or something else than INIT.
    #[error("the kernel did not begin the FUSE session of {mountpoint:?} within {waited:?}")]
    NoInit {
        /// Which mount.
        mountpoint: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A protocol too old or too new.
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
    /// The record of requests in flight cannot be made or taken over.
    #[error("the journal of FUSE requests cannot be used: {0}")]
    Journal(#[source] std::io::Error),
    /// The descriptor cannot be watched.
    #[error("cannot serve {mountpoint:?}: {source}")]
    Serve {
        /// Which mount.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
}
