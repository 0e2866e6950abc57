//! References and documents of images.

use soci_oci::{Digest, ImageConfig, Index, Manifest, Platform, Reference};
use soci_profile::Profile;
use soci_ztoc::Ztoc;

/// A zTOC that a profile is played with.
const ZTOC: &[u8] = include_bytes!("../seed/ztoc_parse/kinds");

/// A start-up profile that is read is written and read again as the same, and what is played of it lies within the
/// layer.
pub(crate) fn profile(data: &[u8]) {
    let Ok(profile) = Profile::parse(data) else {
        return;
    };
    let written = profile.encode();
    assert!(written.len() as u64 <= soci_profile::MAX_SIZE);
    // A profile that was too large lost recordings.
    if let Ok(again) = Profile::parse(&written)
        && again.recordings() == profile.recordings()
    {
        assert_eq!(again, profile);
    }
    let table = Ztoc::parse_index(ZTOC).unwrap().spans;
    let merged = profile.merged();
    for span in merged.spans() {
        for ztoc in [span.layer.ztoc, Digest::of(ZTOC)] {
            let places = merged.in_table(&span.layer.layer, &ztoc, &table);
            assert!(places.keys().all(|&span| span < table.len()));
        }
    }
}

/// A reference, digest or platform that is read is written and read again as the same.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(written.parse().as_ref(), Ok(&reference), "{written}");
        assert!(
            written
                .chars()
                .all(|character| character.is_ascii_graphic())
        );
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let written = platform.to_string();
        assert_eq!(written.parse().as_ref(), Ok(&platform), "{written}");
    }
}

/// A manifest, an index or a configuration that is read is written and read again as the same.
pub(crate) fn manifest(data: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        let written = soci_oci::json::to_vec(&manifest).unwrap();
        assert_eq!(
            serde_json::from_slice::<Manifest>(&written).unwrap(),
            manifest
        );
    }
    if let Ok(index) = serde_json::from_slice::<Index>(data) {
        let written = soci_oci::json::to_vec(&index).unwrap();
        assert_eq!(serde_json::from_slice::<Index>(&written).unwrap(), index);
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let chain = config.rootfs.chain_ids();
        assert_eq!(chain.len(), config.rootfs.diff_ids.len());
    }
}
