//! Path resolution, held against the kernel's.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use soci_layerfs::{ResolveError, Tree};

use crate::support::Layer;

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File,
    Link(String),
}

/// The same files in a directory and in a tree.
struct Twins {
    directory: tempfile::TempDir,
    root: OwnedFd,
    tree: Tree,
    /// The path of each inode of the directory.
    paths: HashMap<u64, String>,
}

impl Twins {
    /// Entries whose parent is not a directory, or whose path exists, are left out.
    fn new(entries: &[(String, Kind)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut layer = Layer::new();
        let mut paths = HashMap::from([(inode(&root).unwrap(), String::new())]);
        let mut directories = HashSet::from([""]);
        for (name, kind) in entries {
            let path = root.join(name);
            let (parent, _) = name.rsplit_once('/').unwrap_or_default();
            if inode(&path).is_some() || !directories.contains(parent) {
                continue;
            }
            layer = match kind {
                Kind::Directory => {
                    std::fs::create_dir(&path).unwrap();
                    layer.dir(name, 0o755)
                }
                Kind::File => {
                    File::create(&path).unwrap();
                    layer.file(name, b"")
                }
                Kind::Link(target) => {
                    symlink(target, &path).unwrap();
                    layer.symlink(name, target)
                }
            };
            paths.insert(inode(&path).unwrap(), name.clone());
            if matches!(kind, Kind::Directory) {
                directories.insert(name.as_str());
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Self {
            root: openat(CWD, &root, flags, Mode::empty()).unwrap(),
            directory,
            tree: layer.tree().unwrap(),
            paths,
        }
    }

    fn check(&self, path: &str, follow: bool) {
        let by_kernel = self.by_kernel(path, follow).map(|ino| {
            let path = &self.paths[&ino];
            self.tree.find(path.as_bytes()).unwrap()
        });
        let by_tree = self.tree.resolve(path.as_bytes(), follow);
        let by_tree = by_tree.map_err(|error| match error {
            ResolveError::NotFound => Errno::NOENT,
            ResolveError::NotADirectory => Errno::NOTDIR,
            ResolveError::TooManyLinks(_) => Errno::LOOP,
        });
        let kept = self.directory.path();
        assert_eq!(by_tree, by_kernel, "{path:?}, {follow}, {}", kept.display());
    }

    fn by_kernel(&self, path: &str, follow: bool) -> Result<u64, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let path = if path.is_empty() { "." } else { path };
        loop {
            match openat2(
                &self.root,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            ) {
                Ok(found) => return Ok(fstat(&found).unwrap().st_ino),
                // Another test mounted something while the kernel resolved `..`.
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Links are not followed.
fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|found| found.ino())
}

fn path(component: &'static str, lengths: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    proptest::collection::vec(component, lengths).prop_map(|parts| parts.join("/"))
}

fn kind() -> impl Strategy<Value = Kind> {
    // What ends in `/` or `/.` must be a directory for the kernel only: such paths are left out.
    let target = ("/{0,2}(\\./){0,1}", path("[a-c]|\\.\\.", 1..4));
    prop_oneof![
        2 => Just(Kind::Directory),
        1 => Just(Kind::File),
        3 => target.prop_map(|(start, path)| Kind::Link(start + &path)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn paths_lead_where_they_lead_the_kernel_in_a_chroot(
        entries in proptest::collection::vec((path("[a-c]", 1..4), kind()), 1..24),
        wanted in proptest::collection::vec((path("[a-c]|\\.\\.|\\.", 0..6), "[a-c]|\\.\\."), 24),
    ) {
        let twins = Twins::new(&entries);
        let paths = wanted.iter().map(|(way, last)| format!("{way}/{last}"));
        for path in paths.chain([String::new(), "/".to_owned(), "..".to_owned()]) {
            twins.check(&path, true);
            twins.check(&path, false);
        }
    }
}

#[test]
fn as_many_links_are_followed_as_the_kernel_follows() {
    let link = |n: usize| (format!("l{n}"), Kind::Link(format!("l{}", n + 1)));
    let mut entries: Vec<_> = (0..41).map(link).collect();
    entries.push(("l41".to_owned(), Kind::Directory));
    let twins = Twins::new(&entries);
    for path in ["l0", "l1", "l2", "l0/.."] {
        twins.check(path, true);
        twins.check(path, false);
    }
    assert!(twins.tree.resolve(b"l1", true).is_ok());
    assert!(twins.tree.resolve(b"l0", true).is_err());
}
