//! A crash of the daemon between any two steps: the test kills it at each fault point in turn and
//! looks at what the next start makes of it, while the registry cannot be reached. Needs root, FUSE,
//! docker-registry and the two programs, built for debugging.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::node::{Client, Image, Node, lower_directories};
use crate::support::{NO_BACKGROUND, left_below, wait_until};
use soci_containerd::labels;
use soci_snapshotter::api::v1::Kind;
use soci_testkit::{Fault, Rule, SociDaemonOptions};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(180);
/// Within this time a step that has removed the last file reaches its fault point.
const AFTER_THE_LAST_STEP: Duration = Duration::from_secs(5);
/// A registry that is not there must not cost minutes.
const HASTY: &str = "[http]\nMaxRetries = 0\nMinWaitMsec = 1\nMaxWaitMsec = 1\n";
/// SIGABRT, as abort(3) raises it.
pub(crate) const ABORTED: i32 = 6;
/// A point in every transaction: reached often, and tried each time.
const EVERY_TRANSACTION: &str = "metadata-changed";

fn config() -> String {
    format!("{HASTY}{NO_BACKGROUND}")
}

/// The fault points in the sources of these crates.
pub(crate) fn fault_points(crates: &[&str]) -> BTreeSet<String> {
    let mut points = BTreeSet::new();
    for name in crates {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates")
            .join(name);
        let mut folders = vec![sources.join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(path).unwrap();
                for after in text.split("faults::point(\"").skip(1) {
                    points.insert(after.split('"').next().unwrap().to_owned());
                }
            }
        }
    }
    points
}

/// What the steps work on.
struct Images {
    lazy: Image,
    plain: Image,
}

/// Passes over what a repetition may answer.
fn unless<T>(result: Result<T, Status>, accepted: &[Code]) -> Result<(), Status> {
    match result {
        Err(status) if !accepted.contains(&status.code()) => Err(status),
        _ => Ok(()),
    }
}

/// Pulls, makes containers' snapshots and commits. May be repeated whatever was done of it before.
async fn make(client: &Client, images: &Images) -> Result<(), Status> {
    for layer in 0..images.lazy.layers.len() {
        let answer = client.pull_layer(&images.lazy, layer).await;
        assert!(answer.is_err(), "layer {layer} is lazy, or unpacked here");
        unless(answer, &[Code::AlreadyExists])?;
    }
    let target = images.plain.target(0);
    let key = format!("extract {target}");
    unless(
        client.pull_layer(&images.plain, 0).await,
        &[Code::AlreadyExists],
    )?;
    match client.mounts(&key).await {
        Ok(mounts) => std::fs::write(Path::new(&mounts[0].source).join("file"), "x").unwrap(),
        // Committed before.
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status),
    }
    unless(
        client.commit(&target, &key).await,
        &[Code::NotFound, Code::AlreadyExists],
    )?;
    let top = images.lazy.top();
    unless(client.prepare("box", &top).await, &[Code::AlreadyExists])?;
    unless(client.view("look", &top).await, &[Code::AlreadyExists])?;
    unless(client.prepare("work", "").await, &[Code::AlreadyExists])?;
    unless(
        client.commit("done", "work").await,
        &[Code::NotFound, Code::AlreadyExists],
    )
}

/// Removes what [`make`] makes.
async fn unmake(client: &Client, images: &Images) -> Result<(), Status> {
    let mut names: Vec<String> = ["box", "look", "work", "done"].map(str::to_owned).into();
    names.push(format!("extract {}", images.plain.target(0)));
    names.push(images.plain.target(0));
    names.extend(
        (0..images.lazy.layers.len())
            .rev()
            .map(|layer| images.lazy.target(layer)),
    );
    for name in names {
        unless(client.remove(&name).await, &[Code::NotFound])?;
    }
    client.cleanup().await
}

/// What must hold whenever a daemon has started.
async fn check_consistent(client: &Client, root: &Path) {
    let all = client.list().await.unwrap();
    let names: BTreeSet<&str> = all.iter().map(|info| info.name.as_str()).collect();
    let mut lazy = 0;
    for info in &all {
        assert!(
            info.parent.is_empty() || names.contains(info.parent.as_str()),
            "{info:?} has lost its parent"
        );
        lazy += usize::from(info.labels.contains_key(labels::REMOTE));
        if info.kind() != Kind::Committed {
            for mount in client.mounts(&info.name).await.unwrap() {
                let options = lower_directories(std::slice::from_ref(&mount));
                for directory in options {
                    assert!(directory.is_dir(), "{} is gone", directory.display());
                }
                if mount.r#type == "bind" {
                    let entries = std::fs::read_dir(&mount.source).unwrap();
                    assert!(entries.count() <= 1, "{} is half-written", mount.source);
                }
            }
        }
    }
    client.cleanup().await.unwrap();
    wait_until("unused layers are swept", PATIENCE, || {
        let left = left_below(root);
        let count = |prefix: &str| left.iter().filter(|name| name.starts_with(prefix)).count();
        let found = [
            count("snapshotter/snapshots/"),
            count("soci/layers/"),
            count("soci/images/"),
            count("mount "),
        ];
        match found == [all.len(), lazy, usize::from(lazy > 0), lazy] {
            true => Ok(()),
            false => Err(format!(
                "{} snapshots, {lazy} lazy, but {left:#?}",
                all.len()
            )),
        }
    });
}

/// Crashes the daemon at a point, and checks the next start. False: it was not reached.
async fn dies_at(node: &mut Node, images: &Images, point: &str) -> bool {
    node.daemon.terminate().unwrap();
    let mut options = SociDaemonOptions::with_config(&config());
    options.environment = vec![("SOCI_FAULT_POINT".to_owned(), point.to_owned())];
    // A supervisor would have another server mend what this one leaves.
    options.alone = true;
    node.daemon.start_again_with(options).unwrap();
    let client = node.client().await;
    let crashed = async {
        make(&client, images).await?;
        unmake(&client, images).await
    };
    // Unmounting a layer that is still in use ends its layer and its index after the calls.
    let crashed = crashed.await.is_err() || crashes_while_sweeping(node, point);
    if crashed {
        let status = node.daemon.wait().unwrap();
        assert_eq!(status.signal(), Some(ABORTED), "{point}: {status}");
        // Whatever is on record is brought back without the registry.
        node.proxy.inject(Rule::always(Fault::Reset));
        node.daemon
            .start_again_with(SociDaemonOptions::with_config(&config()))
            .unwrap();
        let client = node.client().await;
        check_consistent(&client, &node.daemon.root()).await;
        node.proxy.clear_faults();
        make(&client, images).await.unwrap();
        let mounts = client.mounts("box").await.unwrap();
        let directories = lower_directories(&mounts);
        let read = std::fs::read_to_string(directories[0].join("data/hello"));
        assert_eq!(read.unwrap(), "hello\n", "{point}");
        check_consistent(&client, &node.daemon.root()).await;
        unmake(&client, images).await.unwrap();
    }
    wait_until("nothing is left", PATIENCE, || nothing_left(node, point));
    crashed
}

fn nothing_left(node: &Node, point: &str) -> Result<(), String> {
    match left_below(&node.daemon.root()) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{point}: {left:?}")),
    }
}

/// Whether the daemon crashes at a point that it reaches after it has answered everything.
fn crashes_while_sweeping(node: &mut Node, point: &str) -> bool {
    wait_until(
        "nothing is left, or it has crashed",
        PATIENCE,
        || match node.daemon.ended().unwrap() {
            Some(_) => Ok(()),
            None => nothing_left(node, point),
        },
    );
    // The point may follow the last removal.
    let deadline = Instant::now() + AFTER_THE_LAST_STEP;
    while Instant::now() < deadline {
        if node.daemon.ended().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn node() -> (Node, Images) {
    let node = Node::start(&config());
    let images = Images {
        lazy: node.small_partly("lazy"),
        plain: node.small("plain", false),
    };
    (node, images)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_leaves_nothing_half_done() {
    let (mut node, images) = node();
    let points = fault_points(&["snapshotter", "lazy"]);
    assert!(points.len() > 20, "{points:?}");
    for point in points {
        if point == EVERY_TRANSACTION {
            continue;
        }
        assert!(
            dies_at(&mut node, &images, &point).await,
            "{point} is never reached: the steps above must lead to it"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_any_transaction_leaves_it_done_or_not_done() {
    let (mut node, images) = node();
    let mut transactions = 0;
    // The first is that of the start itself.
    while dies_at(
        &mut node,
        &images,
        &format!("{EVERY_TRANSACTION}:{}", transactions + 2),
    )
    .await
    {
        transactions += 1;
    }
    assert!(transactions > 10, "{transactions}");
}
