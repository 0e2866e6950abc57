//! The generated wire types, server and client of `containerd.services.snapshots.v1`.

#![allow(missing_docs, reason = "generated; documented in proto/")]
#![allow(clippy::all, reason = "generated")]
#![allow(unreachable_pub, unused_qualifications, reason = "generated")]

/// Package `containerd`.
pub mod containerd {
    /// Package `containerd.types`.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    /// Package `containerd.services`.
    pub mod services {
        /// Package `containerd.services.snapshots`.
        pub mod snapshots {
            /// Package `containerd.services.snapshots.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

pub use containerd::services::snapshots::v1;
pub use containerd::types;
