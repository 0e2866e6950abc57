//! The processes that belong to a temporary root: those that name it on their command line (shims
//! name containerd's address), what they started, and those that have it mounted.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

struct Entry {
    pid: i32,
    parent: i32,
    names_root: bool,
}

/// The ids of the processes that belong to `root`, without this one. Zombies do not count.
#[must_use]
pub fn processes_below(root: &Path) -> Vec<i32> {
    let needle = root.as_os_str().as_encoded_bytes();
    let own_mounts = std::fs::read_link("/proc/self/ns/mnt").ok();
    let mut entries = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some((state, parent)) = state_and_parent(&entry.path()) else {
            continue;
        };
        if state == 'Z' {
            continue;
        }
        let mentions = |file: &str| {
            std::fs::read(entry.path().join(file)).is_ok_and(|text| contains(&text, needle))
        };
        let other_namespace =
            || std::fs::read_link(entry.path().join("ns/mnt")).ok() != own_mounts;
        let names_root = mentions("cmdline") || (other_namespace() && mentions("mountinfo"));
        entries.push(Entry { pid, parent, names_root });
    }
    let mut found: BTreeSet<i32> =
        entries.iter().filter(|entry| entry.names_root).map(|entry| entry.pid).collect();
    loop {
        let before = found.len();
        for entry in &entries {
            if found.contains(&entry.parent) {
                found.insert(entry.pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    found.into_iter().filter(|pid| *pid != own).collect()
}

/// Kills the processes that belong to `root` and waits until they are gone, at most ten seconds.
/// Returns the ids of those that are still there.
#[must_use]
pub fn kill_below(root: &Path) -> Vec<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes_below(root);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        for pid in found {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fields 3 and 4 of proc_pid_stat(5); field 2, the name, may hold anything but ends at the last `)`.
fn state_and_parent(process: &Path) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len().max(1)).any(|window| window == needle)
}
