//! What to index and how.

use std::num::NonZeroUsize;

use soci_oci::Platform;
use soci_ztoc::{BuildOptions, DEFAULT_SPAN_SIZE};

use crate::IndexError;

/// Layers smaller than this get no zTOC unless told otherwise, in bytes.
pub const DEFAULT_MIN_LAYER_SIZE: u64 = 10 << 20;

/// Span sizes up to this are accepted, in bytes: the format counts in signed 64 bits.
const MAX_SPAN_SIZE: u64 = i64::MAX.cast_unsigned();

/// Which images of a multi-platform image get an index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Platforms {
    /// The only one there is, or else that of this machine.
    #[default]
    Default,
    /// Every one.
    All,
    /// These.
    These(Vec<Platform>),
}

/// How to convert an image.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The least number of uncompressed bytes between two checkpoints. 0: each block of a gzip layer begins
    /// a span; layers that are plain tars get the default.
    pub span_size: u64,
    /// Layers with fewer compressed bytes get no zTOC.
    pub min_layer_size: u64,
    /// Mark layers without extended attributes and opaque directories, so that none are
    /// requested from them.
    pub optimize_xattrs: bool,
    /// Build zTOCs again although the source already has them.
    pub force: bool,
    /// Which images get an index.
    pub platforms: Platforms,
    /// Paths in the image whose spans are listed for prefetching.
    pub prefetch_files: Vec<String>,
    /// A recorded start of the image, whose spans are listed for prefetching in their order.
    pub profile: Option<std::sync::Arc<soci_profile::Merged>>,
    /// Largest zTOC in bytes; a layer that needs a larger one is damaged. `None`: what the format can
    /// hold.
    pub max_ztoc_size: Option<u64>,
    /// Layers worked on at a time.
    pub parallelism: NonZeroUsize,
    /// What zTOCs and indexes say built them.
    pub build_tool_identifier: String,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            span_size: DEFAULT_SPAN_SIZE,
            min_layer_size: DEFAULT_MIN_LAYER_SIZE,
            optimize_xattrs: false,
            force: false,
            platforms: Platforms::Default,
            prefetch_files: Vec::new(),
            profile: None,
            max_ztoc_size: None,
            parallelism: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            build_tool_identifier: BuildOptions::default().build_tool_identifier,
        }
    }
}

impl ConvertOptions {
    pub(crate) fn check(&self) -> Result<(), IndexError> {
        if self.span_size > MAX_SPAN_SIZE {
            return Err(IndexError::Options(format!(
                "the span size must be at most {MAX_SPAN_SIZE} bytes, not {}",
                self.span_size
            )));
        }
        Ok(())
    }

    pub(crate) fn build(&self) -> BuildOptions {
        BuildOptions {
            span_size: self.span_size,
            build_tool_identifier: self.build_tool_identifier.clone(),
            max_size: self.max_ztoc_size,
            ..BuildOptions::default()
        }
    }
}
