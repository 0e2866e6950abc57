//! How often each operation was asked for and failed, and how many bytes were served.

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
    /// GETATTR requests for what is neither a regular file nor a whiteout.
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
    /// Listings of what is no directory.
    readdir_failures,
    /// READs answered with an error.
    read_failures,
    /// READLINKs of what is no link, and STATFSs that failed.
    other_failures,
    /// Requests that are not supported; the kernel tries them out.
    unknown_operations,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
