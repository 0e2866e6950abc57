//! Finding the SOCI index of an image at a registry, of whichever version.

use soci_oci::{Digest, Manifest, Reference, annotations, media_types};
use soci_registry::Client;
use soci_ztoc::soci_index::SociIndex;

/// How an index was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Its digest was given.
    Given,
    /// By the annotation of the image manifest (version 2).
    Annotation,
    /// Among the referrers of the image manifest (version 1).
    Referrers,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Given => "as given",
            Self::Annotation => "version 2, named by the image manifest",
            Self::Referrers => "version 1, refers to the image manifest",
        })
    }
}

/// An index that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) digest: Digest,
    /// The size of the index itself in bytes.
    pub(crate) size: u64,
    pub(crate) how: How,
    pub(crate) index: SociIndex,
}

/// The index of an image, or why there is none.
pub(crate) async fn find_index(
    client: &Client,
    reference: &Reference,
    manifest_digest: Digest,
    manifest: &Manifest,
    given: Option<Digest>,
) -> Result<Found, String> {
    let (digest, how) = match given {
        Some(digest) => (digest, How::Given),
        None => locate(client, reference, manifest_digest, manifest).await?,
    };
    let (_, bytes) = client
        .manifest(reference, digest)
        .await
        .map_err(|e| format!("the SOCI index {digest} cannot be fetched: {e}"))?;
    let index = SociIndex::parse(&bytes).map_err(|e| format!("{digest}: {e}"))?;
    Ok(Found {
        digest,
        size: bytes.len() as u64,
        how,
        index,
    })
}

async fn locate(
    client: &Client,
    reference: &Reference,
    manifest_digest: Digest,
    manifest: &Manifest,
) -> Result<(Digest, How), String> {
    if let Some(text) = manifest.annotations.get(annotations::INDEX_DIGEST) {
        let digest = text.parse().map_err(|e| {
            format!(
                "the annotation {} of the image manifest: {e}",
                annotations::INDEX_DIGEST
            )
        })?;
        return Ok((digest, How::Annotation));
    }
    let referrers = client
        .referrers(reference, manifest_digest, Some(media_types::SOCI_INDEX_V1))
        .await
        .map_err(|e| format!("the referrers of the image cannot be listed: {e}"))?;
    match referrers.first() {
        Some(first) => Ok((first.digest, How::Referrers)),
        None => Err(
            "the image has no SOCI index (make one with `soci convert` or `soci create`)"
                .to_owned(),
        ),
    }
}
