//! Checkpoints: where a stream can be entered, and what is needed to do so.

/// How far deflate looks back, and so the length of a checkpoint's window (RFC 1951, section 3.2.5).
pub const WINDOW_SIZE: usize = 32768;

/// A place where inflating can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first whole compressed byte that is to be read.
    pub input: u64,
    /// The uncompressed offset that it stands for.
    pub output: u64,
    /// How many high bits of the compressed byte before `input` come first, 0 to 7.
    pub bits: u8,
}

/// The checkpoints of a gzip layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GzipCheckpoints {
    /// The span size that it was built with, in bytes of output.
    pub span_size: u64,
    /// The checkpoints in ascending order; span `i` begins at the `i`-th.
    pub points: Vec<Checkpoint>,
    /// The windows of all checkpoints that are stored, one after another.
    pub(crate) windows: Vec<u8>,
    /// The first checkpoint is implied and has no window (zTOCs of soci 0.4 and older).
    pub(crate) first_implied: bool,
    /// Where in the zTOC the first stored checkpoint's window is; `None`: not from a zTOC.
    pub(crate) first_window_at: Option<u64>,
}

/// The spans of a plain tar layer: all have the same size but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarZinfo {
    /// The version of the structure, 2.
    pub version: i32,
    /// The size of every span but the last, in bytes.
    pub span_size: u64,
    /// The size of the layer in bytes.
    pub size: u64,
}

/// What a zTOC holds about where its spans begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoints {
    /// Of a gzip layer.
    Gzip(GzipCheckpoints),
    /// Of a plain tar layer.
    Tar(TarZinfo),
}

impl Checkpoints {
    /// The span size that the zTOC was built with, in bytes.
    #[must_use]
    pub const fn span_size(&self) -> u64 {
        match self {
            Self::Gzip(gzip) => gzip.span_size,
            Self::Tar(tar) => tar.span_size,
        }
    }
}
