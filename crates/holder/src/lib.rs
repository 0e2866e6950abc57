//! A small process that keeps descriptors alive while their server is replaced.
//!
//! The server of a FUSE connection may be killed, crash or be upgraded at any time. As long as somebody has
//! the connection's descriptor open, requests wait instead of failing, and another server can go on
//! where it ended. The [`run`] of this crate is that somebody: it keeps descriptors with a note for each,
//! hands out copies, and understands neither. A server talks to it through a [`Keeper`].
//!
//! The holder does as little as possible, so that there is no reason to ever replace it.

#![forbid(unsafe_code)]

mod client;
mod error;
mod keeper;
mod process;
mod protocol;
mod socket;
mod spawn;

pub use client::{Client, HeldFd, HolderInfo};
pub use error::HolderError;
pub use keeper::{BackupStore, Keeper, KeeperConfig};
pub use process::{ABANDONED_FILE, Abandoned, run};
pub use spawn::{PROCESS_NAME, become_holder, root_of_holder};

/// Keys of descriptors that are closed when the connections are abandoned begin with this.
pub const CONNECTION_PREFIX: &str = "fuse/";
