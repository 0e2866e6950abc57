//! The golden `kinds` image: its layers, their zTOCs, and what containerd unpacked from them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use ztoc::Ztoc;

/// Everything that can be said about a file, by its path (`./etc/hostname`).
pub type Listing = BTreeMap<String, File>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    /// Type, mode, owner, size, time, links, target, as in `unpacked/layer-N.txt`.
    pub line: String,
    pub sha256: Option<String>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

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
        listing: listing(number),
    }
}

fn listing(number: usize) -> Listing {
    let text = |kind: &str| {
        let path = folder().join(format!("unpacked/layer-{number}.{kind}"));
        std::fs::read_to_string(path).unwrap()
    };
    let mut listing = Listing::new();
    for line in text("txt").lines() {
        let (path, line) = line.split_once('|').unwrap();
        let file = listing.entry(path.to_owned()).or_default();
        file.line = line.to_owned();
    }
    for line in text("sha256").lines() {
        let (sum, path) = line.split_once("  ").unwrap();
        listing.get_mut(path).unwrap().sha256 = Some(sum.to_owned());
    }
    let mut path = String::new();
    for line in text("xattrs").lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("# file: ") {
            path = format!("./{name}");
            continue;
        }
        let (name, value) = line.split_once('=').unwrap();
        let value = match value.strip_prefix("0s") {
            Some(coded) => base64::engine::general_purpose::STANDARD
                .decode(coded)
                .unwrap(),
            None => value.trim_matches('"').as_bytes().to_vec(),
        };
        let file = listing.get_mut(&path).unwrap();
        file.xattrs.insert(name.to_owned(), value);
    }
    listing
}

/// A line in the form of the golden listing, from the numbers of a `stat`.
#[expect(clippy::too_many_arguments, reason = "the columns of the listing")]
pub fn line(
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    nanos: u32,
    nlink: u64,
    target: &str,
) -> String {
    let kind = match mode >> 12 {
        0o01 => 'p',
        0o02 => 'c',
        0o04 => 'd',
        0o06 => 'b',
        0o10 => 'f',
        0o12 => 'l',
        other => panic!("type {other:o}"),
    };
    let size = match kind {
        'd' => "-".to_owned(),
        _ => size.to_string(),
    };
    // Implied parents and whiteouts have no time in the tar: ours are of 1970, as is `old`.
    let permissions = mode & 0o7777;
    format!("{kind}|{permissions:o}|{uid}:{gid}|{size}|{mtime}.{nanos:09}0|{nlink}|{target}")
}

/// Compares a view with the golden listing. Times that the tar does not have (`-`) must be 1970.
pub fn assert_same(view: &Listing, golden: &Listing) {
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(view), names(golden));
    for (path, golden) in golden {
        let seen = &view[path];
        let mut columns: Vec<&str> = golden.line.split('|').collect();
        if columns[4] == "-" {
            columns[4] = "0.0000000000";
        }
        assert_eq!(seen.line, columns.join("|"), "{path}");
        assert_eq!(seen.sha256, golden.sha256, "{path}");
        assert_eq!(seen.xattrs, golden.xattrs, "{path}");
    }
}
