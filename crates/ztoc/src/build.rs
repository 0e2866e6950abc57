//! Building a zTOC from a layer in one pass.

use std::io::Read;

use oci::Digest;

use crate::checkpoint::{Checkpoint, Checkpoints, TarZinfo};
use crate::gzip_scan::GzipScanner;
use crate::hashing::Hashing;
use crate::tar_scan::TarScanner;
use crate::ztoc::{BlobOffset, VERSION};
use crate::{BuildError, Compression, CompressionInfo, Ztoc};

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
            build_tool_identifier: concat!("soci-snapshotter-rs v", env!("CARGO_PKG_VERSION"))
                .to_owned(),
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

/// FlatBuffers refer to their parts by 32-bit distances, of which Go uses 31 bits.
const MAX_ZTOC: u64 = 1 << 31;
/// A generous guess at what an entry and a span take in a zTOC, besides names.
const ENTRY_SIZE: u64 = 300;
const GZIP_SPAN_SIZE: u64 = 33_000;
const PLAIN_SPAN_SIZE: u64 = 80;

/// How much `build` reads at a time.
const CHUNK: usize = 1 << 20;

/// Builds a zTOC from a layer that arrives in pieces of any size. Memory is bounded whatever the
/// layer's size; only the table of contents, the digests and the checkpoints grow.
#[derive(Debug)]
pub struct Builder {
    options: BuildOptions,
    stream: Stream,
    tar: TarScanner,
    hashing: Hashing,
    compressed_size: u64,
}

#[derive(Debug)]
enum Stream {
    Gzip(Box<GzipScanner>),
    /// With the number of spans that have begun.
    Plain {
        spans: u64,
    },
}

impl Builder {
    /// A builder that has seen nothing and works on the caller's thread alone.
    ///
    /// # Errors
    /// [`BuildError::Options`] when the options make no sense.
    pub fn new(compression: Compression, options: BuildOptions) -> Result<Self, BuildError> {
        let hashing = Hashing::here(options.diff_id);
        Self::with_hashing(compression, options, hashing)
    }

    /// A builder that has seen nothing and hashes on a second thread.
    ///
    /// # Errors
    /// As [`Builder::new`], and [`BuildError::Read`] when no thread can be started.
    pub fn with_hash_thread(
        compression: Compression,
        options: BuildOptions,
    ) -> Result<Self, BuildError> {
        let hashing = Hashing::on_thread(options.diff_id)?;
        Self::with_hashing(compression, options, hashing)
    }

    fn with_hashing(
        compression: Compression,
        options: BuildOptions,
        hashing: Hashing,
    ) -> Result<Self, BuildError> {
        if options.span_size == 0 || i64::try_from(options.span_size).is_err() {
            return Err(BuildError::Options(
                "the span size must be at least one byte",
            ));
        }
        let stream = match compression {
            Compression::Gzip => Stream::Gzip(Box::new(GzipScanner::new(options.span_size)?)),
            Compression::Uncompressed => Stream::Plain { spans: 0 },
        };
        Ok(Self {
            options,
            stream,
            tar: TarScanner::new(),
            hashing,
            compressed_size: 0,
        })
    }

    /// Takes in the next bytes of the layer blob.
    ///
    /// # Errors
    /// [`BuildError`] when the layer is damaged or cannot be described; the builder is of no use then.
    pub fn write(&mut self, compressed: &[u8]) -> Result<(), BuildError> {
        // Small pieces keep what one call takes in memory small, whatever a checkpoint's density.
        compressed
            .chunks(CHUNK)
            .try_for_each(|piece| self.write_piece(piece))
    }

    fn write_piece(&mut self, compressed: &[u8]) -> Result<(), BuildError> {
        let end = self.compressed_size.saturating_add(compressed.len() as u64);
        let begun = match &mut self.stream {
            Stream::Gzip(gzip) => {
                let known = gzip.checkpoints();
                gzip.write(compressed, |output| {
                    self.tar.write(output)?;
                    self.hashing.uncompressed(output)
                })?;
                gzip.checkpoints_after(known)
            }
            Stream::Plain { spans } => {
                self.tar.write(compressed)?;
                self.hashing.uncompressed(compressed)?;
                let mut begun = Vec::new();
                while let Some(start) = spans.checked_mul(self.options.span_size)
                    && start < end
                {
                    begun.push(Checkpoint {
                        input: start,
                        output: start,
                        bits: 0,
                    });
                    *spans += 1;
                }
                begun
            }
        };
        self.compressed_size = end;
        self.hashing.compressed(compressed, begun)?;
        self.check_size()
    }

    /// Fails before memory fills with what no zTOC can hold.
    fn check_size(&self) -> Result<(), BuildError> {
        let spans = match &self.stream {
            Stream::Gzip(gzip) => gzip.checkpoints() as u64 * GZIP_SPAN_SIZE,
            Stream::Plain { spans } => spans.saturating_mul(PLAIN_SPAN_SIZE),
        };
        let entries = (self.tar.entries() as u64 * ENTRY_SIZE).saturating_add(self.tar.text_len());
        if spans.saturating_add(entries) >= MAX_ZTOC {
            return Err(BuildError::TooLarge(
                "it has too many files, or too many spans: try a larger span size",
            ));
        }
        Ok(())
    }

    /// Ends the layer.
    ///
    /// # Errors
    /// As [`Builder::write`], and [`BuildError::Truncated`] or [`BuildError::TruncatedTar`].
    pub fn finish(self) -> Result<Built, BuildError> {
        self.check_size()?;
        let (algorithm, checkpoints) = match self.stream {
            Stream::Gzip(gzip) => (Compression::Gzip, Checkpoints::Gzip(gzip.finish()?)),
            Stream::Plain { .. } => {
                let spans = TarZinfo::new(self.options.span_size, self.compressed_size);
                (Compression::Uncompressed, Checkpoints::Tar(spans))
            }
        };
        let (toc, uncompressed_archive_size) = self.tar.finish()?;
        let digests = self.hashing.finish()?;
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
            compressed_digest: digests.compressed,
            diff_id: digests.uncompressed,
        })
    }
}

/// Builds a zTOC of everything that `reader` gives, hashing on a second thread.
///
/// # Errors
/// As [`Builder::write`] and [`Builder::finish`], and what the reader reports.
pub fn build(
    mut reader: impl Read,
    compression: Compression,
    options: BuildOptions,
) -> Result<Built, BuildError> {
    let mut builder = Builder::with_hash_thread(compression, options)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return builder.finish(),
            Ok(len) => builder.write(chunk.get(..len).unwrap_or_default())?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
