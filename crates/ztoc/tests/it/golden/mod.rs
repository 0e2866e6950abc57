//! The golden data: the cases, their layers and the zTOCs that soci made of them.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::path::{Path, PathBuf};

use soci_oci::{Digest, Manifest};
use soci_ztoc::Compression;
use soci_ztoc::soci_index::SociIndex;

/// Every case that has gzip or plain tar layers.
pub const CASES: [&str; 10] = [
    "gzip-fixed-codes",
    "gzip-gzip1",
    "gzip-gzip9",
    "gzip-multi-member",
    "gzip-named",
    "gzip-pigz",
    "gzip-stored",
    "kinds",
    "uncompressed",
    "zstd-mixed",
];

/// What all golden zTOCs of soci v0.15 were built with.
pub const SPAN_SIZE: u64 = 131_072;
pub const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

pub struct Golden {
    pub name: String,
    pub layer: Vec<u8>,
    pub compression: Compression,
    pub blob: Vec<u8>,
    pub digest: Digest,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

pub fn blob(folder: &Path, digest: &Digest) -> Vec<u8> {
    let path = folder.join("blobs/sha256").join(digest.hex());
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The index that a folder's `index-digest` names.
pub fn index(folder: &Path) -> (Digest, Vec<u8>) {
    let digest = std::fs::read_to_string(folder.join("index-digest")).unwrap();
    let digest: Digest = digest.trim().parse().unwrap();
    (digest, blob(folder, &digest))
}

/// The folders with a SOCI index v1: soci v0.15's of every case and v0.4's of `kinds`.
pub fn v1_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = CASES
        .iter()
        .map(|case| root().join(case).join("soci-v1"))
        .collect();
    folders.push(root().join("kinds/soci-v1-old"));
    folders
}

/// Every golden zTOC with its layer.
pub fn all() -> Vec<Golden> {
    let mut all = Vec::new();
    for folder in v1_folders() {
        let (_, bytes) = index(&folder);
        let image = folder.parent().unwrap().join("image");
        for (number, ztoc) in SociIndex::parse(&bytes).unwrap().ztocs.iter().enumerate() {
            all.push(Golden {
                name: format!(
                    "{}/{} zTOC {}",
                    image.parent().unwrap().file_name().unwrap().display(),
                    folder.file_name().unwrap().display(),
                    number + 1
                ),
                layer: blob(&image, &ztoc.layer_digest),
                compression: if ztoc.layer_media_type.ends_with("gzip") {
                    Compression::Gzip
                } else {
                    Compression::Uncompressed
                },
                blob: blob(&folder, &ztoc.descriptor.digest),
                digest: ztoc.descriptor.digest,
            });
        }
    }
    assert_eq!(all.len(), 13, "the golden data lost a zTOC");
    all
}

/// The manifests of an OCI layout folder, found through its `index.json`.
pub fn manifests(folder: &Path) -> Vec<Manifest> {
    let index: soci_oci::Index =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let manifests = index.manifests.iter();
    manifests
        .filter_map(|manifest| serde_json::from_slice(&blob(folder, &manifest.digest)).ok())
        .collect()
}

/// What a plain gzip reader makes of a layer.
pub fn decompress(layer: &[u8], compression: Compression) -> Vec<u8> {
    use std::io::Read as _;
    match compression {
        Compression::Uncompressed => layer.to_vec(),
        Compression::Gzip => {
            let mut out = Vec::new();
            flate2::read::MultiGzDecoder::new(layer)
                .read_to_end(&mut out)
                .unwrap();
            out
        }
    }
}
