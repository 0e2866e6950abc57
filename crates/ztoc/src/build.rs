//! Building a zTOC from a layer in one pass.

use std::io::Read;

use oci::Digest;

use crate::{BuildError, Compression, Ztoc};

/// The span size that zTOCs are built with unless told otherwise, in bytes.
pub const DEFAULT_SPAN_SIZE: u64 = 4 << 20;

/// How to build a zTOC.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The least number of uncompressed bytes between two checkpoints.
    pub span_size: u64,
    /// What the zTOC says built it.
    pub build_tool_identifier: String,
    /// Also compute the digest of the uncompressed stream, which costs as much as hashing it.
    pub diff_id: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            span_size: DEFAULT_SPAN_SIZE,
            build_tool_identifier: concat!("soci-snapshotter-rs v", env!("CARGO_PKG_VERSION")).to_owned(),
            diff_id: false,
        }
    }
}

/// A zTOC and what came to be known while it was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The zTOC.
    pub ztoc: Ztoc,
    /// The digest of the layer blob.
    pub compressed_digest: Digest,
    /// The digest of the uncompressed stream, if it was asked for.
    pub diff_id: Option<Digest>,
}

/// Builds a zTOC from a layer that arrives in pieces of any size. Memory is bounded whatever the
/// layer's size; only the table of contents, the digests and the checkpoints grow.
#[derive(Debug)]
pub struct Builder {}

impl Builder {
    /// A builder that has seen nothing.
    ///
    /// # Errors
    /// [`BuildError::Options`] when the options make no sense.
    pub fn new(_compression: Compression, _options: BuildOptions) -> Result<Self, BuildError> {
        todo!()
    }

    /// Takes in the next bytes of the layer blob.
    ///
    /// # Errors
    /// [`BuildError`] when the layer is damaged or cannot be described; the builder is of no use then.
    pub fn write(&mut self, _compressed: &[u8]) -> Result<(), BuildError> {
        todo!()
    }

    /// Ends the layer.
    ///
    /// # Errors
    /// As [`Builder::write`], and [`BuildError::Truncated`].
    pub fn finish(self) -> Result<Built, BuildError> {
        todo!()
    }
}

/// Builds a zTOC of everything that `reader` gives, hashing on a second thread.
///
/// # Errors
/// As [`Builder::write`] and [`Builder::finish`], and what the reader reports.
pub fn build(
    _reader: impl Read,
    _compression: Compression,
    _options: BuildOptions,
) -> Result<Built, BuildError> {
    todo!()
}
