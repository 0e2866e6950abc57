//! An image in a tar of an OCI layout (`oci-archive`, and what `docker save` writes since v25).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use soci_oci::{Descriptor, Digest};

use super::{ImageSource, MAX_DOCUMENT, Root, root_of_index_json, verify};
use crate::IndexError;

/// Reads a tar of an OCI layout in place: its entries are located once, nothing is unpacked.
#[derive(Debug)]
pub struct ArchiveSource {
    path: PathBuf,
    file: Arc<File>,
    blobs: BTreeMap<Digest, Extent>,
    index: Extent,
    /// The image that is meant, if the archive has several.
    name: Option<String>,
}

/// Position of an entry's data in the archive, in bytes.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    size: u64,
}

impl ArchiveSource {
    /// Opens the archive and locates its entries.
    ///
    /// # Errors
    /// When the file is not a tar of an OCI layout.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let not = |reason: String| IndexError::NotALayout {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(IndexError::io("open", path))?;
        let length = file.metadata().map_err(IndexError::io("read", path))?.len();
        if let Some(packed) = compressed(&file).map_err(IndexError::io("read", path))? {
            return Err(not(format!(
                "it is compressed with {packed}; decompress it first"
            )));
        }
        let mut blobs = BTreeMap::new();
        let mut index = None;
        let mut docker = false;
        let mut archive = tar::Archive::new(&file);
        let entries = archive
            .entries_with_seek()
            .map_err(IndexError::io("read", path))?;
        // Where the entry before ends, which is where a damaged one begins.
        let mut seen = 0;
        for entry in entries {
            // The error of the tar reader repeats raw bytes of what it takes for a header.
            let entry = entry.map_err(|_| {
                not(if seen == 0 {
                    "it is neither a directory nor a tar archive".to_owned()
                } else {
                    format!("its tar structure is damaged after byte {seen}")
                })
            })?;
            let extent = Extent {
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            seen = extent.offset.saturating_add(extent.size);
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = entry.path_bytes();
            let name = String::from_utf8_lossy(&name);
            let name = name.trim_start_matches("./").trim_start_matches('/');
            let inside = extent
                .offset
                .checked_add(extent.size)
                .is_some_and(|end| end <= length);
            if !inside {
                return Err(not(format!(
                    "it ends in the middle of {name}: it is truncated"
                )));
            }
            match name {
                "index.json" => index = Some(extent),
                "manifest.json" => docker = true,
                _ => {
                    if let Some(hex) = name.strip_prefix("blobs/sha256/")
                        && let Ok(digest) = format!("sha256:{hex}").parse()
                    {
                        blobs.insert(digest, extent);
                    }
                }
            }
        }
        let index = index.ok_or_else(|| {
            not(if docker {
                "it has manifest.json but no index.json (`docker save` of a Docker before v25?); \
                 make an OCI archive of it, for example with `skopeo copy docker-archive:… \
                 oci-archive:…`"
                    .to_owned()
            } else {
                "it has no index.json".to_owned()
            })
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            blobs,
            index,
            name: None,
        })
    }

    /// Chooses the image with this name.
    #[must_use]
    pub fn named(self, name: Option<&str>) -> Self {
        Self {
            name: name.map(ToOwned::to_owned),
            ..self
        }
    }

    fn reader(&self, descriptor: &Descriptor) -> Result<ExtentReader, IndexError> {
        let extent = *self
            .blobs
            .get(&descriptor.digest)
            .ok_or(IndexError::MissingBlob {
                digest: descriptor.digest,
                place: self.describe(),
            })?;
        if extent.size != descriptor.size {
            return Err(IndexError::Size {
                digest: descriptor.digest,
                place: self.describe(),
                expected: descriptor.size,
                found: extent.size,
            });
        }
        Ok(ExtentReader {
            file: Arc::clone(&self.file),
            offset: extent.offset,
            left: extent.size,
        })
    }
}

/// Returns whether a file is compressed, by its first bytes (RFC 1952, RFC 8878).
fn compressed(file: &File) -> io::Result<Option<&'static str>> {
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0)?;
    Ok(match magic.get(..read).unwrap_or_default() {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        _ => None,
    })
}

/// Reads one entry without moving a shared file offset.
struct ExtentReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for ExtentReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let Some(buf) = buf.get_mut(..want) else {
            return Ok(0);
        };
        let read = self.file.read_at(buf, self.offset)?;
        self.offset = self.offset.saturating_add(read as u64);
        self.left = self.left.saturating_sub(read as u64);
        if read == 0 && self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }
}

#[async_trait]
impl ImageSource for ArchiveSource {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    async fn root(&self) -> Result<Root, IndexError> {
        let not = |reason| IndexError::NotALayout {
            path: self.path.clone(),
            reason,
        };
        if self.index.size > MAX_DOCUMENT {
            return Err(not(format!(
                "its index.json is larger than {MAX_DOCUMENT} bytes"
            )));
        }
        let mut bytes = Vec::new();
        ExtentReader {
            file: Arc::clone(&self.file),
            offset: self.index.offset,
            left: self.index.size,
        }
        .read_to_end(&mut bytes)
        .map_err(IndexError::io("read", &self.path))?;
        root_of_index_json(&bytes, self.name.as_deref()).map_err(not)
    }

    async fn contains(&self, descriptor: &Descriptor) -> Result<bool, IndexError> {
        Ok(self.blobs.contains_key(&descriptor.digest))
    }

    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        let mut bytes = Vec::new();
        self.reader(descriptor)?
            .read_to_end(&mut bytes)
            .map_err(IndexError::io("read", &self.path))?;
        verify(bytes.into(), descriptor, &self.describe())
    }

    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError> {
        Ok(Box::new(self.reader(descriptor)?))
    }

    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        const CHUNK: u64 = 256 << 10;
        let reader = self.reader(descriptor)?;
        Ok(
            futures::stream::try_unfold(reader, |mut reader| async move {
                if reader.left == 0 {
                    return Ok(None);
                }
                soci_task::blocking(move || {
                    let want = usize::try_from(reader.left.min(CHUNK)).unwrap_or(0);
                    let mut chunk = BytesMut::zeroed(want);
                    reader.read_exact(&mut chunk)?;
                    Ok(Some((chunk.freeze(), reader)))
                })
                .await
            })
            .boxed(),
        )
    }
}
