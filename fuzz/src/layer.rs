//! A layer in both ways: as a tree for lazy mounting, and unpacked to a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use soci_layerfs::{ElfWalk, Tree, TreeOptions};
use soci_unpack::{ApplyOptions, apply};
use soci_ztoc::{BuildOptions, Compression, FileMetadata, FileType, Ztoc};

use crate::tar_program::archive;

/// Root of a tree.
const ROOT: u64 = 1;
/// Types of files in a mode.
const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// A file, as far as a container can tell. Paths of a folder's files are relative to it.
#[derive(Debug, Default, PartialEq, Eq)]
struct File {
    mode: u32,
    owner: (u32, u32),
    /// Size of files and links.
    size: u64,
    /// `None` for directories that have no entry of their own, and for whiteouts.
    time: Option<(i64, u32)>,
    device: u64,
    target: Vec<u8>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Files = BTreeMap<Vec<u8>, File>;

/// What an ELF file says of itself lies in the file, however it lies; the walk ends.
pub(crate) fn elf_walk(data: &[u8]) {
    let len = data.len() as u64;
    let mut walk = ElfWalk::new(len);
    let found = walk.step(|at, buffer| {
        let part = usize::try_from(at).ok().and_then(|at| data.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(part.expect("reads lie in the file"));
        true
    });
    assert!(walk.is_done());
    for range in found.touched.iter().chain(&found.code) {
        assert!(range.start < range.end && range.end <= len);
    }
}

/// A tree is built, or the layer is refused; every listing ends, and every name that is listed is found.
pub(crate) fn tree(data: &[u8]) {
    let tar = archive(data);
    let Some((toc, size)) = toc(&tar) else { return };
    if let Ok(tree) = Tree::build(&toc, size, TreeOptions::default()) {
        let files = of_tree(&tree, &tar);
        assert!(files.len() as u64 <= tree.len() + toc.len() as u64);
    }
    // A zTOC may claim anything about its layer.
    let mut forged = toc;
    for (at, entry) in forged.iter_mut().enumerate() {
        let value = u64::from(*data.get(at).unwrap_or(&0));
        entry.uncompressed_offset = entry.uncompressed_offset.wrapping_mul(value);
        entry.uncompressed_size ^= value << (value % 64);
        entry.mode ^= u32::try_from(value).unwrap_or(0) << 9;
    }
    if let Ok(tree) = Tree::build(&forged, size, TreeOptions::default()) {
        for ino in ROOT..=tree.len() {
            let _ = tree.extent(ino).map(|(start, length)| {
                let end = start.checked_add(length);
                assert!(
                    end.is_some_and(|end| end <= size),
                    "content outside of the tar"
                );
            });
        }
    }
}

/// A layer that both ways take has the same files in both.
pub(crate) fn unpack(data: &[u8]) {
    let tar = archive(data);
    let folder = folder();
    let unpacked = apply(&tar[..], folder.path(), &ApplyOptions::default(), &|| false);
    let Some((toc, size)) = toc(&tar) else {
        assert!(unpacked.is_err(), "unpacked, but no zTOC can be made of it");
        return;
    };
    let tree = Tree::build(&toc, size, TreeOptions::default());
    let (Ok(_), Ok(tree)) = (unpacked, tree) else {
        return;
    };
    let mut lazy = of_tree(&tree, &tar);
    let mut eager = of_folder(folder.path());
    let named: BTreeSet<Vec<u8>> = toc
        .iter()
        .filter(|entry| entry.file_type == FileType::Dir)
        .map(|entry| soci_ztoc::tar_path::clean(&entry.name))
        .collect();
    for (path, file) in &mut lazy {
        let Some(other) = eager.get_mut(path) else {
            continue;
        };
        // A folder without an entry has no time in the layer; a whiteout's is of no use.
        let implied = file.mode & KIND == DIRECTORY && !named.contains(&path[1..]);
        if implied || (file.mode & KIND == 0o020_000 && file.device == 0) {
            (file.time, other.time) = (None, None);
        }
    }
    if lazy != eager {
        let paths = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            printable(paths(&lazy)),
            printable(paths(&eager)),
            "other names, lazy first"
        );
        for (path, file) in &lazy {
            assert_eq!(
                Some(file),
                eager.get(path),
                "{}, lazy first",
                path.escape_ascii()
            );
        }
    }
}

/// A record of spans with any damage.
pub(crate) fn spans_file(data: &[u8]) {
    soci_store::fuzz::spans_file(folder().path(), data);
}

fn printable(paths: Vec<Vec<u8>>) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.escape_ascii().to_string())
        .collect()
}

/// A folder in memory.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("soci-fuzz-")
        .tempdir_in(base)
        .expect("a folder for the test")
}

fn toc(tar: &[u8]) -> Option<(Vec<FileMetadata>, u64)> {
    let built = soci_ztoc::build(tar, Compression::Uncompressed, BuildOptions::default()).ok()?;
    let read = Ztoc::parse(&built.ztoc.encode()).expect("our reader takes what we build");
    let size = read.span_table().uncompressed_size();
    Some((read.toc, size))
}

fn of_tree(tree: &Tree, tar: &[u8]) -> Files {
    let mut files = Files::new();
    let mut folders = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = folders.pop() {
        let mut offset = 0;
        while let Some(entry) = tree
            .readdir(ino, offset)
            .and_then(|mut entries| entries.next())
        {
            assert!(entry.next > offset, "a listing does not move on");
            offset = entry.next;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            assert_eq!(tree.lookup(ino, entry.name), Some(entry.ino));
            let path = [&path[..], b"/", entry.name].concat();
            let attr = tree.attr(entry.ino).expect("what is listed has attributes");
            if attr.mode & KIND == DIRECTORY {
                folders.push((path.clone(), entry.ino));
            }
            let content = tree.extent(entry.ino).map(|(start, length)| {
                let start = usize::try_from(start).expect("small");
                let end = start + usize::try_from(length).expect("small");
                tar.get(start..end)
                    .expect("content lies in the tar")
                    .to_vec()
            });
            let file = File {
                mode: attr.mode,
                owner: (attr.uid, attr.gid),
                size: if attr.mode & KIND == DIRECTORY {
                    0
                } else {
                    attr.size
                },
                time: Some((attr.mtime, attr.mtime_nanos)),
                device: u64::from(attr.rdev),
                target: tree.readlink(entry.ino).unwrap_or_default().to_vec(),
                content: content.unwrap_or_default(),
                xattrs: tree
                    .xattrs(entry.ino)
                    .map(|(name, value)| (name.to_vec(), value.to_vec()))
                    .collect(),
            };
            files.insert(path, file);
        }
    }
    files
}

fn of_folder(root: &Path) -> Files {
    let mut files = Files::new();
    let mut folders: Vec<(Vec<u8>, PathBuf)> = vec![(Vec::new(), root.to_owned())];
    while let Some((path, folder)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder that was unpacked") {
            let entry = entry.expect("an entry of it");
            let path = [&path[..], b"/", entry.file_name().as_bytes()].concat();
            let at = entry.path();
            let stat = at.symlink_metadata().expect("it is there");
            let kind = stat.mode() & KIND;
            if kind == DIRECTORY {
                folders.push((path.clone(), at.clone()));
            }
            let target = std::fs::read_link(&at).unwrap_or_default();
            let device = (
                rustix::fs::major(stat.rdev()),
                rustix::fs::minor(stat.rdev()),
            );
            let file = File {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                size: if kind == DIRECTORY { 0 } else { stat.size() },
                time: Some((stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap_or(0))),
                device: soci_fuse::encode_device(device.0, device.1).map_or(u64::MAX, u64::from),
                target: target.as_os_str().as_bytes().to_vec(),
                content: if kind == REGULAR {
                    std::fs::read(&at).expect("content")
                } else {
                    Vec::new()
                },
                xattrs: xattrs(&at),
            };
            files.insert(path, file);
        }
    }
    files
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap_or(0);
    list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value);
            value.truncate(length.unwrap_or(0));
            (name.to_vec(), value)
        })
        .collect()
}
