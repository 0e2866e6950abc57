//! What the daemon's processes may do, and who may get at them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::support::node::Node;
use crate::support::{NO_BACKGROUND, systemd::OUR_UNITS};
use soci_testkit::TestRoot;

/// `systemd-analyze security` of the unit that only had NoNewPrivileges and its like.
const BEFORE: f32 = 9.3;
/// The most that it may be now. What remains is what the daemon needs: mounts, files of any owner, the network.
const MOST: f32 = 5.9;

#[tokio::test(flavor = "multi_thread")]
async fn server_and_holder_are_not_dumpable_and_sockets_are_for_root() {
    let root = TestRoot::new().unwrap();
    let metrics = root.path().join("metrics.sock");
    let config = format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n{NO_BACKGROUND}",
        metrics.display()
    );
    let node = Node::start(&config);
    let (_, _, roots) = node.mounted().await;
    for pid in [
        node.daemon.server_pid().unwrap(),
        node.daemon.holder_pid().unwrap(),
    ] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let core: Vec<_> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{limits}");
        // Without privileges: setpriv drops CAP_SYS_PTRACE, so that dumpable decides.
        let read = Command::new("setpriv")
            .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"])
            .args(["readlink", &format!("/proc/{pid}/exe")])
            .output()
            .unwrap();
        assert!(!read.status.success(), "{read:?}");
    }
    for socket in [node.daemon.socket().to_owned(), metrics] {
        let mode = socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
    }
    // A container in a user namespace has to get to its layers.
    assert_eq!(node.daemon.root().metadata().unwrap().mode() & 0o777, 0o711);
    let fs = roots[0].metadata().unwrap();
    assert_eq!(fs.mode() & 0o777, 0o755);
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
