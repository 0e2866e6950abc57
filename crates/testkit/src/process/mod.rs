//! Processes that a test starts, and the certainty that nothing of them stays.

mod daemon;
mod mounts;
mod root;
mod spawner;
mod table;

pub(crate) use daemon::status_bytes;
pub use daemon::{Daemon, LogLines};
pub(crate) use mounts::unmount_below;
pub use mounts::{lazy_connections_below, lazy_mounts_below, mounts_below, unanswered_requests};
pub use root::{TestRoot, clean_up_at_signals};
pub use rustix::process::Signal;
pub use table::processes_below;
pub(crate) use table::{kill_below, remove_control_groups};
