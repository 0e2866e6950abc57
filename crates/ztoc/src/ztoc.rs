//! The zTOC: a layer's table of contents and its checkpoints.

use oci::Digest;

use crate::{Checkpoints, FileMetadata, SpanTable, ZtocError};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip (RFC 1952) of one or more members.
    Gzip,
    /// A plain tar.
    Uncompressed,
}

/// The part of a zTOC that tells how to get at the layer's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressionInfo {
    /// How the layer is compressed.
    pub algorithm: Compression,
    /// The sha256 of each span's compressed bytes.
    pub span_digests: Vec<Digest>,
    /// Where the spans begin.
    pub checkpoints: Checkpoints,
}

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

/// What a mount needs of a zTOC: everything but the windows, which stay in the blob.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The entries, by `uncompressed_offset`.
    pub toc: Vec<FileMetadata>,
    /// The spans.
    pub spans: SpanTable,
}

impl Ztoc {
    /// Reads a zTOC and checks it as a whole.
    ///
    /// # Errors
    /// [`ZtocError`] for anything that no writer could have meant.
    pub fn parse(_blob: &[u8]) -> Result<Self, ZtocError> {
        todo!()
    }

    /// Like [`Ztoc::parse`], but does not copy the windows out of the blob.
    ///
    /// # Errors
    /// As [`Ztoc::parse`].
    pub fn parse_parts(_blob: &[u8]) -> Result<Parts, ZtocError> {
        todo!()
    }

    /// Writes the zTOC.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    /// The table of its spans.
    #[must_use]
    pub fn span_table(&self) -> SpanTable {
        todo!()
    }
}
