//! An image in an OCI layout directory (OCI image spec, `image-layout.md`).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use soci_oci::{Descriptor, Digest};

use super::{ImageSource, Root, root_of_index_json, verify};
use crate::IndexError;

/// Reads an OCI layout directory.
#[derive(Debug)]
pub struct LayoutSource {
    dir: PathBuf,
    /// The image that is meant, if the layout has several.
    name: Option<String>,
}

impl LayoutSource {
    /// Opens the layout.
    ///
    /// # Errors
    /// When the directory is not an OCI layout.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let not = |reason: &str| IndexError::NotALayout {
            path: dir.to_owned(),
            reason: reason.to_owned(),
        };
        let has = |name: &str| {
            dir.join(name)
                .try_exists()
                .map_err(IndexError::io("read", dir))
        };
        if !has("index.json")? {
            return Err(not(if has("manifest.json")? {
                "it has manifest.json but no index.json (an unpacked `docker save` archive of an \
                 old Docker?); make an OCI layout of it, for example with `skopeo copy`"
            } else {
                "it has no index.json"
            }));
        }
        Ok(Self {
            dir: dir.to_owned(),
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

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs").join("sha256").join(digest.hex())
    }

    fn file(&self, descriptor: &Descriptor) -> Result<File, IndexError> {
        let path = self.path(descriptor.digest);
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => IndexError::MissingBlob {
                digest: descriptor.digest,
                place: self.describe(),
            },
            _ => IndexError::io("open", &path)(e),
        })?;
        let found = file
            .metadata()
            .map_err(IndexError::io("read", &path))?
            .len();
        if found != descriptor.size {
            return Err(IndexError::Size {
                digest: descriptor.digest,
                place: self.describe(),
                expected: descriptor.size,
                found,
            });
        }
        Ok(file)
    }
}

#[async_trait]
impl ImageSource for LayoutSource {
    fn describe(&self) -> String {
        self.dir.display().to_string()
    }

    async fn root(&self) -> Result<Root, IndexError> {
        let path = self.dir.join("index.json");
        let bytes = std::fs::read(&path).map_err(IndexError::io("read", &path))?;
        root_of_index_json(&bytes, self.name.as_deref()).map_err(|reason| IndexError::NotALayout {
            path: self.dir.clone(),
            reason,
        })
    }

    async fn contains(&self, descriptor: &Descriptor) -> Result<bool, IndexError> {
        let path = self.path(descriptor.digest);
        path.try_exists().map_err(IndexError::io("read", &path))
    }

    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        let mut bytes = Vec::new();
        self.file(descriptor)?
            .read_to_end(&mut bytes)
            .map_err(IndexError::io("read", &self.path(descriptor.digest)))?;
        verify(bytes.into(), descriptor, &self.describe())
    }

    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError> {
        Ok(Box::new(self.file(descriptor)?))
    }

    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        let file = tokio::fs::File::from_std(self.file(descriptor)?);
        Ok(tokio_util::io::ReaderStream::with_capacity(file, 256 << 10).boxed())
    }
}
