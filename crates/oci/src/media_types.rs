//! Media types of the OCI image specification, Docker's schema 2, and SOCI.

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The configuration `{}` of an artifact.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// OCI plain tar layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI gzip-compressed layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI zstd-compressed layer.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker gzip-compressed layer.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker plain tar layer.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Config of a SOCI index version 1.
pub const SOCI_INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// Config of a SOCI index version 2.
pub const SOCI_INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// A zTOC in the layers of a SOCI index.
pub const ZTOC: &str = "application/octet-stream";
/// A prefetch artifact in the layers of a SOCI index.
pub const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// The compression of a layer, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// A plain tar.
    None,
    /// gzip (RFC 1952), possibly of several members.
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
    /// Not a layer that we can read.
    Unknown,
}

/// Returns whether this is an image index or a Docker manifest list.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Returns whether this is an image manifest.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Returns the compression of a layer by its media type. Foreign (non-distributable) layers are
/// treated like others.
#[must_use]
pub fn layer_compression(media_type: &str) -> LayerCompression {
    let plain = media_type
        .replace(".nondistributable", "")
        .replace(".foreign", "");
    match plain.as_str() {
        OCI_LAYER | DOCKER_LAYER => LayerCompression::None,
        OCI_LAYER_GZIP | DOCKER_LAYER_GZIP => LayerCompression::Gzip,
        OCI_LAYER_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            LayerCompression::Zstd
        }
        _ => LayerCompression::Unknown,
    }
}

/// Returns the OCI media type for a Docker one; anything else is returned unchanged.
#[must_use]
pub fn docker_to_oci(media_type: &str) -> &str {
    match media_type {
        DOCKER_LIST => OCI_INDEX,
        DOCKER_MANIFEST => OCI_MANIFEST,
        DOCKER_CONFIG => OCI_CONFIG,
        DOCKER_LAYER => OCI_LAYER,
        DOCKER_LAYER_GZIP => OCI_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => OCI_LAYER_ZSTD,
        "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
        }
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        other => other,
    }
}
