//! Building a zTOC from a layer in one pass.

use std::io::Read;
use std::num::NonZero;

use soci_oci::{Digest, Hasher};

use crate::checkpoint::{Checkpoint, Checkpoints, TarZinfo};
use crate::gzip_scan::GzipScanner;
use crate::parallel::{Chunk, Digests, Hashing, Piece, Pipeline};
use crate::tar_scan::TarScanner;
use crate::ztoc::{BlobOffset, VERSION};
use crate::{BuildError, Compression, CompressionInfo, Ztoc};

/// The default span size, in bytes.
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
    /// Largest zTOC in bytes, as far as it can be estimated; a layer that needs a larger one is an
    /// error. Bounds the memory of a build. `None`: what the format can hold, see
    /// [`BuildError::is_unsupported`].
    pub max_size: Option<u64>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            span_size: DEFAULT_SPAN_SIZE,
            build_tool_identifier: concat!("soci-snapshotter-rs v", env!("CARGO_PKG_VERSION"))
                .to_owned(),
            diff_id: false,
            max_size: None,
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
    /// The digest of the uncompressed stream, if it was requested.
    pub diff_id: Option<Digest>,
}

/// FlatBuffers refer to their parts by 32-bit distances, of which Go uses 31 bits.
const MAX_ZTOC: u64 = 1 << 31;
/// A generous estimate of the size of an entry and of a span in a zTOC, without names.
const ENTRY_SIZE: u64 = 300;
const GZIP_SPAN_SIZE: u64 = 33_000;
const PLAIN_SPAN_SIZE: u64 = 80;

/// How much is worked on at a time: so that what one step takes in memory is small, whatever a
/// checkpoint's density.
const STEP: usize = 1 << 20;

/// Builds a zTOC from a layer that arrives in pieces of any size, on the caller's thread alone. Memory
/// is bounded whatever the layer's size; only the table of contents, the digests and the checkpoints
/// grow.
#[derive(Debug)]
pub struct Builder {
    assembly: Assembly,
    hashing: Hashing,
}

impl Builder {
    /// A builder that has seen nothing.
    ///
    /// # Errors
    /// [`BuildError::Options`] when the options make no sense.
    pub fn new(compression: Compression, options: BuildOptions) -> Result<Self, BuildError> {
        Ok(Self {
            assembly: Assembly::new(compression, options)?,
            hashing: Hashing::new(),
        })
    }

    /// Takes in the next bytes of the layer blob.
    ///
    /// # Errors
    /// [`BuildError`] when the layer is damaged or cannot be described; the builder is of no use then.
    pub fn write(&mut self, compressed: &[u8]) -> Result<(), BuildError> {
        for step in compressed.chunks(STEP) {
            self.assembly.write(step, u64::MAX)?;
            let begun = self.assembly.checkpoints_begun();
            self.hashing.update(step, &begun);
        }
        Ok(())
    }

    /// Ends the layer.
    ///
    /// # Errors
    /// As [`Builder::write`], and [`BuildError::Truncated`] or [`BuildError::TruncatedTar`].
    pub fn finish(self) -> Result<Built, BuildError> {
        self.assembly.finish(self.hashing.finish())
    }
}

/// A zTOC in the making: all but the hashing of compressed bytes.
#[derive(Debug)]
pub(crate) struct Assembly {
    options: BuildOptions,
    stream: Stream,
    output: Output,
    compressed_size: u64,
    /// Number of checkpoints whose spans the digest threads know.
    reported: usize,
}

#[derive(Debug)]
enum Stream {
    Gzip(Box<GzipScanner>),
    Plain,
}

/// What is done with the uncompressed bytes.
#[derive(Debug)]
struct Output {
    tar: TarScanner,
    hasher: Option<Hasher>,
}

impl Output {
    fn write(&mut self, output: &[u8]) -> Result<(), BuildError> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(output);
        }
        self.tar.write(output)
    }
}

impl Assembly {
    pub(crate) fn new(
        compression: Compression,
        mut options: BuildOptions,
    ) -> Result<Self, BuildError> {
        if i64::try_from(options.span_size).is_err() {
            return Err(BuildError::Options(
                "the span size must be at most 9223372036854775807 bytes",
            ));
        }
        // A plain tar has no blocks that its spans could follow.
        if options.span_size == 0 && compression == Compression::Uncompressed {
            options.span_size = DEFAULT_SPAN_SIZE;
        }
        let stream = match compression {
            Compression::Gzip => Stream::Gzip(Box::new(GzipScanner::new(options.span_size)?)),
            Compression::Uncompressed => Stream::Plain,
        };
        Ok(Self {
            stream,
            output: Output {
                tar: TarScanner::new(),
                hasher: options.diff_id.then(Hasher::new),
            },
            options,
            compressed_size: 0,
            reported: 0,
        })
    }

    /// Takes in the next compressed bytes. Stops early between two blocks when that is not before the
    /// `until`-th bit of the layer.
    fn write(&mut self, compressed: &[u8], until: u64) -> Result<(), BuildError> {
        for step in compressed.chunks(STEP) {
            match &mut self.stream {
                Stream::Gzip(gzip) => {
                    gzip.write(step, until, |output| self.output.write(output))?;
                    self.compressed_size = gzip.total_in();
                }
                Stream::Plain => {
                    self.output.write(step)?;
                    self.compressed_size += step.len() as u64;
                }
            }
            self.check_size()?;
            if let Stream::Gzip(gzip) = &self.stream
                && gzip.boundary_at().is_some_and(|bit| bit >= until)
            {
                break;
            }
        }
        Ok(())
    }

    /// Takes in the next chunk. `piece` is what was inflated of it ahead, which may reach into the chunk
    /// after it. Returns whether the piece was used.
    pub(crate) fn take(
        &mut self,
        chunk: &Chunk,
        piece: Option<&Piece>,
    ) -> Result<bool, BuildError> {
        let mut of_use = false;
        if let Some(piece) = piece {
            self.write(self.rest_of(chunk), piece.start)?;
            if let Stream::Gzip(gzip) = &mut self.stream {
                // If it begins elsewhere, what was taken for a block was none.
                of_use = gzip.adopt(piece, |output| self.output.write(output))?;
                self.compressed_size = gzip.total_in();
            }
            self.check_size()?;
        }
        self.write(self.rest_of(chunk), u64::MAX)?;
        Ok(of_use)
    }

    /// What of the chunk was not taken in.
    fn rest_of<'c>(&self, chunk: &'c Chunk) -> &'c [u8] {
        let taken = self.compressed_size.saturating_sub(chunk.offset());
        let taken = usize::try_from(taken).unwrap_or(usize::MAX);
        chunk.data().get(taken..).unwrap_or_default()
    }

    /// The checkpoints in or right behind the compressed bytes up to `end`, but for those that an
    /// earlier call gave.
    pub(crate) fn checkpoints_up_to(&mut self, end: u64) -> Vec<Checkpoint> {
        let new: Vec<_> = match &self.stream {
            Stream::Gzip(gzip) => {
                let new = gzip.checkpoints().iter().skip(self.reported);
                new.take_while(|point| point.input <= end)
                    .copied()
                    .collect()
            }
            Stream::Plain => {
                let starts =
                    (self.reported as u64..).map(|at| at.saturating_mul(self.options.span_size));
                let plain = |start| Checkpoint {
                    input: start,
                    output: start,
                    bits: 0,
                };
                starts.take_while(|start| *start < end).map(plain).collect()
            }
        };
        self.reported += new.len();
        new
    }

    fn checkpoints_begun(&mut self) -> Vec<Checkpoint> {
        self.checkpoints_up_to(self.compressed_size)
    }

    /// Fails before memory fills with what no zTOC can hold.
    fn check_size(&self) -> Result<(), BuildError> {
        let spans = match &self.stream {
            Stream::Gzip(gzip) => gzip.checkpoints().len() as u64 * GZIP_SPAN_SIZE,
            Stream::Plain => (self.compressed_size / self.options.span_size)
                .saturating_add(1)
                .saturating_mul(PLAIN_SPAN_SIZE),
        };
        let tar = &self.output.tar;
        let entries = (tar.entries() as u64 * ENTRY_SIZE).saturating_add(tar.text_len());
        let size = spans.saturating_add(entries);
        if let Some(limit) = self.options.max_size
            && size > limit
        {
            return Err(BuildError::Limit { limit });
        }
        if size >= MAX_ZTOC {
            return Err(BuildError::TooLarge(
                "it has too many files, or too many spans: try a larger span size",
            ));
        }
        Ok(())
    }

    /// Ends the layer.
    pub(crate) fn finish(self, digests: Digests) -> Result<Built, BuildError> {
        self.check_size()?;
        let (algorithm, checkpoints) = match self.stream {
            Stream::Gzip(gzip) => (Compression::Gzip, Checkpoints::Gzip(gzip.finish()?)),
            Stream::Plain => {
                let spans = TarZinfo::new(self.options.span_size, self.compressed_size);
                (Compression::Uncompressed, Checkpoints::Tar(spans))
            }
        };
        let (toc, uncompressed_archive_size) = self.output.tar.finish()?;
        let ztoc = Ztoc {
            version: VERSION.to_owned(),
            build_tool_identifier: self.options.build_tool_identifier,
            compressed_archive_size: self.compressed_size,
            uncompressed_archive_size,
            toc,
            compression: CompressionInfo {
                algorithm,
                span_digests: digests.spans,
                checkpoints,
                checkpoints_at: BlobOffset(None),
            },
        };
        Ok(Built {
            ztoc,
            compressed_digest: digests.whole,
            diff_id: self.output.hasher.map(Hasher::finish),
        })
    }
}

/// Builds a zTOC of everything that `reader` gives, on all cores. The reader is read on the caller's
/// thread.
///
/// # Errors
/// As [`Builder::write`] and [`Builder::finish`], and what the reader reports.
pub fn build(
    reader: impl Read,
    compression: Compression,
    options: BuildOptions,
) -> Result<Built, BuildError> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Pipeline::of_cores(cores).build(reader, compression, options)
}
