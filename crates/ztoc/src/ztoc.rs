//! The zTOC: a layer's table of contents and its checkpoints.

use soci_oci::Digest;

use crate::{Checkpoints, FileMetadata};

/// The one version of the format.
pub(crate) const VERSION: &str = "0.9";

/// The slots of the tables' fields, in the order of `proto/ztoc.fbs`.
pub(crate) mod slots {
    pub(crate) const VERSION: usize = 0;
    pub(crate) const BUILD_TOOL: usize = 1;
    pub(crate) const COMPRESSED_SIZE: usize = 2;
    pub(crate) const UNCOMPRESSED_SIZE: usize = 3;
    pub(crate) const TOC: usize = 4;
    pub(crate) const COMPRESSION_INFO: usize = 5;

    pub(crate) const ALGORITHM: usize = 0;
    pub(crate) const MAX_SPAN_ID: usize = 1;
    pub(crate) const SPAN_DIGESTS: usize = 2;
    pub(crate) const CHECKPOINTS: usize = 3;

    pub(crate) mod entry {
        pub(crate) const NAME: usize = 0;
        pub(crate) const TYPE: usize = 1;
        pub(crate) const OFFSET: usize = 2;
        pub(crate) const SIZE: usize = 3;
        pub(crate) const LINKNAME: usize = 4;
        pub(crate) const MODE: usize = 5;
        pub(crate) const UID: usize = 6;
        pub(crate) const GID: usize = 7;
        pub(crate) const UNAME: usize = 8;
        pub(crate) const GNAME: usize = 9;
        pub(crate) const MOD_TIME: usize = 10;
        pub(crate) const DEVMAJOR: usize = 11;
        pub(crate) const DEVMINOR: usize = 12;
        pub(crate) const XATTRS: usize = 13;
    }
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip (RFC 1952) of one or more members.
    Gzip,
    /// A plain tar.
    Uncompressed,
}

/// The part of a zTOC that describes access to the layer's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressionInfo {
    /// How the layer is compressed.
    pub algorithm: Compression,
    /// The sha256 of each span's compressed bytes.
    pub span_digests: Vec<Digest>,
    /// Where the spans begin.
    pub checkpoints: Checkpoints,
    pub(crate) checkpoints_at: BlobOffset,
}

/// Where the checkpoints are in the blob that a zTOC was parsed from; nothing when it was not.
/// It says nothing about what the zTOC means, so any two are equal.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlobOffset(pub(crate) Option<u64>);

impl PartialEq for BlobOffset {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for BlobOffset {}

/// A layer's table of contents and its checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ztoc {
    /// The version of the format, `0.9`.
    pub version: String,
    /// The program that wrote it.
    pub build_tool_identifier: String,
    /// The layer blob's length in bytes.
    pub compressed_archive_size: u64,
    /// Where the tar inside ends, in bytes; the stream may be longer.
    pub uncompressed_archive_size: u64,
    /// The entries, by `uncompressed_offset`.
    pub toc: Vec<FileMetadata>,
    /// How to get at the layer's bytes.
    pub compression: CompressionInfo,
}
