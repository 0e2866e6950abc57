//! Containers keep reading although more than the daemon is in trouble: a request that no server survives, the registry
//! away, the disk full. Needs root, FUSE, containerd, runc, docker-registry and the two programs.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::node::Node;
use crate::support::{
    NO_BACKGROUND, wait_for_lines, wait_for_unanswered, wait_until, wait_until_durable,
};
use soci_oci::Digest;
use soci_testkit::image::small_image_data;
use soci_testkit::kernel_caches;
use soci_testkit::process::{Signal, lazy_connections_below};
use soci_testkit::{Fault, Rule, SociDaemonOptions};

const PATIENCE: Duration = Duration::from_secs(180);
/// fcntl.h: past the page cache, so that the kernel asks once for each call.
const O_DIRECT: i32 = 0o40000;
/// errno.h.
const ENOENT: i32 = 2;
const ECONNABORTED: i32 = 103;
const ENOTCONN: i32 = 107;

fn find(roots: &[PathBuf], name: &str) -> PathBuf {
    let found = roots.iter().map(|root| root.join(name));
    found.into_iter().find(|path| path.exists()).unwrap()
}

fn read_directly(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let mut all = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    file.read_exact_at(&mut all, 0)?;
    Ok(all)
}

async fn kill_server(node: &Node) {
    let pid = node.daemon.signal_server(Signal::KILL).unwrap();
    tokio::task::block_in_place(|| node.daemon.wait_for_successor(pid)).unwrap();
}

/// A request that makes servers crash is answered EIO instead of being handed to one after another.
async fn a_deadly_read(config: &str) {
    let config = format!("{NO_BACKGROUND}{config}");
    let mut node = Node::start(&config);
    let (_, _, roots) = node.mounted().await;
    let words = find(&roots, "data/words");
    let hello = find(&roots, "data/hello");
    // While no server serves this would wait, unless the kernel still knows it.
    let number = words.metadata().unwrap().ino();
    node.daemon.terminate().unwrap();
    let mut options = SociDaemonOptions::with_config(&config);
    let point = format!("layer-read#{number}");
    options.environment = vec![("SOCI_FAULT_POINT".to_owned(), point)];
    node.daemon.start_again_with(options).unwrap();
    let first = node.daemon.server_pid().unwrap();

    let refused = tokio::task::spawn_blocking(move || read_directly(&words)).await;
    let refused = refused.unwrap().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(5), "EIO: {refused}");
    let log = node.daemon.log();
    let named = |line: &str| line.contains("in flight whenever a server died");
    let line = log.wait_for(0, PATIENCE, named).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["node"], number.to_string(), "{line}");
    assert_eq!(line["crashes"], "2", "{line}");
    // The supervisor's lines.
    let crash =
        |line: &serde_json::Value| line["msg"].to_string().contains("server ended by itself");
    wait_for_lines(&node.daemon, 2, crash);

    // Everything else works, and the server stays.
    let pid = node.daemon.server_pid().unwrap();
    assert_ne!(pid, first);
    kernel_caches::forget().unwrap();
    assert_eq!(std::fs::read(hello).unwrap(), b"hello\n");
    let client = node.client().await;
    assert!(client.list().await.unwrap().len() > 2);
    assert_eq!(node.daemon.server_pid().unwrap(), pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_crashes_servers_fails_after_two_of_them_and_nothing_else_does() {
    a_deadly_read("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_resend_a_read_that_crashes_servers_fails_too() {
    a_deadly_read("[holder]\nresend = false\n").await;
}

/// Number of connections to a socket that no server has accepted. In the table they are those that
/// connect (2) and have no inode: `Num: RefCount Protocol Flags Type St Inode Path`.
fn not_accepted(socket: &Path) -> usize {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = socket.to_str().unwrap();
    let connects = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields.get(5..), Some(["02", "0", at]) if *at == path)
    };
    sockets.lines().filter(connects).count()
}

/// Looks for a file that no layer has in each of these: a server of the mount answers ENOENT.
async fn look_up(roots: &[PathBuf], name: &'static str) -> Vec<Option<i32>> {
    let looking = roots.iter().cloned().map(|root| {
        let looked = tokio::task::spawn_blocking(move || root.join(name).metadata());
        tokio::time::timeout(PATIENCE, looked)
    });
    let looked = futures::future::join_all(looking).await.into_iter();
    let errors = looked.map(|looked| looked.unwrap().unwrap().unwrap_err().raw_os_error());
    errors.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_requests_cannot_be_read_ends_and_the_next_start_mounts_it_again() {
    let mut node = Node::start(NO_BACKGROUND);
    let (_, _, roots) = node.mounted().await;
    node.daemon.terminate().unwrap();
    // They wait for the next server, whose first read(2) of a request fails.
    let waiting = {
        let roots = roots.clone();
        tokio::spawn(async move { look_up(&roots, "waiting").await })
    };
    let connections = lazy_connections_below(&node.daemon.root()).unwrap();
    wait_for_unanswered(&connections, |waiting| !waiting.contains(&0));
    assert!(!waiting.is_finished(), "no server answers");
    let mut options = SociDaemonOptions::with_config(NO_BACKGROUND);
    options.environment = vec![("SOCI_FAULT_POINT".to_owned(), "fuse-read".to_owned())];
    node.daemon.start_again_with(options).unwrap();

    let answered = waiting.await.unwrap();
    let named = |line: &str| line.contains("giving up the mount");
    let line = node.daemon.log().wait_for(0, PATIENCE, named).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let lost = |root: &PathBuf| line["mountpoint"] == root.to_str().unwrap();
    assert_eq!(roots.iter().filter(|root| lost(root)).count(), 1, "{line}");
    let expected = |error| {
        roots
            .iter()
            .map(move |root| Some(if lost(root) { error } else { ENOENT }))
    };
    assert!(
        answered.iter().copied().eq(expected(ECONNABORTED)),
        "{answered:?}"
    );
    let later = look_up(&roots, "later").await;
    assert!(later.iter().copied().eq(expected(ENOTCONN)), "{later:?}");
    // The server keeps running, and neither it nor the holder has that connection any more.
    let pid = node.daemon.server_pid().unwrap();
    node.daemon.terminate().unwrap();
    let log = node.daemon.log().all().join("\n");
    assert!(!log.contains("server ended by itself"), "{log}");

    node.daemon
        .start_again_with(SociDaemonOptions::with_config(NO_BACKGROUND))
        .unwrap();
    assert_ne!(node.daemon.server_pid().unwrap(), pid);
    let again = look_up(&roots, "again").await;
    assert!(
        again.iter().all(|error| *error == Some(ENOENT)),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_made_while_the_server_is_replaced_wait_and_succeed() {
    let mut node = Node::start(NO_BACKGROUND);
    let (_, image, _) = node.mounted().await;
    for number in 0..10 {
        let pid = node.daemon.signal_server(Signal::KILL).unwrap();
        // A new connection, as the old one went with the server.
        let client = node.client().await;
        let key = format!("while-{number}");
        client.prepare(&key, &image.top()).await.unwrap();
        client.remove(&key).await.unwrap();
        assert_ne!(node.daemon.server_pid().unwrap(), pid);
    }
    // The same between two starts of the daemon: the holder has the socket.
    node.daemon.terminate().unwrap();
    let client = node.client().await;
    let waiting = tokio::spawn(async move { client.list().await });
    wait_until("the call waits at the socket", PATIENCE, || {
        let calls = not_accepted(node.daemon.socket());
        (calls > 0).then_some(()).ok_or("no connection".to_owned())
    });
    assert!(!waiting.is_finished(), "no server answers");
    node.daemon.start_again().unwrap();
    assert!(waiting.await.unwrap().unwrap().len() > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_a_killed_server_is_replaced_and_what_is_stored_is_read() {
    let node = Node::start(NO_BACKGROUND);
    let (_, _, roots) = node.mounted().await;
    let noise = find(&roots, "data/noise");
    let expected = Digest::of(&small_image_data().to_vec());
    assert_eq!(Digest::of(&std::fs::read(&noise).unwrap()), expected);
    tokio::task::block_in_place(|| wait_until_durable(&node.daemon, false));
    node.proxy.inject(Rule::always(Fault::Reset));
    let open = File::open(&noise).unwrap();
    for _ in 0..3 {
        kill_server(&node).await;
        kernel_caches::forget().unwrap();
        assert_eq!(Digest::of(&std::fs::read(&noise).unwrap()), expected);
        let mut start = vec![0; 4096];
        open.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(start, small_image_data().to_vec()[..4096]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_killed_server_is_replaced_and_what_is_stored_is_read() {
    let mut options = SociDaemonOptions::with_config(NO_BACKGROUND);
    options.root_size = Some(64 << 20);
    let node = Node::start_with(options);
    let (_, _, roots) = node.mounted().await;
    let noise = find(&roots, "data/noise");
    let expected = Digest::of(&small_image_data().to_vec());
    assert_eq!(Digest::of(&std::fs::read(&noise).unwrap()), expected);
    tokio::task::block_in_place(|| wait_until_durable(&node.daemon, false));

    let filler = node.daemon.root().join("filler");
    let full = std::fs::write(&filler, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let hello = find(&roots, "data/hello");
    for _ in 0..3 {
        kill_server(&node).await;
        kernel_caches::forget().unwrap();
        assert_eq!(Digest::of(&std::fs::read(&noise).unwrap()), expected);
        // Fetched now: there is no room to store it.
        assert_eq!(std::fs::read(&hello).unwrap(), b"hello\n");
    }
    // With room again, the daemon is as before.
    std::fs::remove_file(&filler).unwrap();
    wait_until("snapshots are made again", PATIENCE, || {
        let made = async {
            let client = node.client().await;
            client.prepare("after", "").await
        };
        let made = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(made));
        made.map(drop).map_err(|status| status.to_string())
    });
}
