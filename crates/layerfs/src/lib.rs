//! The read-only file tree of one layer, and its FUSE adapter.
//!
//! [`Tree`] holds the layer's files as containerd would unpack them, built from the zTOC alone.
//! [`LayerFs`] answers requests from a tree and a [`soci_fetch::LayerData`], with or without FUSE.
//! [`mount_layer`] mounts it.

#![forbid(unsafe_code)]

mod build;
mod counters;
mod elf;
mod file_watch;
mod first_read;
mod flatten;
mod header_check;
mod implied;
mod inode;
mod layer_fs;
mod lower;
mod mount;
mod name_table;
mod nodes;
mod operation_log;
mod options;
mod own_reads;
mod read_failures;
mod resolve;
mod state_file;
mod tar_path;
mod timers;
mod tree;
mod tree_view;
mod xattr_sets;

pub use counters::{CounterSnapshot, Counters};
pub use elf::{ElfFindings, ElfWalk};
pub use file_watch::{FileWatch, FileWatcher};
pub use implied::{ImpliedDirectories, ImpliedError};
pub use layer_fs::{CacheTimes, LayerFs};
pub use mount::{
    AdoptError, LayerMountOptions, MountError, MountedLayer, READAHEAD_KIB, WeakMountedLayer,
    adopt_layer, content_identity, mount_layer,
};
pub use options::{CancelOnDrop, Cancelled, TreeError, TreeOptions};
pub use own_reads::{OwnReader, OwnReads};
pub use resolve::ResolveError;
pub use state_file::STATE_DIRECTORY;
pub use timers::{Timer, Timers};
pub use tree::{DirEntry, NUMBERING_VERSION, Tree};
pub use tree_view::TreeView;
