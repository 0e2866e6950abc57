//! A layer without a zTOC: downloaded into a temporary file, where a zTOC of it is built.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use soci_index::StreamReader;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest, Hasher};
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_ztoc::{BuildOptions, Built, Compression};

/// A layer in an unnamed temporary file: the blob, or the tar in it where the blob cannot be read in
/// parts.
pub(crate) struct LocalLayer {
    file: Arc<File>,
    digest: Digest,
    size: u64,
}

impl LocalLayer {
    /// Takes the layer in, and builds a zTOC of what is kept on the way. Returns the zTOC blob as well.
    pub(crate) async fn download(
        stream: futures::stream::BoxStream<'static, io::Result<Bytes>>,
        layer: &Descriptor,
    ) -> anyhow::Result<(Self, Bytes)> {
        let compression = layer_compression(&layer.media_type);
        if compression == LayerCompression::Unknown {
            bail!("layers of type {} cannot be read", layer.media_type);
        }
        let file = Arc::new(tempfile::tempfile().context("cannot make a temporary file")?);
        let kept = Arc::clone(&file);
        let reader = StreamReader::new(stream);
        let (built, digest) = soci_task::blocking(move || match compression {
            LayerCompression::Gzip => keep(reader, kept, Compression::Gzip),
            LayerCompression::Zstd => keep_tar_of_zstd(reader, kept),
            LayerCompression::None | LayerCompression::Unknown => {
                keep(reader, kept, Compression::Uncompressed)
            }
        })
        .await?;
        if digest != layer.digest {
            bail!("its bytes have the digest {digest}");
        }
        let local = Self {
            file,
            digest,
            size: built.ztoc.compressed_archive_size,
        };
        Ok((local, built.ztoc.encode().into()))
    }
}

/// Keeps the blob as it is. Returns its digest as well.
fn keep(
    reader: impl Read,
    file: Arc<File>,
    compression: Compression,
) -> anyhow::Result<(Built, Digest)> {
    let tee = Tee {
        reader,
        file,
        at: 0,
    };
    let built = soci_ztoc::build(tee, compression, BuildOptions::default())?;
    let digest = built.compressed_digest;
    Ok((built, digest))
}

/// Keeps the tar in a zstd blob, whose digest it gives.
fn keep_tar_of_zstd(reader: impl Read, file: Arc<File>) -> anyhow::Result<(Built, Digest)> {
    let mut hashing = Hashing {
        reader,
        hasher: Hasher::new(),
    };
    let tar = zstd::stream::read::Decoder::new(&mut hashing)?;
    let (built, _) = keep(tar, file, Compression::Uncompressed)?;
    // Whatever follows the last frame belongs to the blob too.
    io::copy(&mut hashing, &mut io::sink())?;
    Ok((built, hashing.hasher.finish()))
}

/// Reads a layer and keeps a copy of it.
struct Tee<R> {
    reader: R,
    file: Arc<File>,
    at: u64,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.file
            .write_all_at(buf.get(..read).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

/// Reads and hashes.
struct Hashing<R> {
    reader: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.hasher.update(buf.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[async_trait]
impl BlobSource for LocalLayer {
    fn size(&self) -> u64 {
        self.size
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        _: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let failed = |error: io::Error| RegistryError::Source {
            what: self.describe(),
            source: Arc::new(error),
        };
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|error| failed(io::Error::other(error)))?;
        let file = Arc::clone(&self.file);
        let read = soci_task::blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        });
        let bytes = read.await.map_err(failed)?;
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }

    fn describe(&self) -> String {
        format!("layer {} (downloaded)", self.digest)
    }
}
