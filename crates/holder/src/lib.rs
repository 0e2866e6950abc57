//! A small process that keeps descriptors alive while their server is replaced.
//!
//! The server of a FUSE connection may be killed, crash or be upgraded at any time. As long as some process
//! has the connection's descriptor open, requests wait instead of failing, and the next server can resume
//! it. The holder ([`run`]) is that process: it keeps descriptors with a note for each, hands out copies,
//! and interprets neither. A server uses it through a [`Keeper`].
//!
//! The holder does as little as possible, so that it never has to be replaced.

#![forbid(unsafe_code)]

mod client;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod holder_process;
mod keeper;
mod process;
mod protocol;
mod socket;
mod spawn;

pub use client::{HeldFd, HolderClient, HolderInfo};
pub use error::HolderError;
pub use keeper::{BackupStore, Keeper, KeeperConfig};
pub use process::{ABANDONED_FILE, Abandoned, run};
pub use spawn::{PROCESS_NAME, become_holder, root_of_holder};

/// Prefix of the keys of connections: their descriptors are closed when connections are abandoned.
pub const CONNECTION_PREFIX: &str = "fuse/";
