//! What the reference program made of the golden images, we make too.

use crate::images::{assert_intact, blob, dir_to_dir, every_layer, golden, image_index, top};
use soci_index::ConvertOptions;

const CASES: [&str; 10] = [
    "kinds",
    "gzip-gzip1",
    "gzip-gzip9",
    "gzip-stored",
    "gzip-fixed-codes",
    "gzip-pigz",
    "gzip-named",
    "gzip-multi-member",
    "uncompressed",
    "zstd-mixed",
];

/// With the reference's name in it, the image index, and with it every manifest, SOCI index and
/// zTOC that it names by digest, is the reference's to the byte.
#[test]
fn a_converted_image_is_the_references_to_the_byte() {
    let mut different = Vec::new();
    for case in CASES {
        let out = tempfile::tempdir().unwrap();
        let ours = out.path().join("out");
        let options = ConvertOptions {
            build_tool_identifier: "AWS SOCI CLI v0.2".to_owned(),
            ..every_layer()
        };
        dir_to_dir(&golden(case).join("image"), &ours, &options).unwrap();
        assert_intact(&ours);
        let theirs = golden(case).join("soci-v2");
        let index = |layout| String::from_utf8(blob(layout, top(layout).digest)).unwrap();
        if index(&ours) != index(&theirs) {
            different.push(format!("{case}:\n  {}\n  {}", index(&ours), index(&theirs)));
        }
        assert_eq!(
            std::fs::read(ours.join("index.json")).unwrap(),
            std::fs::read(theirs.join("index.json")).unwrap(),
            "{case}"
        );
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Under our own name the structure stays: the same descriptors but for digests and sizes.
#[test]
fn under_our_own_name_the_structure_stays() {
    for case in CASES {
        let out = tempfile::tempdir().unwrap();
        let ours = out.path().join("out");
        dir_to_dir(&golden(case).join("image"), &ours, &every_layer()).unwrap();
        let theirs = golden(case).join("soci-v2");
        let shape = |layout| {
            image_index(layout)
                .manifests
                .iter()
                .map(|d| {
                    let keys: Vec<String> = d.annotations.keys().cloned().collect();
                    (
                        d.media_type.clone(),
                        d.artifact_type.clone(),
                        d.platform.clone(),
                        keys,
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(shape(&ours), shape(&theirs), "{case}");
    }
}
