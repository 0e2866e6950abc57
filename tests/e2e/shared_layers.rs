//! A lazy layer of two images is readable as long as one of them can be pulled. Needs root, FUSE,
//! containerd with CRI, docker-registry and the two programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::keychains::{Images, Node, pull_as, pull_patiently, remove};
use crate::support::releases::on_each_containerd;
use crate::support::{PATIENCE, wait_until};
use soci_testkit::image::{ImageBuilder, Layer};
use soci_testkit::process::mounts_below;
use soci_testkit::{Auth, Content, Release, SociCli, TestRoot};

/// Files of the shared layer, each of several spans.
const FILES: u64 = 120;
const FILE: usize = 100_000;

const USER_A: (&str, &str) = ("ua", "password-of-a");
const USER_B: (&str, &str) = ("ub", "password-of-b");

fn content(file: u64) -> Vec<u8> {
    let mut state = file + 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(FILE)
    .collect()
}

/// Puts an image with the shared layer and one of its own into a repository.
fn push(node: &Node, repository: &str) {
    let layout = TestRoot::new().unwrap();
    let mut shared = Layer::new();
    for file in 0..FILES {
        shared = shared.file(&format!("blob/{file}"), Content::Bytes(content(file)));
    }
    let own = Layer::new().text("of", repository);
    let image = ImageBuilder::new().layer(shared).layer(own);
    image.write(layout.path(), "image").unwrap();
    let source = layout.path().display().to_string();
    let target = node
        .registry
        .docker_reference(&format!("{repository}:soci"));
    let options = ["--min-layer-size", "0", "--span-size", "65536"];
    let soci = SociCli::standalone().unwrap();
    soci.convert(&options, &source, &target).unwrap();
}

fn demand(node: &Node, accounts: &[(&str, (&str, &str))]) {
    let owned = |(user, password): (&str, &str)| (user.to_owned(), password.to_owned());
    let accounts = accounts.iter();
    let accounts: BTreeMap<_, _> = accounts
        .map(|&(repository, account)| (repository.to_owned(), owned(account)))
        .collect();
    node.proxy.demand(Auth::BasicByRepository(accounts));
}

/// Where the shared layer is mounted.
fn mount(node: &Node) -> PathBuf {
    let mounts = mounts_below(&node.daemon.root()).unwrap().into_iter();
    let mut shared = mounts.filter(|mount| mount.join("blob/0").exists());
    shared.next().expect("the shared layer is not mounted")
}

/// Reads a file that was not read before, and returns the repositories that have served it.
fn read(node: &Node, file: u64, case: &str) -> BTreeSet<String> {
    node.proxy.reset_stats();
    let path = mount(node).join(format!("blob/{file}"));
    let read = std::fs::read(path).unwrap_or_else(|error| {
        panic!("{case}: {error}\n{}", node.daemon.log().tail(20));
    });
    assert!(read == content(file), "{case}: wrong bytes");
    let served = node.proxy.stats().log.into_iter();
    let served = served.filter(|request| request.status == 206);
    let repositories: BTreeSet<String> = served
        .map(|request| request.path.split('/').nth(2).unwrap().to_owned())
        .collect();
    assert!(!repositories.is_empty(), "{case}: it was read before");
    repositories
}

on_each_containerd! {
    a_layer_of_two_images_is_read_as_long_as_one_of_them_can_be_pulled,
}

fn a_layer_of_two_images_is_read_as_long_as_one_of_them_can_be_pulled(release: Release) {
    let root = TestRoot::new().unwrap();
    let mut node = Node::start(release, &root.dir("docker").unwrap());
    push(&node, "priva");
    push(&node, "privb");
    let both = [("priva", USER_A), ("privb", USER_B)];
    demand(&node, &both);
    let image = |repository: &str| format!("{}/{repository}:soci", node.proxy.address());
    let (a, b) = (image("priva"), image("privb"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = |node: &Node| {
        let connect = containerd_client::connect(node.daemon.socket());
        Images::new(runtime.block_on(connect).unwrap())
    };
    let mut images = connect(&node);
    runtime.block_on(async {
        for (image, user) in [(&a, USER_A), (&b, USER_B)] {
            let pulled = pull_patiently(&mut images, image, Some(user)).await;
            pulled.unwrap();
        }
    });
    assert_eq!(node.lazy_mounts(), 3, "one layer is shared");
    read(&node, 0, "nothing has happened");

    // One image is removed.
    runtime.block_on(remove(&mut images, &a));
    read(&node, 12, "one image is removed");
    wait_until("its credentials are forgotten", PATIENCE, || {
        let log = node.daemon.log().all();
        let forgotten = |line: &String| {
            line.contains("credentials of a removed image are forgotten") && line.contains("priva")
        };
        match log.iter().any(forgotten) {
            true => Ok(()),
            false => Err("no such line".to_owned()),
        }
    });
    node.daemon.terminate().unwrap();
    node.daemon.start_again().unwrap();
    let by = read(
        &node,
        24,
        "one image is removed, and the daemon started again",
    );
    assert_eq!(by, BTreeSet::from(["privb".to_owned()]));

    // Pulled again.
    let mut images = connect(&node);
    runtime
        .block_on(pull_patiently(&mut images, &b, Some(USER_B)))
        .unwrap();
    read(&node, 36, "the other is pulled again");
    runtime
        .block_on(pull_as(&mut images, &a, Some(USER_A)))
        .unwrap();
    read(&node, 48, "the removed one is pulled again");

    // Either account is revoked, with and without a restart.
    for (kept, at) in [(both[1], 60), (both[0], 84)] {
        demand(&node, &[kept]);
        let by = read(&node, at, "an account is revoked");
        assert_eq!(by, BTreeSet::from([kept.0.to_owned()]));
        node.daemon.terminate().unwrap();
        node.daemon.start_again().unwrap();
        let by = read(
            &node,
            at + 12,
            "an account is revoked, and the daemon started again",
        );
        assert_eq!(by, BTreeSet::from([kept.0.to_owned()]));
    }
    let log = node.daemon.log().all().join("\n");
    assert!(!log.contains("password-of"), "a password is in the log");
}
