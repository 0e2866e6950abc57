//! A control group with a limit of memory, for the processes of a daemon.

use std::path::{Path, PathBuf};

use soci_testkit::SociDaemon;

/// Version 1 or 2, whichever the machine has. Removed when dropped, if its processes have ended.
pub(crate) struct MemoryGroup {
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
        let folder = hierarchy.join(format!("soci-test-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(limit), bytes.to_string()).unwrap();
        Self { folder, usage }
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
        let _ = std::fs::remove_dir(&self.folder);
    }
}

pub(crate) fn supervisor_pid(daemon: &SociDaemon) -> u32 {
    let lock = std::fs::read_to_string(daemon.root().join("daemon.lock")).unwrap();
    lock.split_whitespace().next().unwrap().parse().unwrap()
}
