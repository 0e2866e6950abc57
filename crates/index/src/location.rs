//! Source and destination as they stand on the command line: `docker://REFERENCE` or a path.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use soci_oci::Reference;
use soci_registry::Client;

use crate::IndexError;
use crate::sink::{ArchiveSink, DirSink, ImageSink, RegistrySink};
use crate::source::{ArchiveSource, LayoutSource, RegistrySource, SharedSource};

/// The prefix of an image at a registry.
const DOCKER: &str = "docker://";

/// Where an image is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// An OCI layout: a directory or a tar.
    Path(PathBuf),
}

impl FromStr for Source {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        match text.strip_prefix(DOCKER) {
            Some(reference) => Ok(Self::Registry(parse(reference)?)),
            None if text.is_empty() => Err(IndexError::Options(
                "source image needs to be specified".to_owned(),
            )),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl Source {
    /// The registry's image, if it is one.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference) => Some(reference),
            Self::Path(_) => None,
        }
    }

    /// Opens it; `client` is called for a registry only.
    ///
    /// # Errors
    /// When there is no image at the path, or the client cannot be made.
    pub fn open(
        &self,
        client: impl FnOnce() -> Result<Client, IndexError>,
    ) -> Result<SharedSource, IndexError> {
        Ok(match self {
            Self::Registry(reference) => {
                Arc::new(RegistrySource::new(client()?, reference.clone()))
            }
            Self::Path(path) => {
                let (path, name) = path_and_name(path);
                let found = std::fs::metadata(path).map_err(|source| {
                    if source.kind() == std::io::ErrorKind::NotFound {
                        IndexError::NoSuchPath {
                            path: path.to_owned(),
                        }
                    } else {
                        IndexError::io("open", path)(source)
                    }
                })?;
                if found.is_dir() {
                    Arc::new(LayoutSource::open(path)?.named(name))
                } else {
                    Arc::new(ArchiveSource::open(path)?.named(name))
                }
            }
        })
    }
}

/// Splits `PATH:NAME`, unless it is itself a path that exists.
fn path_and_name(path: &Path) -> (&Path, Option<&str>) {
    let split = path.to_str().and_then(|text| text.rsplit_once(':'));
    match split {
        Some((before, name)) if !path.exists() && Path::new(before).exists() => {
            (Path::new(before), Some(name))
        }
        _ => (path, None),
    }
}

/// The form of a destination that is a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A tar of an OCI layout.
    #[default]
    OciArchive,
    /// An OCI layout directory.
    OciDir,
}

/// Where an image is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A registry; the reference has a tag.
    Registry(Reference),
    /// A file or directory.
    Path(PathBuf),
}

impl FromStr for Destination {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        match text.strip_prefix(DOCKER) {
            Some(reference) => {
                if !is_tagged(reference) {
                    return Err(IndexError::Reference {
                        text: text.to_owned(),
                        reason: "the destination image must be a tagged ref of the form \
                                 \"registry/repository:tag\""
                            .to_owned(),
                    });
                }
                Ok(Self::Registry(parse(reference)?))
            }
            None if text.is_empty() => Err(IndexError::Options(
                "destination needs to be specified".to_owned(),
            )),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl Destination {
    /// The registry's image, if it is one.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference) => Some(reference),
            Self::Path(_) => None,
        }
    }

    /// Prepares to write it; `client` is called for a registry only.
    ///
    /// # Errors
    /// When it cannot be written to, or holds something already.
    pub fn create(
        &self,
        format: Format,
        client: impl FnOnce() -> Result<Client, IndexError>,
    ) -> Result<Box<dyn ImageSink>, IndexError> {
        Ok(match (self, format) {
            (Self::Registry(reference), _) => {
                Box::new(RegistrySink::create(client()?, reference.clone())?)
            }
            (Self::Path(path), Format::OciArchive) => Box::new(ArchiveSink::create(path)?),
            (Self::Path(path), Format::OciDir) => Box::new(DirSink::create(path)?),
        })
    }
}

fn parse(text: &str) -> Result<Reference, IndexError> {
    text.parse()
        .map_err(|e: soci_oci::ReferenceError| IndexError::Reference {
            text: format!("{DOCKER}{text}"),
            reason: e.to_string(),
        })
}

/// Returns whether the text itself names a tag, and no digest. (A parsed reference has a default tag.)
fn is_tagged(reference: &str) -> bool {
    !reference.contains('@')
        && reference.rsplit('/').next().is_some_and(|last| {
            last.split_once(':')
                .is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_destination_needs_a_tag_of_its_own() {
        for good in ["docker://localhost:5000/a:b", "docker://alpine:3"] {
            assert!(
                matches!(good.parse(), Ok(Destination::Registry(_))),
                "{good}"
            );
        }
        let digest = soci_oci::Digest::of(b"x");
        for bad in [
            "docker://alpine".to_owned(),
            "docker://localhost:5000/a".to_owned(),
            format!("docker://localhost:5000/a@{digest}"),
            format!("docker://localhost:5000/a:b@{digest}"),
        ] {
            let error = bad.parse::<Destination>().unwrap_err().to_string();
            assert!(error.contains("tagged"), "{error}");
        }
    }

    #[test]
    fn a_reference_without_the_prefix_is_refused_with_the_prefix_named() {
        let source: Source = "registry.example/app:1".parse().unwrap();
        let error = source
            .open(|| Err(IndexError::Options(String::new())))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("docker://registry.example/app:1"), "{error}");
        let source: Source = "/nonexistent/image".parse().unwrap();
        let error = source
            .open(|| Err(IndexError::Options(String::new())))
            .err()
            .unwrap()
            .to_string();
        assert!(!error.contains("docker://"), "{error}");
    }

    #[test]
    fn anything_without_the_prefix_is_a_path() {
        assert_eq!(
            "a/b:c".parse::<Source>().unwrap(),
            Source::Path("a/b:c".into())
        );
        assert!("".parse::<Source>().is_err());
        assert!("docker://UPPER".parse::<Source>().is_err());
    }
}
