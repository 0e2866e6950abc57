//! The golden `kinds` image: its layers, their zTOCs, and what containerd unpacked from them.

use std::io::Read;
use std::path::PathBuf;

use soci_testkit::listing::{self, Listing};
use soci_ztoc::Ztoc;

pub struct Golden {
    pub ztoc: Ztoc,
    pub tar: Vec<u8>,
    pub listing: Listing,
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/kinds"
    ))
}

fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder().join(path)).unwrap()).unwrap()
}

fn blob_path(digest: &serde_json::Value) -> String {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    format!("blobs/sha256/{hex}")
}

/// Layer 1 or 2.
pub fn layer(number: usize) -> Golden {
    let index = json("image/index.json");
    let manifest = json(&format!(
        "image/{}",
        blob_path(&index["manifests"][0]["digest"])
    ));
    let layer = &manifest["layers"][number - 1];
    let blob = folder().join("image").join(blob_path(&layer["digest"]));
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(blob).unwrap())
        .read_to_end(&mut tar)
        .unwrap();
    let ztoc = std::fs::read_dir(folder().join("soci-v1/blobs/sha256"))
        .unwrap()
        .filter_map(|file| Ztoc::parse(&std::fs::read(file.unwrap().path()).unwrap()).ok())
        .find(|ztoc| Some(ztoc.compressed_archive_size) == layer["size"].as_u64())
        .unwrap();
    Golden {
        ztoc,
        tar,
        listing: listing::golden(number),
    }
}
