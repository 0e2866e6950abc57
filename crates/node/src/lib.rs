//! Installing the snapshotter on a node: programs, systemd units, containerd's configuration, and the
//! way back.
//!
//! [`install`] and [`uninstall`] change a node as one transaction: what fails is rolled back, and a second
//! run changes nothing. [`config`] knows containerd's configuration files and does no I/O.

#![forbid(unsafe_code)]

mod account;
pub mod config;
mod error;
mod host;
mod images;
mod install;
mod journal;
mod layout;
mod payload;
mod service;
mod status;
mod uninstall;

pub use account::ServiceAccount;
pub use error::NodeError;
pub use host::{Command, Host, ThisHost, enter_host};
pub use install::{Installed, install};
pub use journal::STATE_FOLDER;
pub use layout::Layout;
pub use payload::Payload;
pub use status::{Status, status};
pub use uninstall::{HandedBack, uninstall};
