//! Containers that nest more folders than any recursion or path survives. Needs root, FUSE,
//! docker-registry and the two programs.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::support::node::Node;
use crate::support::{NO_BACKGROUND, PATIENCE, wait_until};

/// A removal that recurses ends the server at some 12,000.
const LEVELS: usize = 20_000;

fn nest(top: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..LEVELS {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_twenty_thousand_folders_goes_and_the_daemon_serves_on() {
    let mut node = Node::start(NO_BACKGROUND);
    let (client, image, _) = node.mounted().await;
    let upper = |mounts: &[soci_snapshotter::api::types::Mount]| -> PathBuf {
        let mut options = mounts[0].options.iter();
        let upper = options.find_map(|option| option.strip_prefix("upperdir="));
        PathBuf::from(upper.unwrap())
    };
    let first = upper(&client.prepare("first", &image.top()).await.unwrap());
    nest(&first);
    client.remove("first").await.unwrap();
    client.cleanup().await.unwrap();
    assert!(!first.exists());
    // The same left to the next start, which knows no snapshot of that number.
    node.daemon.terminate().unwrap();
    let second = first.ancestors().nth(2).unwrap().join("424242");
    std::fs::create_dir_all(second.join("fs")).unwrap();
    nest(&second.join("fs"));
    node.daemon.start_again().unwrap();
    wait_until("the folders are gone", 5 * PATIENCE, || {
        match second.exists() {
            true => Err(format!("{} exists", second.display())),
            false => Ok(()),
        }
    });
    let client = node.client().await;
    client.prepare("third", &image.top()).await.unwrap();
    let log = node.daemon.log().all().join("\n");
    assert!(!log.contains("the server ended by itself"), "{log}");
}
