//! Starts that cannot bring everything back. Needs root, FUSE, docker-registry and the two programs.

use std::time::{Duration, Instant};

use crate::support::node::{Node, lower_directories};
use crate::support::{NO_BACKGROUND, PATIENCE, wait_until};
use soci_testkit::{Fault, Rule, SociDaemonOptions};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_stops_a_strict_start_and_is_mended_when_the_registry_is_back() {
    let hasty =
        format!("[http]\nMaxRetries = 0\nMinWaitMsec = 1\nMaxWaitMsec = 1\n{NO_BACKGROUND}");
    let mut node = Node::start(&hasty);
    let image = node.small("small", true);
    let client = node.client().await;
    for layer in 0..image.layers.len() {
        let answer = client.pull_layer(&image, layer).await;
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
    }
    node.daemon.terminate().unwrap();
    for folder in ["soci", "content"] {
        std::fs::remove_dir_all(node.daemon.root().join(folder)).unwrap();
    }
    node.proxy.inject(Rule::always(Fault::Reset));

    let strict = format!("{hasty}[holder]\nrequire_all_mounts = true\n");
    let started = node
        .daemon
        .start_again_with(SociDaemonOptions::with_config(&strict));
    assert!(started.is_err());
    let refused = node.daemon.log().all().join("\n");
    assert!(
        refused.contains("cannot mount the lazy snapshot"),
        "{refused}"
    );
    assert!(refused.contains("require_all_mounts"), "{refused}");

    node.daemon
        .start_again_with(SociDaemonOptions::with_config(&hasty))
        .unwrap();
    let client = node.client().await;
    let refused = client.prepare("box", &image.top()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);

    node.proxy.clear_faults();
    // A failure is cached for two seconds, not for the minute of an image without an index.
    let deadline = Instant::now() + Duration::from_secs(120);
    let mounts = loop {
        match client.prepare("box", &image.top()).await {
            Ok(mounts) => break mounts,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let directories = lower_directories(&mounts);
    let read = std::fs::read_to_string(directories[0].join("data/hello"));
    assert_eq!(read.unwrap(), "hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_hidden_root_folder_names_the_holder_that_keeps_the_socket() {
    let mut node = Node::start(NO_BACKGROUND);
    let _mounted = node.mounted().await;
    node.daemon.terminate().unwrap();
    // As when the volume of the root folder is mounted late, or twice.
    let root = node.daemon.root();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&root)
        .status();
    assert!(mount.unwrap().success());
    let refused = node.daemon.start_again().unwrap_err();
    let refused = format!("{refused:#}");
    // The start has made a holder for the hidden folder, which ends because it holds nothing.
    wait_until("the mount is not in use", PATIENCE, || {
        let unmount = std::process::Command::new("umount").arg(&root).output();
        match unmount.unwrap() {
            output if output.status.success() => Ok(()),
            output => Err(format!("{output:?}")),
        }
    });
    assert!(refused.contains("the holder (process "), "{refused}");
    assert!(refused.contains("hidden by a mount over it"), "{refused}");
    node.daemon.start_again().unwrap();
}
