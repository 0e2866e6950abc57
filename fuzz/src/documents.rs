//! References and documents of images.

use soci_oci::{Digest, ImageConfig, Index, Manifest, Platform, Reference};

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
