//! Compiles containerd's Snapshots service with `protoc`; the well-known types come from
//! `prost-types`.

fn main() -> std::io::Result<()> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}/containerd");
    tonic_prost_build::configure()
        .btree_map(".")
        // Snapshots are stored as they are sent: List does not decode them.
        .extern_path(
            ".containerd.services.snapshots.v1.ListSnapshotsResponse",
            "crate::info_batch::ListSnapshotsResponse",
        )
        .compile_protos(
            &[format!(
                "{root}/containerd/services/snapshots/v1/snapshots.proto"
            )],
            &[root.to_owned()],
        )
}
