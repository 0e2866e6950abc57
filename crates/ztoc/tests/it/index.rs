//! SOCI indexes that soci wrote.

use soci_ztoc::soci_index::{IndexVersion, SociIndex, SociIndexError, ZtocDescriptor};

#[test]
fn every_golden_index_is_written_back_in_the_same_bytes() {
    for folder in crate::golden::v1_folders() {
        let (digest, bytes) = crate::golden::index(&folder);
        let index = SociIndex::parse(&bytes).unwrap();
        assert_eq!(index.version, IndexVersion::V1);
        assert!(index.subject.is_some());
        assert_eq!(
            soci_oci::Digest::of(&index.encode()),
            digest,
            "{}",
            folder.display()
        );
    }
}

/// The indexes of a `soci-v2` folder: its index lists an image index, which lists them.
fn v2_indexes(case: &str) -> Vec<Vec<u8>> {
    let folder = crate::golden::root().join(case).join("soci-v2");
    let blobs = std::fs::read_dir(folder.join("blobs/sha256")).unwrap();
    blobs
        .map(|blob| std::fs::read(blob.unwrap().path()).unwrap())
        .filter(|bytes| SociIndex::parse(bytes).is_ok())
        .collect()
}

#[test]
fn every_golden_v2_index_is_written_back_in_the_same_bytes() {
    for case in crate::golden::CASES {
        let indexes = v2_indexes(case);
        assert_eq!(indexes.len(), 1, "{case}");
        for bytes in indexes {
            let index = SociIndex::parse(&bytes).unwrap();
            assert_eq!(index.version, IndexVersion::V2);
            assert_eq!(index.subject, None);
            assert!(index.encode() == bytes, "{case}");
        }
    }
}

#[test]
fn an_index_made_of_its_parts_has_socis_bytes() {
    for folder in crate::golden::v1_folders() {
        let (_, bytes) = crate::golden::index(&folder);
        let read = SociIndex::parse(&bytes).unwrap();
        let ztocs = read.ztocs.iter().map(|ztoc| {
            let blob = crate::golden::blob(&folder, &ztoc.descriptor.digest);
            let span_size = ztoc.span_size.unwrap_or_default();
            let made = ZtocDescriptor::new(
                &blob,
                ztoc.layer_digest,
                &ztoc.layer_media_type,
                span_size,
                ztoc.disable_xattrs,
            );
            // soci 0.4 did not write the span size yet.
            if ztoc.span_size.is_some() {
                made
            } else {
                ztoc.clone()
            }
        });
        let made = SociIndex::new(
            IndexVersion::V1,
            ztocs.collect(),
            Vec::new(),
            read.subject.clone(),
            read.annotations.clone(),
        );
        if folder.ends_with("soci-v1-old") {
            assert_eq!(made.ztocs, read.ztocs);
        } else {
            assert_eq!(made, read, "{}", folder.display());
            assert!(made.encode() == bytes, "{}", folder.display());
        }
        for ztoc in &read.ztocs {
            assert_eq!(read.ztoc_for(&ztoc.layer_digest), Some(ztoc));
        }
        assert_eq!(read.ztoc_for(&soci_oci::Digest::of(b"no layer")), None);
    }
}

#[test]
fn a_valid_index_over_4_mib_is_refused_with_the_limit() {
    const LIMIT: u64 = 4 << 20;
    let bytes = v2_indexes("kinds").remove(0);
    let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let padded = |length: usize| {
        let annotated = |padding: String| {
            let mut index = index.clone();
            index["annotations"]["padding"] = padding.into();
            serde_json::to_vec(&index).unwrap()
        };
        let rest = annotated(String::new()).len();
        annotated("x".repeat(length - rest))
    };
    let limit = usize::try_from(LIMIT).unwrap();
    assert_eq!(padded(limit).len(), limit);
    SociIndex::parse(&padded(limit)).unwrap();
    for length in [limit + 1, 5 << 20] {
        match SociIndex::parse(&padded(length)).unwrap_err() {
            SociIndexError::TooLarge { size, limit } => {
                assert_eq!((size, limit), (length as u64, LIMIT));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_manifest_that_is_not_a_soci_index_is_refused() {
    let image = crate::golden::manifests(&crate::golden::root().join("kinds/image")).remove(0);
    let image = serde_json::to_vec(&image).unwrap();
    for bad in [
        &b""[..],
        b"{}",
        b"null",
        b"[]",
        &image,
        &vec![b' '; 5 << 20],
    ] {
        assert!(
            SociIndex::parse(bad).is_err(),
            "{:?}",
            String::from_utf8_lossy(bad.get(..80).unwrap_or(bad))
        );
    }
}
