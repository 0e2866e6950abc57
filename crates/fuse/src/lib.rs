//! The FUSE kernel protocol for read-only file systems.
//!
//! A codec without I/O ([`Request`], [`Entry`], [`DirBuffer`]…), the session that mounts and
//! negotiates ([`mount`]), and a [`Pool`] whose few threads serve all mounts. Serving a connection takes
//! its descriptor and its [`ConnectionFacts`] and nothing else, so that another process can resume it.

#![deny(unsafe_code)]

mod abi;
mod answer;
mod connection;
mod error;
mod file_system;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod init;
mod interrupts;
mod journal;
mod mount;
mod pool;
mod reply;
mod request;
mod session;
mod shared_memory;
mod stale_mounts;
mod waiting;
mod worker;

pub use abi::{ROOT_ID, UNIQUE_RESEND, init_flags, open_flags};
pub use answer::{Attr, DirBuffer, Entry, StatFs, encode_device};
pub use connection::{Connection, ConnectionFacts, ContentIdentity};
pub use error::FuseError;
pub use file_system::FileSystem;
pub use init::{Negotiated, SessionLimits};
pub use journal::{ExitKind, Journal};
pub use mount::{
    MountOptions, as_in_mountinfo, is_mount_point, is_mounted, mount, set_readahead, unmount,
};
pub use pool::{Pool, Served, WeakServed};
pub use reply::{Reply, ReplySink};
pub use request::{KernelOffer, Operation, ParseError, Request};
pub use rustix::io::Errno;
pub use stale_mounts::{StaleMount, stale_mounts_below};
