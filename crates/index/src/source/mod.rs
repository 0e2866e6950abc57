//! Where an image is read from: an OCI layout directory, an OCI layout tar, or a registry.

mod archive;
mod layout;
mod registry;
mod stream;

use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use soci_oci::{Descriptor, Digest, Index, Reference};

pub use self::archive::ArchiveSource;
pub use self::layout::LayoutSource;
pub use self::registry::RegistrySource;
pub use self::stream::StreamReader;

use crate::IndexError;

/// No manifest, index or configuration that we take in whole is larger than this (bytes).
pub const MAX_DOCUMENT: u64 = 16 << 20;

/// What an image source points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// One manifest or index, to be read through [`ImageSource::bytes`].
    Descriptor(Descriptor),
    /// The source's own list of manifests (an `index.json` with several entries).
    List(Index),
}

/// Reads the blobs of one image.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The source's name for messages, without secrets.
    fn describe(&self) -> String;

    /// The image's top.
    ///
    /// # Errors
    /// When the source is not there or is not an image.
    async fn root(&self) -> Result<Root, IndexError>;

    /// Returns whether the blob exists. For a registry it is assumed to.
    ///
    /// # Errors
    /// When the source cannot be asked.
    async fn contains(&self, descriptor: &Descriptor) -> Result<bool, IndexError>;

    /// A manifest or index, whole, size and digest checked, at most [`MAX_DOCUMENT`] bytes.
    ///
    /// # Errors
    /// When it is missing, damaged or too large.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        check_document_size(descriptor, &self.describe())?;
        self.bytes(descriptor).await
    }

    /// A blob, whole, size and digest checked: for configurations and zTOCs, not for layers.
    ///
    /// # Errors
    /// When it is missing or damaged.
    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError>;

    /// A reader of the whole blob for a thread that may block. The length is what the descriptor
    /// says; checking the digest is the caller's.
    ///
    /// # Errors
    /// When the blob is missing or of another size.
    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError>;

    /// The whole blob as a stream, for an upload. The digest is checked by the receiver.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, IndexError>;

    /// A zTOC that is known for a layer at this span size although the image does not list it; its
    /// bytes are to be had through [`bytes`](Self::bytes), or it is built again.
    fn known_ztoc(&self, layer: Digest, span_size: u64) -> Option<Descriptor> {
        let _ = (layer, span_size);
        None
    }

    /// Whether the source may hold a part of an image only: what it lacks was not pulled.
    fn holds_parts(&self) -> bool {
        false
    }

    /// The repository that the image comes from, when it comes from a registry: its blobs can be
    /// mounted into another repository of the same registry.
    fn repository(&self) -> Option<&Reference> {
        None
    }
}

/// A shared image source.
pub type SharedSource = Arc<dyn ImageSource>;

/// Checks a blob that was read whole.
///
/// # Errors
/// When its length or digest is not what the descriptor says.
pub fn verify(bytes: Bytes, descriptor: &Descriptor, place: &str) -> Result<Bytes, IndexError> {
    if bytes.len() as u64 != descriptor.size {
        return Err(IndexError::Size {
            digest: descriptor.digest,
            place: place.to_owned(),
            expected: descriptor.size,
            found: bytes.len() as u64,
        });
    }
    let found = Digest::of(&bytes);
    if found != descriptor.digest {
        return Err(IndexError::Digest {
            expected: descriptor.digest,
            found,
            place: place.to_owned(),
        });
    }
    Ok(bytes)
}

/// Refuses a document that is larger than [`MAX_DOCUMENT`] by its descriptor.
pub(crate) fn check_document_size(descriptor: &Descriptor, place: &str) -> Result<(), IndexError> {
    if descriptor.size > MAX_DOCUMENT {
        return Err(IndexError::Document {
            what: "document",
            digest: descriptor.digest,
            place: place.to_owned(),
            reason: format!(
                "its size of {} bytes is above the limit of {MAX_DOCUMENT}",
                descriptor.size
            ),
        });
    }
    Ok(())
}

/// The name of an image in a layout.
fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    let name = descriptor.annotations.get(soci_oci::annotations::REF_NAME);
    name.map(String::as_str)
}

/// The top of an image from the bytes of an `index.json`, or of the image with this name in it.
pub(crate) fn root_of_index_json(bytes: &[u8], name: Option<&str>) -> Result<Root, String> {
    let mut index: Index =
        serde_json::from_slice(bytes).map_err(|e| format!("its index.json cannot be read: {e}"))?;
    if let Some(name) = name {
        index.manifests.retain(|d| ref_name(d) == Some(name));
        if index.manifests.is_empty() {
            return Err(format!(
                "its index.json lists no image with the name {name:?}"
            ));
        }
    }
    match index.manifests.as_slice() {
        [] => Err("its index.json lists no manifest".to_owned()),
        [_] => Ok(Root::Descriptor(index.manifests.swap_remove(0))),
        many => {
            let is_index = |d: &&Descriptor| soci_oci::media_types::is_index(&d.media_type);
            let indexes: Vec<&Descriptor> = many.iter().filter(is_index).collect();
            let an_image = many
                .iter()
                .any(|d| soci_oci::media_types::is_manifest(&d.media_type));
            match indexes.as_slice() {
                // Images of several platforms, and perhaps an index beside them.
                _ if an_image => Ok(Root::List(index)),
                [one] => Ok(Root::Descriptor((*one).clone())),
                [] => Ok(Root::List(index)),
                several => Err(format!(
                    "its index.json lists {} image indexes ({}); name one of them: PATH:NAME",
                    several.len(),
                    several
                        .iter()
                        .map(|d| ref_name(d).unwrap_or("without a name"))
                        .collect::<Vec<_>>()
                        .join(", ")
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_json_is_one_image_or_an_error() {
        let digest = Digest::of(b"x");
        let entry = |media_type: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1}}"#)
        };
        let json = |entries: &[String]| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                entries.join(",")
            )
        };
        let manifest = entry(soci_oci::media_types::OCI_MANIFEST);
        let index = entry(soci_oci::media_types::OCI_INDEX);
        let read = |entries: &[String]| root_of_index_json(json(entries).as_bytes(), None);
        assert!(matches!(
            read(std::slice::from_ref(&manifest)),
            Ok(Root::Descriptor(_))
        ));
        assert!(matches!(
            read(std::slice::from_ref(&index)),
            Ok(Root::Descriptor(_))
        ));
        assert!(matches!(
            read(&[manifest.clone(), manifest.clone()]),
            Ok(Root::List(_))
        ));
        assert!(matches!(
            read(&[manifest, index.clone()]),
            Ok(Root::List(_))
        ));
        let named = |name: &str| {
            index.replace(
                "\"size\"",
                &format!(
                    r#""annotations":{{"org.opencontainers.image.ref.name":"{name}"}},"size""#
                ),
            )
        };
        let two = json(&[named("one"), named("two")]);
        let several = root_of_index_json(two.as_bytes(), None).unwrap_err();
        assert!(several.contains("one, two"), "{several}");
        assert!(matches!(
            root_of_index_json(two.as_bytes(), Some("two")),
            Ok(Root::Descriptor(_))
        ));
        assert!(root_of_index_json(two.as_bytes(), Some("three")).is_err());
        assert!(read(&[]).unwrap_err().contains("no manifest"));
        assert!(root_of_index_json(b"{", None).is_err());
    }
}
