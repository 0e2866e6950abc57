//! Compiles the client of the Container Runtime Interface with `protoc`.

fn main() -> std::io::Result<()> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}/cri");
    tonic_prost_build::configure()
        .build_server(false)
        .compile_protos(&[format!("{root}/cri/runtime.proto")], &[root.to_owned()])
}
