//! Counts of operations, failures and bytes served.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counts since the mount was made.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(crate) $name: AtomicU64,)+
        }

        /// The counts of one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct CounterSnapshot {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// The counts now.
            #[must_use]
            pub fn snapshot(&self) -> CounterSnapshot {
                CounterSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// LOOKUP requests.
    lookup,
    /// GETATTR requests for nodes that are neither regular files nor whiteouts.
    node_getattr,
    /// GETATTR requests for regular files.
    file_getattr,
    /// GETATTR requests for whiteouts.
    whiteout_getattr,
    /// OPEN and OPENDIR requests.
    open,
    /// READDIR and READDIRPLUS requests.
    readdir,
    /// READLINK requests.
    readlink,
    /// GETXATTR requests.
    getxattr,
    /// LISTXATTR requests.
    listxattr,
    /// READ requests.
    read,
    /// READ requests that waited for data.
    read_waited,
    /// Bytes of content answered.
    bytes_served,
    /// LOOKUPs of unknown nodes (not: of names that do not exist).
    lookup_failures,
    /// GETATTRs of unknown nodes.
    getattr_failures,
    /// READDIRs of nodes that are not directories.
    readdir_failures,
    /// READs answered with an error.
    read_failures,
    /// READLINKs of nodes that are not links, and failed STATFSs.
    other_failures,
    /// Unsupported requests; the kernel probes for support.
    unknown_operations,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
