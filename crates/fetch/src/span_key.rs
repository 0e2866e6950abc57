//! Keys of layers and spans within one fetcher.

/// Number of a layer within one fetcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LayerId(pub(crate) u64);

/// A span of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpanKey {
    pub(crate) layer: LayerId,
    pub(crate) span: u32,
}
