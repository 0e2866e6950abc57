//! Annotation and label keys of SOCI.

/// On an image manifest (v2): the digest of the image's SOCI index.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// On the descriptor of a v2 SOCI index: the digest of the image manifest that it belongs to.
pub const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";
/// On a zTOC or prefetch descriptor: the digest of the image layer that it describes.
pub const IMAGE_LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
/// On a zTOC descriptor: the media type of the image layer that it describes.
pub const IMAGE_LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
/// On a zTOC descriptor: the span size it was built with, in bytes, decimal.
pub const SPAN_SIZE: &str = "com.amazon.soci.span-size";
/// On a zTOC descriptor or an index: `"true"` when the layer has no xattrs worth a request.
pub const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
/// On a SOCI index: the tool that built it.
pub const BUILD_TOOL_IDENTIFIER: &str = "com.amazon.soci.build-tool-identifier";
/// The OCI annotation naming a descriptor of an image layout (`index.json`).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
