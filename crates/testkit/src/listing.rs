//! Everything that can be said about the files below a directory, in the form in which the golden
//! data keeps what containerd unpacked.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a listing that cannot be made fails the test"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use soci_oci::Digest;

/// Files by path (`./etc/hostname`).
pub type Listing = BTreeMap<String, File>;

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    /// Type, mode, owner, size, time, links, target, as in `unpacked/layer-N.txt`.
    pub line: String,
    /// The content of a regular file.
    pub sha256: Option<String>,
    /// Its extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What containerd unpacked from layer 1 or 2 of the golden image `kinds`.
///
/// # Panics
/// The golden data is not there.
#[must_use]
pub fn golden(number: usize) -> Listing {
    let text = |kind: &str| {
        let path = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/kinds"
        ))
        .join(format!("unpacked/layer-{number}.{kind}"));
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

/// What is below a directory, as the kernel gives it.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn of(directory: &Path) -> Listing {
    let mut listing = Listing::new();
    add(directory, ".", &mut listing);
    listing
}

fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
}

fn add(directory: &Path, path: &str, listing: &mut Listing) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let at = entry.path();
        let path = format!("{path}/{}", entry.file_name().into_string().unwrap());
        let stat = match at.symlink_metadata() {
            Ok(stat) => stat,
            Err(error) => {
                // A whiteout in a directory that only one layer of an overlay has.
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{path}");
                let line = "listed, but not there".to_owned();
                listing.insert(
                    path,
                    File {
                        line,
                        ..File::default()
                    },
                );
                continue;
            }
        };
        assert_eq!(entry.file_type().unwrap(), stat.file_type(), "{path}");
        let target = std::fs::read_link(&at).unwrap_or_default();
        let mut list = vec![0; 4096];
        let length = rustix::fs::llistxattr(&at, &mut list).unwrap();
        let mut xattrs = BTreeMap::new();
        for name in names(&list[..length]) {
            let name = std::str::from_utf8(name).unwrap();
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&at, name, &mut value).unwrap();
            value.truncate(length);
            xattrs.insert(name.to_owned(), value);
        }
        let file = File {
            line: line(
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.size(),
                stat.mtime(),
                u32::try_from(stat.mtime_nsec()).unwrap(),
                stat.nlink(),
                target.to_str().unwrap(),
            ),
            sha256: stat
                .is_file()
                .then(|| Digest::of(&std::fs::read(&at).unwrap()).hex()),
            xattrs,
        };
        listing.insert(path.clone(), file);
        if stat.is_dir() {
            add(&at, &path, listing);
        }
    }
}

/// A line in the form of the golden listing, from the numbers of a `stat`.
///
/// # Panics
/// The mode has no known type.
#[expect(clippy::too_many_arguments, reason = "the columns of the listing")]
#[must_use]
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
    let permissions = mode & 0o7777;
    format!("{kind}|{permissions:o}|{uid}:{gid}|{size}|{mtime}.{nanos:09}0|{nlink}|{target}")
}

/// Compares a view with the golden listing. Of times that the tar does not have (`-`), those of
/// whiteouts must be 1970, and those of implied directories must not: programs look at them.
///
/// # Panics
/// They differ.
pub fn assert_same(view: &Listing, golden: &Listing) {
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(view), names(golden));
    for (path, golden) in golden {
        let seen = &view[path];
        let mut columns: Vec<&str> = golden.line.split('|').collect();
        if columns[4] == "-" {
            let time = seen.line.split('|').nth(4).unwrap_or_default();
            let is_1970 = time == "0.0000000000";
            assert_eq!(is_1970, columns[0] != "d", "the time of {path}");
            columns[4] = time;
        }
        assert_eq!(seen.line, columns.join("|"), "{path}");
        assert_eq!(seen.sha256, golden.sha256, "{path}");
        assert_eq!(seen.xattrs, golden.xattrs, "{path}");
    }
}
