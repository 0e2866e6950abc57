//! An OCI layout directory as destination.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use soci_oci::{Descriptor, Digest};
use tempfile::TempDir;

use super::{BlobWriter, ImageSink, OCI_LAYOUT, index_json};
use crate::IndexError;

/// Writes an OCI layout directory: in a hidden folder beside the destination, renamed at the end.
#[derive(Debug)]
pub struct DirSink {
    destination: PathBuf,
    temporary: TempDir,
}

impl DirSink {
    /// Prepares to write `destination`, which must not exist or be an empty directory.
    ///
    /// # Errors
    /// When it is something else, or its parent cannot be written.
    pub fn create(destination: &Path) -> Result<Self, IndexError> {
        match fs::read_dir(destination) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(IndexError::DestinationNotEmpty {
                        path: destination.to_owned(),
                    });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(IndexError::Destination {
                    path: destination.to_owned(),
                    reason: "it exists and is not a directory (--format oci-archive writes a file)",
                });
            }
            Err(e) => return Err(IndexError::io("read", destination)(e)),
        }
        let (parent, prefix) = beside(destination)?;
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .map_err(IndexError::io("create a folder in", &parent))?;
        let blobs = temporary.path().join("blobs").join("sha256");
        fs::create_dir_all(&blobs).map_err(IndexError::io("create", &blobs))?;
        Ok(Self {
            destination: destination.to_owned(),
            temporary,
        })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.temporary
            .path()
            .join("blobs")
            .join("sha256")
            .join(digest.hex())
    }

    fn begin(&self, digest: Digest) -> Result<DirBlob, IndexError> {
        let path = self.path(digest);
        let partial = path.with_extension("part");
        let file = File::create(&partial).map_err(IndexError::io("create", &partial))?;
        Ok(DirBlob {
            file,
            partial,
            path,
        })
    }
}

/// The folder that holds `destination` (made if needed) and the prefix of a hidden name in it.
pub(super) fn beside(destination: &Path) -> Result<(PathBuf, String), IndexError> {
    let Some(name) = destination.file_name() else {
        return Err(IndexError::Destination {
            path: destination.to_owned(),
            reason: "it has no name of its own",
        });
    };
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(IndexError::io("create", &parent))?;
    Ok((parent, format!(".{}.partial-", name.to_string_lossy())))
}

struct DirBlob {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl Write for DirBlob {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter for DirBlob {
    fn commit(self: Box<Self>) -> Result<(), IndexError> {
        fs::rename(&self.partial, &self.path).map_err(IndexError::io("rename", &self.partial))
    }
}

#[async_trait]
impl ImageSink for DirSink {
    fn describe(&self) -> String {
        self.destination.display().to_string()
    }

    fn tee(&self, blob: &Descriptor) -> Result<Option<Box<dyn BlobWriter>>, IndexError> {
        Ok(Some(Box::new(self.begin(blob.digest)?)))
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let path = self.path(blob.digest);
        fs::write(&path, bytes).map_err(IndexError::io("write", &path))
    }

    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.put_blob(index, bytes).await?;
        for (name, content) in [
            ("oci-layout", OCI_LAYOUT),
            ("index.json", &index_json(index)?),
        ] {
            let path = self.temporary.path().join(name);
            fs::write(&path, content).map_err(IndexError::io("write", &path))?;
        }
        // Replaces an empty directory, fails on anything that was created there in between.
        fs::rename(self.temporary.path(), &self.destination).map_err(IndexError::io(
            "rename the finished layout to",
            &self.destination,
        ))?;
        let _ = self.temporary.keep();
        Ok(())
    }
}
