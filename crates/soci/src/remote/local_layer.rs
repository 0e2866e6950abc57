//! A layer without a zTOC: downloaded into a temporary file, where a zTOC of it is built.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use index::StreamReader;
use oci::media_types::{LayerCompression, layer_compression};
use oci::{Descriptor, Digest};
use registry::{BlobSource, ByteStream, RegistryError};
use ztoc::{BuildOptions, Compression};

/// A layer blob in an unnamed temporary file.
pub(crate) struct LocalLayer {
    file: Arc<File>,
    digest: Digest,
    size: u64,
}

impl LocalLayer {
    /// Takes the layer in, and builds its zTOC on the way. Gives the zTOC blob too.
    pub(crate) async fn download(
        stream: futures::stream::BoxStream<'static, io::Result<Bytes>>,
        layer: &Descriptor,
    ) -> anyhow::Result<(Self, Bytes)> {
        let compression = match layer_compression(&layer.media_type) {
            LayerCompression::Gzip => Compression::Gzip,
            LayerCompression::None => Compression::Uncompressed,
            LayerCompression::Zstd | LayerCompression::Unknown => bail!(
                "layers of type {} cannot be read in parts",
                layer.media_type
            ),
        };
        let file = Arc::new(tempfile::tempfile().context("cannot make a temporary file")?);
        let mut tee = Tee {
            reader: StreamReader::new(stream),
            file: Arc::clone(&file),
            at: 0,
        };
        let built = tokio::task::spawn_blocking(move || {
            ztoc::build(&mut tee, compression, BuildOptions::default())
        })
        .await
        .context("reading the layer was interrupted")??;
        if built.compressed_digest != layer.digest {
            bail!("its bytes have the digest {}", built.compressed_digest);
        }
        let local = Self {
            file,
            digest: layer.digest,
            size: layer.size,
        };
        Ok((local, built.ztoc.encode().into()))
    }
}

/// Reads a layer and keeps a copy of it.
struct Tee {
    reader: StreamReader,
    file: Arc<File>,
    at: u64,
}

impl io::Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.file
            .write_all_at(buf.get(..read).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

#[async_trait]
impl BlobSource for LocalLayer {
    fn size(&self) -> u64 {
        self.size
    }

    async fn stream_range(&self, range: Range<u64>) -> Result<ByteStream, RegistryError> {
        let failed = |reason: String| RegistryError::Source {
            what: self.describe(),
            reason,
        };
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|error| failed(error.to_string()))?;
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        })
        .await;
        let bytes = read
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }

    fn describe(&self) -> String {
        format!("layer {} (downloaded)", self.digest)
    }
}
