//! What the tests share: golden layers, layers made of entries, mounts that go away, and a client
//! that speaks to a `LayerFs` without FUSE.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test uses a part"
)]

pub mod direct;
pub mod golden;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use soci_fetch::testing::MemoryLayer;
use soci_fuse::Pool;
use soci_layerfs::{LayerMountOptions, MountedLayer, Tree, TreeError, TreeOptions, mount_layer};
use soci_ztoc::{BuildOptions, Compression, Ztoc};

/// One tar entry; the header's numbers can be changed before it is added.
pub fn entry(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

/// A tar under construction. Names are written as they are, even unclean ones.
pub struct Layer(Vec<u8>);

impl Layer {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    fn append(mut self, mut header: tar::Header, name: &[u8], target: &[u8], data: &[u8]) -> Self {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..target.len()].copy_from_slice(target);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.write_all(header.as_bytes()).unwrap();
        self.0.write_all(data).unwrap();
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        let header = entry(tar::EntryType::Regular, 0o644);
        self.append(header, name.as_bytes(), b"", data)
    }

    pub fn program(self, name: &str, data: &[u8]) -> Self {
        let header = entry(tar::EntryType::Regular, 0o755);
        self.append(header, name.as_bytes(), b"", data)
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        let header = entry(tar::EntryType::Directory, mode);
        self.append(header, name.as_bytes(), b"", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        let header = entry(tar::EntryType::Symlink, 0o777);
        self.append(header, name.as_bytes(), target.as_bytes(), b"")
    }

    pub fn link(self, name: &str, target: &str, mode: u32) -> Self {
        let header = entry(tar::EntryType::Link, mode);
        self.append(header, name.as_bytes(), target.as_bytes(), b"")
    }

    pub fn tar(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    pub fn tree(self) -> Result<Tree, TreeError> {
        tree_of(&ztoc_of(&self.tar()), TreeOptions::default())
    }
}

pub fn ztoc_of(tar: &[u8]) -> Ztoc {
    let options = BuildOptions::default();
    soci_ztoc::build(tar, Compression::Uncompressed, options)
        .unwrap()
        .ztoc
}

/// The tree of a zTOC.
pub fn tree_of(ztoc: &Ztoc, options: TreeOptions) -> Result<Tree, TreeError> {
    Tree::build(&ztoc.toc, ztoc.uncompressed_archive_size, options)
}

/// Bytes that do not repeat.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(next).collect()
}

/// A layer that is mounted, and unmounted in the end. Needs root and /dev/fuse.
pub struct Mount {
    pub pool: Pool,
    pub layer: MountedLayer,
    pub data: MemoryLayer,
    pub tree: Arc<Tree>,
    dir: tempfile::TempDir,
}

impl Mount {
    pub fn of_tar(tar: Vec<u8>) -> Self {
        let ztoc = ztoc_of(&tar);
        Self::new(&ztoc, tar, LayerMountOptions::default())
    }

    pub fn new(ztoc: &Ztoc, tar: Vec<u8>, options: LayerMountOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mountpoint = dir.path().join("fs");
        std::fs::create_dir(&mountpoint).unwrap();
        let tree = Arc::new(tree_of(ztoc, TreeOptions::default()).unwrap());
        let data = MemoryLayer::new(tar);
        let pool = Pool::new(2, soci_fuse::Journal::create().unwrap()).unwrap();
        let shared = Arc::new(data.clone());
        let layer = mount_layer(&pool, tree.clone(), shared, &mountpoint, options).unwrap();
        Self {
            pool,
            layer,
            data,
            tree,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.layer.mountpoint().join(name)
    }

    /// A directory beside the mount point.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.data.close();
        let unmounted = self.layer.unmount();
        self.pool.shutdown();
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// Runs a program; its output. Panics if it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something holds. Panics after a minute.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} did not happen");
}
