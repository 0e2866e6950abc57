//! The look-up itself.

use std::fmt;

use bytes::Bytes;
use soci_oci::{Digest, Manifest, annotations, media_types};
use soci_registry::RegistryError;
use soci_ztoc::soci_index::SociIndex;

use crate::{ManifestSource, NoIndex, Policy};

/// Greatest size of a SOCI index in bytes; a larger one is not used, wherever it comes from.
pub const MAX_INDEX_SIZE: u64 = 4 << 20;

/// The image whose index is looked for.
#[derive(Debug, Clone, Copy)]
pub struct ImageQuery<'a> {
    /// Digest of the image manifest.
    pub digest: Digest,
    /// The manifest, if the caller has read it already.
    pub manifest: Option<&'a Manifest>,
    /// The index that the client names itself.
    pub explicit: Option<Digest>,
}

/// How an index was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// The client named its digest.
    Explicit,
    /// The annotation of the image manifest names it (version 2).
    Annotation,
    /// It is among the referrers of the image manifest (version 1).
    Referrers,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Explicit => "as given",
            Self::Annotation => "version 2, named by the image manifest",
            Self::Referrers => "version 1, refers to the image manifest",
        })
    }
}

/// An index that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its digest.
    pub digest: Digest,
    /// How it was found.
    pub by: FoundBy,
    /// The index.
    pub index: SociIndex,
    /// The index as it is stored.
    pub bytes: Bytes,
}

/// Finds the SOCI index of an image.
///
/// With a `policy` that allows no look-up no request is made. The digest that the client names comes
/// first. Next is the annotation of the image manifest; if it is dangling or names something unreadable, the image has
/// no index: the referrers are asked only if there is no annotation, and their first index is used.
///
/// # Errors
/// [`NoIndex`] says whether the image has no index, or the look-up is disabled or failed.
pub async fn find(
    source: &dyn ManifestSource,
    image: ImageQuery<'_>,
    policy: Policy,
) -> Result<Found, NoIndex> {
    let (digest, by) = locate(source, image, policy).await?;
    let bytes = source
        .index(digest)
        .await
        .map_err(|error| NoIndex::unreadable(format!("SOCI index {digest}"), error))?;
    let unusable = || format!("unusable SOCI index {digest}");
    if bytes.len() as u64 > MAX_INDEX_SIZE {
        let error = format!("it is larger than the limit of {MAX_INDEX_SIZE} bytes");
        return Err(NoIndex::not_indexed(unusable(), error));
    }
    let index =
        SociIndex::parse(&bytes).map_err(|error| NoIndex::not_indexed(unusable(), error))?;
    Ok(Found {
        digest,
        by,
        index,
        bytes,
    })
}

async fn locate(
    source: &dyn ManifestSource,
    image: ImageQuery<'_>,
    policy: Policy,
) -> Result<(Digest, FoundBy), NoIndex> {
    if !policy.allows_look_up(image.explicit.is_some()) {
        return Err(NoIndex::Disabled);
    }
    if let Some(explicit) = image.explicit {
        return Ok((explicit, FoundBy::Explicit));
    }
    let v2 = if policy.soci_v2 {
        if let Some(digest) = annotated(source, image).await? {
            return Ok((digest, FoundBy::Annotation));
        }
        let key = annotations::INDEX_DIGEST;
        format!("the image manifest has no annotation {key}")
    } else {
        "[pull_modes.soci_v2] is disabled".to_owned()
    };
    let v1 = if policy.soci_v1 {
        let referring = referring_index(source, image.digest).await;
        let object = || format!("referrers of {}", image.digest);
        if let Some(digest) = referring.map_err(|error| NoIndex::unreadable(object(), error))? {
            return Ok((digest, FoundBy::Referrers));
        }
        "no SOCI index v1 refers to the image manifest"
    } else {
        "[pull_modes.soci_v1] is disabled"
    };
    Err(NoIndex::NotIndexed {
        reason: format!("{v2}; {v1}"),
        source: None,
    })
}

/// Reads the annotation of the image manifest that names an index of version 2.
async fn annotated(
    source: &dyn ManifestSource,
    image: ImageQuery<'_>,
) -> Result<Option<Digest>, NoIndex> {
    let read;
    let manifest = match image.manifest {
        Some(manifest) => manifest,
        None => {
            read = read_manifest(source, image.digest).await?;
            &read
        }
    };
    manifest.soci_index().transpose().map_err(|error| {
        let key = annotations::INDEX_DIGEST;
        NoIndex::not_indexed(
            format!("malformed annotation {key} of the image manifest"),
            error,
        )
    })
}

async fn read_manifest(source: &dyn ManifestSource, digest: Digest) -> Result<Manifest, NoIndex> {
    let object = || format!("image manifest {digest}");
    let bytes = source
        .manifest(digest)
        .await
        .map_err(|error| NoIndex::unreadable(object(), error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| NoIndex::not_indexed(format!("malformed {}", object()), error))
}

/// Returns the SOCI index of version 1 of an image: the first that refers to its manifest.
///
/// # Errors
/// The registry failed.
pub async fn referring_index(
    source: &dyn ManifestSource,
    manifest: Digest,
) -> Result<Option<Digest>, RegistryError> {
    let kind = media_types::SOCI_INDEX_V1;
    let referrers = source.referrers(manifest, kind).await?;
    Ok(referrers.first().map(|referrer| referrer.digest))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use soci_layer::LayerRefusal;
    use soci_oci::Descriptor;
    use soci_registry::testing::MemoryBlob;

    use super::*;

    /// What a kind of image has at its registry.
    #[derive(Clone, Copy, Default)]
    struct Image {
        annotation: Option<&'static str>,
        referrer: bool,
        index: Option<&'static [u8]>,
        /// Makes every request fail.
        failure: Option<fn() -> RegistryError>,
    }

    const INDEX: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{"mediaType":"application/vnd.amazon.soci.index.v2+json","size":2,
        "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}"#;

    #[async_trait]
    impl ManifestSource for Image {
        async fn manifest(&self, _: Digest) -> Result<Bytes, RegistryError> {
            self.failure.map_or(Ok(()), |failure| Err(failure()))?;
            let mut annotations = String::new();
            if let Some(value) = self.annotation {
                let value = value.replace("INDEX", &Digest::of(INDEX).to_string());
                annotations = format!(
                    r#","annotations":{{"{}":"{value}"}}"#,
                    annotations::INDEX_DIGEST
                );
            }
            let config = serde_json::to_string(&Descriptor::of("config", b"{}")).unwrap();
            let text =
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]{annotations}}}"#);
            Ok(text.into())
        }

        async fn index(&self, _: Digest) -> Result<Bytes, RegistryError> {
            self.failure.map_or(Ok(()), |failure| Err(failure()))?;
            let index = self.index.ok_or_else(|| MemoryBlob::status(404))?;
            Ok(Bytes::from_static(index))
        }

        async fn referrers(&self, _: Digest, _: &str) -> Result<Vec<Descriptor>, RegistryError> {
            self.failure.map_or(Ok(()), |failure| Err(failure()))?;
            let index = Descriptor::of(media_types::OCI_MANIFEST, INDEX);
            Ok(self.referrer.then_some(index).into_iter().collect())
        }
    }

    /// The referrers of a manifest.
    struct Referrers(Vec<Descriptor>);

    #[async_trait]
    impl ManifestSource for Referrers {
        async fn manifest(&self, _: Digest) -> Result<Bytes, RegistryError> {
            Err(MemoryBlob::status(404))
        }

        async fn referrers(&self, _: Digest, kind: &str) -> Result<Vec<Descriptor>, RegistryError> {
            assert_eq!(kind, media_types::SOCI_INDEX_V1);
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn of_several_indexes_that_refer_to_an_image_the_first_is_used() {
        let of = |bytes| Descriptor::of(media_types::OCI_MANIFEST, bytes);
        let indexes = [of(b"second".as_slice()), of(b"first"), of(b"third")];
        let found = |count| {
            let referrers = Referrers(indexes.iter().take(count).cloned().collect());
            async move { referring_index(&referrers, Digest::of(b"manifest")).await }
        };
        assert_eq!(found(0).await.unwrap(), None);
        assert_eq!(found(1).await.unwrap(), Some(indexes[0].digest));
        assert_eq!(found(3).await.unwrap(), Some(indexes[0].digest));
    }

    fn failing(failure: fn() -> RegistryError) -> Image {
        Image {
            failure: Some(failure),
            ..Image::default()
        }
    }

    #[tokio::test]
    async fn each_configuration_finds_the_index_that_each_kind_of_image_has() {
        let (none, annotated, index) = (Image::default(), Some("INDEX"), Some(INDEX));
        let v1 = Image {
            referrer: true,
            index,
            ..none
        };
        let v2 = Image {
            annotation: annotated,
            index,
            ..none
        };
        let both = Image {
            referrer: true,
            ..v2
        };
        let dangling = Image {
            index: None,
            ..both
        };
        let unreadable = Image {
            index: Some(b"{"),
            ..both
        };
        let malformed = Image {
            annotation: Some("sha256:no"),
            ..both
        };
        // With v1 and v2 disabled, with v1, with v2, with both; then with an explicit digest.
        let cases = [
            (
                "plain",
                none,
                ["disabled", "no-index", "no-index", "no-index"],
                "no-index",
            ),
            (
                "v1",
                v1,
                ["disabled", "version 1", "no-index", "version 1"],
                "as given",
            ),
            (
                "v2",
                v2,
                ["disabled", "no-index", "version 2", "version 2"],
                "as given",
            ),
            (
                "both",
                both,
                ["disabled", "version 1", "version 2", "version 2"],
                "as given",
            ),
            (
                "dangling",
                dangling,
                ["disabled", "no-index", "no-index", "no-index"],
                "no-index",
            ),
            (
                "unreadable",
                unreadable,
                ["disabled", "no-index", "no-index", "no-index"],
                "no-index",
            ),
            (
                "malformed",
                malformed,
                ["disabled", "version 1", "no-index", "no-index"],
                "as given",
            ),
            (
                "401",
                failing(|| MemoryBlob::status(401)),
                ["disabled", "failing", "failing", "failing"],
                "failing",
            ),
            (
                "500",
                failing(|| MemoryBlob::status(500)),
                ["disabled", "unreachable", "unreachable", "unreachable"],
                "unreachable",
            ),
            (
                "closed port",
                failing(MemoryBlob::unreachable),
                ["disabled", "unreachable", "unreachable", "unreachable"],
                "unreachable",
            ),
        ];
        let outcome = async |image: &Image, explicit, soci_v1, soci_v2, explicit_index| {
            let digest = Digest::of(b"manifest");
            let query = ImageQuery {
                digest,
                manifest: None,
                explicit,
            };
            let policy = Policy {
                soci_v1,
                soci_v2,
                explicit_index,
            };
            match find(image, query, policy).await {
                Ok(found) => found.by.to_string(),
                Err(none) => match LayerRefusal::from(none) {
                    LayerRefusal::IndexUnavailable {
                        unreachable: true, ..
                    } => "unreachable".to_owned(),
                    LayerRefusal::IndexUnavailable { .. } => "failing".to_owned(),
                    refusal => refusal.code().to_owned(),
                },
            }
        };
        for (kind, image, expected, explicit) in cases {
            let policies = [(false, false), (true, false), (false, true), (true, true)];
            for ((v1, v2), expected) in policies.into_iter().zip(expected) {
                for always in [false, true] {
                    let case = format!("{kind}, v1 {v1}, v2 {v2}, explicit_index {always}");
                    let found = outcome(&image, None, v1, v2, always).await;
                    assert!(found.starts_with(expected), "{case}: {found}");
                    let given = outcome(&image, Some(Digest::of(INDEX)), v1, v2, always).await;
                    let explicit = match v1 || v2 || always {
                        true => explicit,
                        false => "disabled",
                    };
                    assert_eq!(given, explicit, "{case}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_index_over_4_mib_is_not_used() {
        let most = usize::try_from(MAX_INDEX_SIZE).unwrap();
        let before = std::str::from_utf8(INDEX).unwrap().trim_end_matches('}');
        let valid = |length: usize| {
            let start = format!(r#"{before},"annotations":{{"padding":""#);
            let text = format!("{start}{}\"}}}}", "x".repeat(length - start.len() - 3));
            &*text.leak()
        };
        for (length, used) in [(most, true), (most + 1, false), (5 << 20, false)] {
            let source = Image {
                annotation: Some("INDEX"),
                index: Some(valid(length).as_bytes()),
                ..Image::default()
            };
            let image = ImageQuery {
                digest: Digest::of(b"m"),
                manifest: None,
                explicit: None,
            };
            let found = find(&source, image, Policy::ALL).await;
            if used {
                found.unwrap();
                continue;
            }
            let refusal = LayerRefusal::from(found.unwrap_err());
            assert_eq!(refusal.code(), "no-index");
            let text = soci_errors::chain(&refusal);
            // Before it is parsed: the parser has a limit of its own, and other words for it.
            let part = format!("larger than the limit of {MAX_INDEX_SIZE} bytes");
            assert!(text.contains(&part), "{text}");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_what_was_looked_for_and_each_cause() {
        let image = ImageQuery {
            digest: Digest::of(b"m"),
            manifest: None,
            explicit: None,
        };
        let text = async |source: Image, policy| {
            let none = find(&source, image, policy).await.unwrap_err();
            soci_errors::chain(&LayerRefusal::from(none))
        };
        let v2 = Policy {
            soci_v1: false,
            soci_v2: true,
            explicit_index: false,
        };
        let plain = text(Image::default(), v2).await;
        for part in [
            annotations::INDEX_DIGEST,
            "[pull_modes.soci_v1] is disabled",
        ] {
            assert!(plain.contains(part), "{plain}");
        }
        let dangling = Image {
            annotation: Some("INDEX"),
            ..Image::default()
        };
        let dangling = text(dangling, v2).await;
        for part in ["missing SOCI index", "404"] {
            assert!(dangling.contains(part), "{dangling}");
        }
        let failed = text(failing(|| MemoryBlob::status(401)), v2).await;
        for part in ["cannot read image manifest", "401"] {
            assert!(failed.contains(part), "{failed}");
        }
    }
}
