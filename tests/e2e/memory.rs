//! A server that takes all the memory that its processes may have. Needs root, FUSE, docker-registry, the two
//! programs, and a memory controller of control groups, of version 1 or 2.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::support::NO_BACKGROUND;
use crate::support::memory_group::{MemoryGroup, supervisor_pid};
use crate::support::node::Node;
use soci_testkit::{SociDaemonOptions, TestRoot};

const PATIENCE: Duration = Duration::from_secs(180);
const LIMIT: u64 = 512 << 20;
/// fcntl.h: past the page cache, so that each read needs the server.
const O_DIRECT: i32 = 0o40000;

fn score(pid: u32) -> i32 {
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    score.unwrap().trim().parse().unwrap()
}

fn read_directly(path: &Path) -> std::io::Result<usize> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(O_DIRECT).open(path)?;
    file.read_at(&mut [0; 4096], 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_all_memory_is_killed_alone_and_readers_notice_a_delay() {
    let root = TestRoot::new().unwrap();
    let metrics = root.path().join("metrics.sock");
    let config = format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n{NO_BACKGROUND}",
        metrics.display()
    );
    let mut node = Node::start(&config);
    let (_, _, roots) = node.mounted().await;
    let file = roots.iter().map(|root| root.join("data/hello"));
    let file = file.into_iter().find(|path| path.exists()).unwrap();
    node.daemon.terminate().unwrap();
    let mut options = SociDaemonOptions::with_config(&config);
    options.environment = vec![("SOCI_FAULT_POINT".to_owned(), "metrics-memory".to_owned())];
    node.daemon.start_again_with(options).unwrap();

    let (supervisor, server) = (
        supervisor_pid(&node.daemon),
        node.daemon.server_pid().unwrap(),
    );
    let holder = node.daemon.holder_pid().unwrap();
    // -999 where the test may lower it (CAP_SYS_RESOURCE).
    assert!(score(supervisor) <= 0 && score(holder) <= 0);
    assert_eq!(score(server), 500, "the right victim");
    let group = MemoryGroup::new(LIMIT);
    for pid in [supervisor, server, holder] {
        group.add(pid);
    }
    let (stop, reads) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let reader = {
        let (stop, reads) = (stop.clone(), reads.clone());
        std::thread::spawn(move || -> std::io::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(read_directly(&file)?, 6);
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    // The answer never comes: the server takes memory instead.
    let mut scrape = UnixStream::connect(&metrics).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n";
    scrape.write_all(request).unwrap();
    let mut answer = Vec::new();
    let _ = tokio::task::block_in_place(|| scrape.read_to_end(&mut answer));
    assert_eq!(answer, b"");

    tokio::task::block_in_place(|| node.daemon.wait_for_successor(server)).unwrap();
    let killed = |line: &str| line.contains("signal 9");
    assert!(node.daemon.log().wait_for(0, PATIENCE, killed).is_some());
    let before = reads.load(Ordering::Relaxed);
    tokio::task::block_in_place(|| {
        while reads.load(Ordering::Relaxed) < before + 20 && !reader.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap().unwrap();
    assert_eq!(supervisor_pid(&node.daemon), supervisor, "no other process");
    assert_eq!(node.daemon.holder_pid().unwrap(), holder);
    node.daemon.terminate().unwrap();
}
