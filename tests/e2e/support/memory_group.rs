//! A control group with a limit of memory, for the processes of a daemon.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use soci_testkit::SociDaemon;

/// What the names of all groups begin with; the id of the process of the test follows.
const PREFIX: &str = "soci-test-";

/// Version 1 or 2, whichever the machine has. Its processes move to the root group when it is dropped,
/// and it is removed.
pub(crate) struct MemoryGroup {
    hierarchy: &'static Path,
    folder: PathBuf,
    usage: &'static str,
}

impl MemoryGroup {
    pub(crate) fn new(bytes: u64) -> Self {
        let version_1 = Path::new("/sys/fs/cgroup/memory");
        let (hierarchy, limit, usage) = if version_1.join("memory.limit_in_bytes").exists() {
            (version_1, "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            let version_2 = Path::new("/sys/fs/cgroup");
            std::fs::write(version_2.join("cgroup.subtree_control"), "+memory").unwrap();
            (version_2, "memory.max", "memory.current")
        };
        sweep(hierarchy);
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = hierarchy.join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(limit), bytes.to_string()).unwrap();
        Self {
            hierarchy,
            folder,
            usage,
        }
    }

    pub(crate) fn add(&self, pid: u32) {
        std::fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Bytes that the group has taken, page cache included.
    pub(crate) fn usage(&self) -> u64 {
        let usage = std::fs::read_to_string(self.folder.join(self.usage)).unwrap();
        usage.trim().parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        remove(self.hierarchy, &self.folder);
    }
}

fn remove(hierarchy: &Path, group: &Path) {
    let members = group.join("cgroup.procs");
    let root = hierarchy.join("cgroup.procs");
    for pid in std::fs::read_to_string(members).unwrap_or_default().lines() {
        // It may have ended.
        let _ = std::fs::write(&root, pid);
    }
    let _ = std::fs::remove_dir(group);
}

/// Removes the groups of tests that were killed.
fn sweep(hierarchy: &Path) {
    for group in std::fs::read_dir(hierarchy).unwrap() {
        let group = group.unwrap();
        let name = group.file_name().into_string().unwrap_or_default();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(hierarchy, &group.path());
        }
    }
}

pub(crate) fn supervisor_pid(daemon: &SociDaemon) -> u32 {
    let lock = std::fs::read_to_string(daemon.root().join("daemon.lock")).unwrap();
    lock.split_whitespace().next().unwrap().parse().unwrap()
}
