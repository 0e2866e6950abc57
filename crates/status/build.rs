//! Compiles the status service with `protoc`; its messages are also JSON, for programs that read
//! `soci status --json`.

const PACKAGE: &str = "soci.status.v1";

fn main() -> std::io::Result<()> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}/soci");
    let mut builder = tonic_prost_build::configure();
    for message in [
        "GetResponse",
        "FillResponse",
        "CollectResponse",
        "Leftover",
        "Daemon",
        "Holder",
        "LayerStore",
        "Counts",
        "Image",
        "Layer",
        "Severed",
        "Profiles",
        "PlayingProfile",
        "Pull",
        "PulledLayer",
        "Registry",
        "RegistryHost",
    ] {
        builder = builder.message_attribute(
            format!("{PACKAGE}.{message}"),
            "#[derive(serde::Serialize)] #[serde(rename_all = \"camelCase\")]",
        );
    }
    for absent in [
        "GetResponse.holder",
        "GetResponse.profiles",
        "LayerStore.limit_bytes",
        "Image.index_digest",
        "Image.error",
        "Layer.size_bytes",
        "Layer.fetched_bytes",
        "Layer.reason_code",
        "Layer.reason",
        "Layer.error",
        "Layer.mountpoint",
        "Layer.namespace",
        "Registry.error",
        "RegistryHost.asked_last_for_ms",
    ] {
        builder = builder.field_attribute(
            format!("{PACKAGE}.{absent}"),
            "#[serde(skip_serializing_if = \"Option::is_none\")]",
        );
    }
    builder
        .field_attribute(
            format!("{PACKAGE}.Layer.state"),
            "#[serde(serialize_with = \"crate::words::state\")]",
        )
        .field_attribute(
            format!("{PACKAGE}.Layer.health"),
            "#[serde(serialize_with = \"crate::words::health\")]",
        )
        .compile_protos(
            &[format!("{root}/soci/status/v1/status.proto")],
            &[root.to_owned()],
        )
}
