//! Mounts without a daemon: what operators see, and how they abandon them. Needs root, FUSE,
//! docker-registry and the two programs.

use std::path::PathBuf;
use std::process::Output;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::node::Node;
use crate::support::{
    NO_BACKGROUND, lazy_mounts_below, wait_for_lazy_mounts, wait_for_unanswered, wait_until,
};
use soci_testkit::SociCli;
use soci_testkit::process::lazy_connections_below;

/// A daemon with a lazy image and a container's snapshot, and the folders of its layers.
async fn node_with_layers() -> (Node, Vec<PathBuf>) {
    let node = Node::start(NO_BACKGROUND);
    let (_, _, folders) = node.mounted().await;
    assert_eq!(lazy_mounts_below(&node.daemon.root()), folders.len());
    (node, folders)
}

fn soci(node: &Node, arguments: &[&str]) -> Output {
    let root = node.daemon.root();
    let mut command = SociCli::standalone().unwrap().command(arguments);
    command.arg("--root").arg(root).output().unwrap()
}

fn succeeds(node: &Node, arguments: &[&str]) -> String {
    let output = soci(node, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(node: &Node, arguments: &[&str]) -> String {
    let output = soci(node, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn status(node: &Node) -> [String; 3] {
    let socket = node.daemon.socket().display().to_string();
    [
        "status".to_owned(),
        "--snapshotter-address".to_owned(),
        socket,
    ]
}

/// Reads a file that was not looked at before, in a thread of its own.
fn read(path: PathBuf) -> JoinHandle<std::io::Result<Vec<u8>>> {
    std::thread::spawn(move || std::fs::read(path))
}

fn ends(reader: JoinHandle<std::io::Result<Vec<u8>>>) -> std::io::Result<Vec<u8>> {
    wait_until("the reader ends", Duration::from_secs(120), || {
        reader
            .is_finished()
            .then_some(())
            .ok_or_else(|| "it waits".to_owned())
    });
    reader.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_status_says_what_waits_and_abort_mounts_lets_it_fail() {
    let (mut node, folders) = node_with_layers().await;
    let count = folders.len();
    node.daemon.terminate().unwrap();

    let data = folders.iter().map(|folder| folder.join("data/noise"));
    let readers: Vec<_> = data.map(read).collect();
    let connections = lazy_connections_below(&node.daemon.root()).unwrap();
    wait_for_unanswered(&connections, |waiting| !waiting.contains(&0));
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "they wait"
    );

    let arguments = status(&node);
    let told = fails(&node, &arguments.each_ref().map(String::as_str));
    let waits = format!("{count} mounts wait for one and will be given up in ");
    assert!(told.contains(&waits), "{told}");
    assert!(told.contains("soci abort-mounts"), "{told}");

    let told = succeeds(&node, &["abort-mounts"]);
    assert!(told.contains(&format!("gave up {count} mounts")), "{told}");
    for reader in readers {
        assert!(ends(reader).is_err(), "no server");
    }
    // Nothing of what it kept is in the way of another version of the daemon.
    wait_until("the holder ends", Duration::from_secs(120), || {
        let pid = node.daemon.holder_pid();
        pid.map_or(Ok(()), |pid| Err(format!("process {pid}")))
    });
    let told = succeeds(&node, &["abort-mounts"]);
    assert!(told.contains("no mount waits"), "{told}");

    // The next daemon logs what happened, and mounts the layers again.
    node.daemon.start_again().unwrap();
    for text in [
        "the mounts of an earlier daemon were given up",
        "an operator requested it",
    ] {
        let log = node.daemon.log();
        let logged = log.wait_for(0, Duration::from_secs(120), |line| line.contains(text));
        assert!(logged.is_some(), "{text}: {}", log.tail(20));
    }
    wait_for_lazy_mounts(&node.daemon.root(), count);
    let hello = folders
        .iter()
        .filter_map(|folder| ends(read(folder.join("data/hello"))).ok());
    assert_eq!(hello.collect::<Vec<_>>(), [b"hello\n".to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_daemon_serves_mounts_are_given_up_only_by_force() {
    let (mut node, folders) = node_with_layers().await;
    let server = node.daemon.server_pid().unwrap();
    let told = fails(&node, &["abort-mounts", "--unmount"]);
    assert!(
        told.contains(&format!("process {server}) serves the mounts")),
        "{told}"
    );
    assert!(told.contains("--force"), "{told}");
    let read_all = |name: &str| {
        let readers = folders.iter().map(|folder| read(folder.join(name)));
        readers.filter_map(|reader| ends(reader).ok()).count()
    };
    assert_eq!(read_all("data/words"), 1);

    succeeds(&node, &["abort-mounts", "--force"]);
    // Not what the kernel has cached.
    assert_eq!(read_all("data/noise"), 0, "all connections have ended");
    node.daemon.terminate().unwrap();
    node.daemon.start_again().unwrap();
    assert_eq!(read_all("data/noise"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_an_uninstall_the_lazy_mounts_are_taken_down_even_in_use() {
    let (mut node, folders) = node_with_layers().await;
    let open: Vec<_> = folders.iter().map(std::fs::File::open).collect();
    assert!(open.iter().all(Result::is_ok));
    node.daemon.terminate().unwrap();
    let told = succeeds(&node, &["abort-mounts", "--unmount"]);
    assert!(
        told.contains(&format!("unmounted {}", folders.len())),
        "{told}"
    );
    assert_eq!(lazy_mounts_below(&node.daemon.root()), 0);
    // What was below the mounts is there again, and is ours.
    for folder in &folders {
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    }
    let told = succeeds(&node, &["abort-mounts", "--unmount"]);
    assert!(told.contains("no mount waits"), "{told}");
}

#[test]
fn a_wrong_root_is_an_error() {
    let mut command = SociCli::standalone().unwrap().command(["abort-mounts"]);
    let output = command.args(["--root", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("no folder /nonexistent: is --root right?"),
        "{told}"
    );
}
