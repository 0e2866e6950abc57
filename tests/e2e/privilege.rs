//! What the daemon's processes may do, and who may get at them.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::node::Node;
use crate::support::{NO_BACKGROUND, systemd::OUR_UNITS};
use soci_testkit::{SociDaemonOptions, TestRoot, daemon_program, write_program};

/// `systemd-analyze security` of the unit that only had NoNewPrivileges and its like.
const BEFORE: f32 = 9.3;
/// The most that it may be now. What remains is what the daemon needs: mounts, files of any owner, the network.
const MOST: f32 = 5.7;

/// What a process of a restrictive daemon must not inherit: new files are for all, core dumps have any
/// size, and the group is not that of root, to which the files of `/proc/PID` belong if the process is
/// not dumpable (proc_pid(5)).
fn permissive_program(folder: &Path) -> PathBuf {
    let program = folder.join("permissive");
    let text = format!(
        "#!/bin/sh\numask 0\nulimit -c unlimited\nexec setpriv --regid=1 --keep-groups {} \"$@\"\n",
        daemon_program().unwrap().display()
    );
    write_program(&program, &text).unwrap();
    program
}

/// Soft and hard limit of core dumps.
fn core_limits(pid: u32) -> [String; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let mut fields = core.unwrap().split_whitespace().skip(4);
    [(); 2].map(|()| fields.next().unwrap().to_owned())
}

/// Whether others may read the memory of a process whose group is 1, or have it dumped.
fn is_dumpable(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("\nGid:\t1\t1\t1\t1\n"), "{status}");
    match Path::new(&format!("/proc/{pid}/maps"))
        .metadata()
        .unwrap()
        .gid()
    {
        0 => false,
        1 => true,
        other => panic!("group {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_and_holder_are_not_dumpable_and_sockets_are_for_root() {
    let root = TestRoot::new().unwrap();
    let metrics = root.path().join("metrics.sock");
    let config = format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n{NO_BACKGROUND}",
        metrics.display()
    );
    let node = Node::start_with(SociDaemonOptions {
        program: Some(permissive_program(root.path())),
        ..SociDaemonOptions::with_config(&config)
    });
    let (_, _, roots) = node.mounted().await;
    // The supervisor has no secrets, and shows what the others would inherit.
    let supervisor = node.daemon.daemon().pid();
    assert!(is_dumpable(supervisor));
    assert_eq!(core_limits(supervisor), ["unlimited", "unlimited"]);
    let (server, holder) = (node.daemon.server_pid(), node.daemon.holder_pid());
    let (server, holder) = (server.unwrap(), holder.unwrap());
    let exposed: Vec<_> = [("server", server), ("holder", holder)]
        .into_iter()
        .flat_map(|(name, pid)| {
            let core = core_limits(pid) != ["0", "0"];
            [
                core.then(|| format!("{name} has core dumps")),
                is_dumpable(pid).then(|| format!("{name} is dumpable")),
            ]
        })
        .flatten()
        .collect();
    assert_eq!(exposed, Vec::<String>::new());
    for socket in [node.daemon.socket().to_owned(), metrics] {
        let mode = socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
    }
    // A container in a user namespace has to get to its layers.
    assert_eq!(node.daemon.root().metadata().unwrap().mode() & 0o777, 0o711);
    let fs = roots[0].metadata().unwrap();
    assert_eq!(fs.mode() & 0o777, 0o755);
}

/// Files and folders below a folder that others than its owner may list, read or change, but for mounted
/// layers. Containers in user namespaces pass through some.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut open = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // A running server removes files.
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            // Containers see them as `/`.
            if path.ends_with("fs") || metadata.is_symlink() {
                continue;
            }
            if metadata.mode() & 0o066 != 0 {
                open.push(format!("{} {:o}", path.display(), metadata.mode()));
            }
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_stores_is_for_root_whatever_the_umask_and_also_if_it_was_open() {
    let root = TestRoot::new().unwrap();
    let mut node = Node::start_with(SociDaemonOptions {
        program: Some(permissive_program(root.path())),
        ..SociDaemonOptions::with_config(NO_BACKGROUND)
    });
    let (_, _, roots) = node.mounted().await;
    tokio::task::block_in_place(|| node.daemon.upgrade()).unwrap();
    drop(std::fs::read(roots[0].join("data/hello")));
    let stored = node.daemon.root();
    assert_eq!(open_to_others(&stored), Vec::<String>::new());
    // What an earlier version left is closed.
    let content = stored.join("content");
    std::fs::set_permissions(&content, Permissions::from_mode(0o755)).unwrap();
    tokio::task::block_in_place(|| {
        node.daemon.terminate().unwrap();
        node.daemon.start_again().unwrap();
    });
    assert_eq!(content.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(open_to_others(&stored), Vec::<String>::new());
}

#[test]
fn the_unit_exposes_less_than_it_did() {
    let folder = TestRoot::new().unwrap();
    let unit = folder.path().join("soci-snapshotter.service");
    // The program need not be installed.
    let text = OUR_UNITS[0].replace("/usr/local/bin/soci-snapshotter-grpc", "/bin/true");
    std::fs::write(&unit, text).unwrap();
    let analyzed = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager"])
        .arg(&unit)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&analyzed.stdout);
    let level = text.lines().find(|line| line.contains("Overall exposure"));
    let level = level.and_then(|line| line.split(':').nth(1)?.split_whitespace().next());
    let level: f32 = level
        .unwrap_or_else(|| panic!("{analyzed:?}"))
        .parse()
        .unwrap();
    assert!(level <= MOST && MOST < BEFORE, "{level}: {text}");
}
