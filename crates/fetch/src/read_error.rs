//! Errors of reads from a layer.

use std::error::Error;
use std::sync::Arc;

/// The error behind a [`ReadError`], shared by all readers that get it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// An error of a read. Clones are cheap: one failed fetch answers many readers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range lies outside the layer: the file tree and the layer do not fit together.
    #[error(
        "cannot read bytes {offset} to {offset}+{len}: the layer has {size} uncompressed bytes"
    )]
    OutOfRange {
        /// Start of the range in bytes.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Length of the uncompressed tar in bytes.
        size: u64,
    },
    /// The layer was closed.
    #[error("the layer was closed while it was read")]
    Closed,
    /// The registry did not deliver the bytes.
    #[error("cannot fetch span {span} of {blob}: {source}")]
    Source {
        /// The blob, without secrets.
        blob: String,
        /// Number of the span.
        span: u32,
        /// The registry client's error, or a time-out.
        source: Cause,
    },
    /// The registry's bytes differ from those that were indexed, or the zTOC is wrong about them.
    #[error("cannot verify span {span} of {blob}: {source}")]
    Verification {
        /// The blob, without secrets.
        blob: String,
        /// Number of the span.
        span: u32,
        /// What does not match.
        source: Cause,
    },
    /// The layer store failed.
    #[error("{0}")]
    Store(#[source] Cause),
    /// A task ended without an answer. This is a defect of the fetcher.
    #[error(
        "the fetch ended without an answer; this is a defect of the snapshotter, please report it"
    )]
    Abandoned,
}

impl ReadError {
    /// A failure of the layer store.
    pub fn store(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// A layer's spans left the store as often as they were fetched.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {blob}: its spans leave the layer store as soon as they arrive; \
     the store's budget may be too small"
)]
pub(crate) struct SpansLost {
    pub(crate) blob: String,
}

/// The circuit of an origin is open: no request was made.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin} failed several times in a row and is not asked again for a few seconds; \
     last failure: {source}"
)]
pub(crate) struct OriginFailing {
    pub(crate) origin: String,
    pub(crate) source: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_error_behind_it() {
        let error = ReadError::Source {
            blob: "registry.example/app".to_owned(),
            span: 3,
            source: Arc::new(std::io::Error::from_raw_os_error(111)),
        };
        let clone = error.clone();
        let source = clone.source().unwrap();
        assert!(source.to_string().contains("refused"), "{source}");
        assert!(
            error
                .to_string()
                .starts_with("cannot fetch span 3 of registry.example/app: ")
        );
    }
}
