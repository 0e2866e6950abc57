//! A profile beside its image: an artifact at the registry that refers to the image's manifest.

use soci_oci::{Descriptor, Manifest, media_types};

use crate::format::{MAX_SIZE, ProfileError};

/// The type of the artifact, and of the profile in it.
pub const MEDIA_TYPE: &str = "application/vnd.soci-snapshotter.profile.v2+json";
/// The annotation that says when an artifact was made.
const CREATED: &str = "org.opencontainers.image.created";

/// The manifest of the artifact: its one layer is the profile. Its configuration is `{}`.
#[must_use]
pub fn artifact_manifest(subject: &Descriptor, profile: &[u8], created: &str) -> Manifest {
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: media_types::OCI_MANIFEST.to_owned(),
        artifact_type: Some(MEDIA_TYPE.to_owned()),
        config: Descriptor::of(media_types::OCI_EMPTY, b"{}"),
        layers: vec![Descriptor::of(MEDIA_TYPE, profile)],
        subject: Some(Descriptor::new(
            subject.media_type.clone(),
            subject.digest,
            subject.size,
        )),
        annotations: std::collections::BTreeMap::new(),
    };
    let annotations = &mut manifest.annotations;
    annotations.insert(CREATED.to_owned(), created.to_owned());
    manifest
}

/// The newest of the profiles that refer to an image, as they say themselves; of several the first.
#[must_use]
pub fn newest(referrers: &[Descriptor]) -> Option<&Descriptor> {
    let mut newest: Option<&Descriptor> = None;
    for referrer in referrers {
        let created = |one: &Descriptor| one.annotation(CREATED).unwrap_or("").to_owned();
        if newest.is_none_or(|known| created(known) < created(referrer)) {
            newest = Some(referrer);
        }
    }
    newest
}

/// The descriptor of the profile that an artifact holds.
///
/// # Errors
/// The manifest is malformed, or is not that of a profile.
pub fn profile_of(manifest: &[u8]) -> Result<Descriptor, ProfileError> {
    let manifest: Manifest = serde_json::from_slice(manifest)?;
    let profile = manifest
        .layers
        .into_iter()
        .find(|layer| layer.media_type == MEDIA_TYPE);
    match profile {
        Some(profile) if profile.size > MAX_SIZE => {
            Err(ProfileError::TooLarge { size: profile.size })
        }
        Some(profile) => Ok(profile),
        None => Err(ProfileError::Invalid(
            "the artifact that refers to the image holds none".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_over_1_mib_is_refused_before_it_is_requested() {
        let subject = Descriptor::of(media_types::OCI_MANIFEST, b"image");
        let mut manifest = artifact_manifest(&subject, b"profile", "2026-01-02T03:04:05Z");
        let mut found = |size| {
            manifest.layers[0].size = size;
            profile_of(&serde_json::to_vec(&manifest).unwrap())
        };
        assert_eq!(found(MAX_SIZE).unwrap().size, MAX_SIZE);
        let refused = found(MAX_SIZE + 1).unwrap_err();
        assert!(
            matches!(refused, ProfileError::TooLarge { .. }),
            "{refused}"
        );
    }
}
