//! Programs that decompress layers, as they are configured.

use std::path::PathBuf;
use std::time::Duration;

/// A program that decompresses: compressed bytes on its standard input, plain ones on its standard
/// output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decompressor {
    /// The program, by its absolute path. No shell is involved.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// Programs that decompress instead of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decompressors {
    /// For gzip.
    pub gzip: Option<Decompressor>,
    /// For zstd.
    pub zstd: Option<Decompressor>,
    /// Longest time for which a program may neither read what waits for it nor write.
    pub stall: Option<Duration>,
}
