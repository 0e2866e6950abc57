//! The processes that belong to a temporary root, told by a mark in their environment.
//!
//! Only what a kit daemon itself started can carry the mark: [`super::Daemon`] sets it on the
//! daemon alone, containerd hands it to its shims, and what a marked process started is its child.
//! Nothing is guessed from command lines or mount tables, which other programs share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that holds the root of a daemon.
pub(crate) const MARK: &str = "TESTKIT_PROCESS_ROOT";

/// The ids of the processes that belong to `root`: those that carry its mark, their descendants,
/// and the containers whose shim is gone. Zombies do not count; this process, those that it
/// descends from and process 1 never do.
#[must_use]
pub fn processes_below(root: &Path) -> Vec<i32> {
    let mut mark = format!("{MARK}=").into_bytes();
    mark.extend_from_slice(root.as_os_str().as_encoded_bytes());
    let containers = container_ids(root);
    let mut parents = BTreeMap::new();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Some((state, parent)) = state_and_parent(&entry.path()) else {
            continue;
        };
        if state == 'Z' {
            continue;
        }
        parents.insert(pid, parent);
        let marked = std::fs::read(entry.path().join("environ")).is_ok_and(|text| {
            text.split(|byte| *byte == 0)
                .any(|variable| variable == mark)
        });
        if marked || is_container(&entry.path(), &containers) {
            found.insert(pid);
        }
    }
    let protected = own_line(&parents);
    found.retain(|pid| !protected.contains(pid));
    loop {
        let before = found.len();
        for (pid, parent) in &parents {
            if found.contains(parent) && !protected.contains(pid) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

/// Kills the processes that belong to `root` and waits until they are gone, at most a minute.
/// Returns the ids of those that are still there.
#[must_use]
pub(crate) fn kill_below(root: &Path) -> Vec<i32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = processes_below(root);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        for pid in found {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have ended since.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This process, everything that it descends from, and process 1.
fn own_line(parents: &BTreeMap<i32, i32>) -> BTreeSet<i32> {
    let mut line = BTreeSet::from([0, 1]);
    let mut pid = rustix::process::getpid().as_raw_nonzero().get();
    while line.insert(pid) {
        pid = parents.get(&pid).copied().unwrap_or(1);
    }
    line
}

/// The ids of the kit's containers in a containerd below `root`, from its state folder
/// (`<state>/io.containerd.runtime.v2.task/<namespace>/<id>`).
fn container_ids(root: &Path) -> BTreeSet<String> {
    containers(root).into_iter().map(|(_, id)| id).collect()
}

/// Namespace and id of the kit's containers in a containerd below `root`.
fn containers(root: &Path) -> Vec<(String, String)> {
    let tasks = root.join("state/io.containerd.runtime.v2.task");
    let mut found = Vec::new();
    for namespace in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
        for container in std::fs::read_dir(namespace.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let id = container.file_name().to_string_lossy().into_owned();
            // Ours by their name, or ids that no other containerd gives: CRI's are random.
            if id.starts_with("tk-") || is_random_id(&id) {
                found.push((namespace.file_name().to_string_lossy().into_owned(), id));
            }
        }
    }
    found
}

/// 32 random bytes in hexadecimal, as CRI names containers.
fn is_random_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes the control groups of containers that were killed instead of ended; runc would have
/// removed them. Only empty groups can be removed.
pub(crate) fn remove_control_groups(root: &Path) {
    let base = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![base.to_owned()];
    // With cgroup v1 each controller has a hierarchy of its own.
    hierarchies.extend(
        std::fs::read_dir(base)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    for (namespace, id) in containers(root) {
        for hierarchy in &hierarchies {
            // Most hierarchies do not have it; the namespace's group stays while others use it.
            let _ = std::fs::remove_dir(hierarchy.join(&namespace).join(&id));
            let _ = std::fs::remove_dir(hierarchy.join(&namespace));
        }
    }
}

/// Whether a process is in a control group of one of these containers (`…/<namespace>/<id>`).
fn is_container(process: &Path, ids: &BTreeSet<String>) -> bool {
    !ids.is_empty()
        && std::fs::read_to_string(process.join("cgroup")).is_ok_and(|groups| {
            groups
                .lines()
                .filter_map(|line| line.rsplit_once('/'))
                .any(|(_, last)| ids.contains(last))
        })
}

/// Fields 3 and 4 of proc_pid_stat(5); field 2, the name, may hold anything but ends at the last `)`.
fn state_and_parent(process: &Path) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_not_started_by_the_kit_is_never_found() {
        // The whole machine, by a root that is everywhere in command lines and mount tables.
        assert_eq!(processes_below(Path::new("/")), Vec::<i32>::new());
        // Another run of this test may have a process of its own.
        let root = format!("/tmp/soci-tk.bystander-{}", std::process::id());
        let mut bystander = std::process::Command::new("sleep")
            .arg("1000")
            .env("OTHER", &root)
            .spawn()
            .unwrap();
        let found = processes_below(Path::new(&root));
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        assert_eq!(found, Vec::<i32>::new());
    }

    #[test]
    fn marked_processes_and_their_children_are_found_and_nothing_else() {
        let root = format!("/tmp/soci-tk.marked-{}", std::process::id());
        let root = Path::new(&root);
        let mut marked = std::process::Command::new("sh")
            .args(["-c", "env -u TESTKIT_PROCESS_ROOT sleep 1000; true"])
            .env(MARK, root)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while processes_below(root).len() < 2 {
            assert!(Instant::now() < deadline, "{:?}", processes_below(root));
        }
        assert!(processes_below(root).contains(&i32::try_from(marked.id()).unwrap()));
        assert_eq!(
            processes_below(Path::new("/tmp/soci-tk.mark")),
            Vec::<i32>::new()
        );
        assert_eq!(kill_below(root), Vec::<i32>::new());
        assert!(!marked.wait().unwrap().success());
    }

    #[test]
    fn this_process_and_its_ancestors_are_protected() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let line = own_line(&BTreeMap::from([(own, 50_000_000), (50_000_000, 1)]));
        assert_eq!(line, BTreeSet::from([0, 1, own, 50_000_000]));
    }
}
