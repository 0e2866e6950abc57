//! Errors of reading a zTOC, extracting a span and indexing a layer.

use soci_oci::Digest;

use crate::span_id::SpanId;

/// Why bytes are not a valid zTOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZtocError {
    /// The FlatBuffers structure itself points outside the blob or is misshapen.
    #[error("the zTOC is damaged: {what} at byte {at} lies outside its {len} bytes")]
    OutOfBounds {
        /// The part that was being read.
        what: &'static str,
        /// Where it was said to be.
        at: u64,
        /// How long the blob is.
        len: u64,
    },
    /// A part that must be there is missing.
    #[error("the zTOC is damaged: it has no {0}")]
    Missing(&'static str),
    /// An unknown version.
    #[error(
        "the zTOC has version {0:?}; only \"0.9\" is supported: rebuild it with `soci create --force` or `soci convert --force`"
    )]
    Version(String),
    /// An impossible value.
    #[error("the zTOC is damaged: {0}")]
    Invalid(String),
    /// The same bytes are referred to over and over, which no writer does.
    #[error(
        "the zTOC is damaged: its entries add up to more than {limit} bytes, many times its own size"
    )]
    TooMuchWork {
        /// The bytes that a blob of this size may expand to.
        limit: u64,
    },
}

/// Why a span could not be extracted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// The span does not exist.
    #[error("span {} does not exist, the layer has {count}", id.0)]
    NoSuchSpan {
        /// The requested span.
        id: SpanId,
        /// How many spans there are.
        count: u32,
    },
    /// More or fewer compressed bytes were given than the span has.
    #[error("span {} has {expected} compressed bytes, {actual} were given", id.0)]
    Length {
        /// The span.
        id: SpanId,
        /// What the zTOC says.
        expected: u64,
        /// What was given.
        actual: u64,
    },
    /// The compressed bytes are not those that the zTOC was made from.
    #[error("span {} has digest {actual} instead of {expected}: the layer's bytes are damaged or not those that were indexed", id.0)]
    Digest {
        /// The span.
        id: SpanId,
        /// What the zTOC says.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// The window has the wrong length.
    #[error("span {} needs a window of {expected} bytes, {actual} were given", id.0)]
    Window {
        /// The span.
        id: SpanId,
        /// What is needed.
        expected: u64,
        /// What was given.
        actual: u64,
    },
    /// The compressed bytes do not inflate to the span's size: its checkpoint is wrong.
    #[error("span {} does not inflate to its {expected} bytes: {reason}; the zTOC is damaged", id.0)]
    Inflate {
        /// The span.
        id: SpanId,
        /// What the zTOC says.
        expected: u64,
        /// What went wrong.
        reason: &'static str,
    },
}

/// Why a layer cannot be indexed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Reading the layer failed.
    #[error("cannot read the layer: {0}")]
    Read(#[from] std::io::Error),
    /// Invalid options.
    #[error("cannot build a zTOC: {0}")]
    Options(&'static str),
    /// The compressed stream is not valid gzip.
    #[error(
        "the layer is not a valid gzip stream: {reason} in what starts at compressed byte {at}"
    )]
    Gzip {
        /// What is wrong.
        reason: &'static str,
        /// Where the header, block or trailer starts that it is in.
        at: u64,
    },
    /// The layer is truncated.
    #[error("the layer ends too early, after {at} compressed bytes: {reason}")]
    Truncated {
        /// What was being read.
        reason: &'static str,
        /// The length of what is there.
        at: u64,
    },
    /// The tar inside is invalid.
    #[error("the layer's tar is invalid: {reason} in the header at uncompressed byte {at}")]
    Tar {
        /// What is wrong.
        reason: &'static str,
        /// Where the header starts.
        at: u64,
    },
    /// The tar is truncated.
    #[error("the layer's tar ends {reason}, the one that starts at uncompressed byte {at}")]
    TruncatedTar {
        /// Where in the tar the layer ends.
        reason: &'static str,
        /// Where the last header starts.
        at: u64,
    },
    /// The tar has an entry that zTOCs have no way to describe.
    #[error(
        "the layer has an entry that a zTOC cannot describe: {what} {name:?}, at uncompressed byte {at}"
    )]
    UnsupportedEntry {
        /// What kind of entry.
        what: String,
        /// Its name, lossily.
        name: String,
        /// Where its header starts.
        at: u64,
    },
    /// The layer is larger than the format can say.
    #[error("the layer is too large for a zTOC: {0}")]
    TooLarge(&'static str),
    /// The zTOC would exceed the limit of the options.
    #[error(
        "its zTOC would be larger than the limit of {limit} bytes: it unpacks to far more than its size, or \
         needs a larger span size or limit"
    )]
    Limit {
        /// [`crate::BuildOptions::max_size`].
        limit: u64,
    },
}

impl BuildError {
    /// Whether a zTOC cannot describe the layer's content, so that the layer is left without one.
    #[must_use]
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::UnsupportedEntry { .. } | Self::TooLarge(_))
    }
}
