//! Processes that a test starts, and the certainty that nothing of them stays.

mod daemon;
mod mounts;
mod root;
mod spawner;
mod table;

pub use daemon::{Daemon, LogLines};
pub use mounts::{mounts_below, unmount_below};
pub use root::TestRoot;
pub use table::{kill_below, processes_below};
