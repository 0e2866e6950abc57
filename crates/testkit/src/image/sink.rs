//! Where a layer's tar goes: compressed or not, both digests taken on the way.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use soci_oci::{Descriptor, Digest, Hasher, media_types};

use super::builder::OciLayer;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCompression {
    /// gzip at a level of 0 to 9.
    Gzip {
        /// The level.
        level: u32,
        /// A new gzip member begins after this many bytes of the tar; `None`: one member.
        member_size: Option<u64>,
    },
    /// A plain tar.
    Plain,
}

impl Default for LayerCompression {
    fn default() -> Self {
        Self::Gzip {
            level: 6,
            member_size: None,
        }
    }
}

/// Takes a tar stream and writes it as a blob of an OCI layout.
pub struct LayerSink {
    stage: Stage,
    compression: LayerCompression,
    tar: Hasher,
    tar_size: u64,
    in_member: u64,
    temporary: PathBuf,
    blobs: PathBuf,
}

enum Stage {
    Gzip(Box<GzEncoder<Blob>>),
    Plain(Blob),
    /// Only between two members.
    Moving,
}

struct Blob {
    file: BufWriter<File>,
    hasher: Hasher,
    size: u64,
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl LayerSink {
    /// A sink that makes a blob below `layout`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(layout: &Path, compression: LayerCompression) -> Result<Self> {
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
        let temporary = blobs.join(format!("new-{:?}", std::thread::current().id()));
        let file =
            File::create(&temporary).with_context(|| format!("make {}", temporary.display()))?;
        let blob = Blob {
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: Hasher::new(),
            size: 0,
        };
        let stage = match compression {
            LayerCompression::Gzip { level, .. } => Stage::Gzip(encoder(blob, level)),
            LayerCompression::Plain => Stage::Plain(blob),
        };
        Ok(Self {
            stage,
            compression,
            tar: Hasher::new(),
            tar_size: 0,
            in_member: 0,
            temporary,
            blobs,
        })
    }

    /// Ends the blob and puts it under its digest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<OciLayer> {
        let (mut blob, media_type) = match self.stage {
            Stage::Gzip(encoder) => (encoder.finish()?, media_types::OCI_LAYER_GZIP),
            Stage::Plain(blob) => (blob, media_types::OCI_LAYER),
            Stage::Moving => anyhow::bail!("a write to the layer failed before"),
        };
        blob.flush()?;
        let digest = blob.hasher.finish();
        std::fs::rename(&self.temporary, self.blobs.join(digest.hex()))
            .context("name a layer blob")?;
        Ok(OciLayer {
            descriptor: Descriptor::new(media_type, digest, blob.size),
            diff_id: self.tar.finish(),
            tar_size: self.tar_size,
        })
    }

    fn next_member(&mut self, level: u32) -> io::Result<()> {
        let Stage::Gzip(encoder) = std::mem::replace(&mut self.stage, Stage::Moving) else {
            return Ok(());
        };
        self.stage = Stage::Gzip(self::encoder(encoder.finish()?, level));
        self.in_member = 0;
        Ok(())
    }
}

/// A gzip writer whose header holds no time, so that equal contents give equal blobs.
fn encoder(blob: Blob, level: u32) -> Box<GzEncoder<Blob>> {
    Box::new(GzEncoder::new(blob, flate2::Compression::new(level.min(9))))
}

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = bytes.len();
        if let LayerCompression::Gzip {
            level,
            member_size: Some(size),
        } = self.compression
        {
            if self.in_member >= size.max(1) {
                self.next_member(level)?;
            }
            let room = size.max(1) - self.in_member;
            count = usize::try_from(room).unwrap_or(usize::MAX).min(count);
        }
        let bytes = &bytes[..count];
        match &mut self.stage {
            Stage::Gzip(encoder) => encoder.write_all(bytes)?,
            Stage::Plain(blob) => blob.write_all(bytes)?,
            Stage::Moving => return Err(io::Error::other("a write failed before")),
        }
        self.tar.update(bytes);
        self.tar_size += count as u64;
        self.in_member += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a small blob under its digest.
pub(crate) fn put_blob(layout: &Path, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    std::fs::write(blobs.join(digest.hex()), bytes).context("write a blob")?;
    Ok(digest)
}
