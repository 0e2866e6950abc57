//! Containers in user namespaces on lazy layers: real containerd, runc, registry and FUSE. Needs root
//! and user namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::support::releases::on_each_containerd;
use crate::support::{
    self, NAMESPACE, NO_BACKGROUND, PATIENCE, lazy_mounts, pull, run, stack_under, wait_until_holds,
};
use soci_testkit::image::shell_layer;
use soci_testkit::{
    Content, CriPull, ImageBuilder, Layer, Release, Run, SociDaemonOptions, Stack, StackOptions,
    TestRoot, container_id,
};

const MAP: &str = "0:100000:65536";

/// A lazy layer below, a small one in between, a lazy one on top; gives the image's name.
fn pulled(stack: &Stack, root: &TestRoot) -> String {
    let reference = indexed_image(stack, root);
    pull(stack, &reference);
    assert_eq!(lazy_mounts(stack), 2, "{}", stack.log_tails());
    reference
}

fn indexed_image(stack: &Stack, root: &TestRoot) -> String {
    let noise = |seed| Content::Noise {
        seed,
        length: 300_000,
    };
    let image = ImageBuilder::new()
        .layer(
            shell_layer()
                .unwrap()
                .text("etc/shadow", "root only")
                .mode(0o600)
                .text("etc/user", "u")
                .owner(1000, 1001),
        )
        .layer(
            Layer::new()
                .text("small", "unpacked")
                .mode(0o600)
                .owner(7, 8),
        )
        .layer(Layer::new().file("noise", noise(1)).owner(3, 4))
        .write(&root.dir("layout").unwrap(), "plain")
        .unwrap();
    support::push_indexed(stack, &image, "100000")
}

/// What the container sees of ids, and that it may read what only root may, and write.
const SCRIPT: &str = "busybox cat /proc/self/uid_map | busybox tr -s ' '; \
    busybox stat -c '%u:%g %n' / /bin/busybox /etc/user /small /noise; \
    busybox cat /etc/shadow /small; echo; \
    echo written > /etc/user && busybox cat /etc/user; \
    busybox sha256sum /noise | busybox cut -c 1-8";

fn expected() -> String {
    let noise = Content::Noise {
        seed: 1,
        length: 300_000,
    };
    let sum = soci_oci::Digest::of(&noise.to_vec()).hex();
    format!(
        " 0 100000 65536\n0:0 /\n0:0 /bin/busybox\n1000:1001 /etc/user\n7:8 /small\n3:4 /noise\n\
         root onlyunpacked\nwritten\n{}\n",
        sum.get(..8).unwrap()
    )
}

fn remapped_directories(stack: &Stack) -> Vec<PathBuf> {
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    fs::read_dir(snapshots)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains('_'))
        .collect()
}

on_each_containerd! {
    a_container_in_a_user_namespace_owns_what_its_lazy_layers_hold,
}

fn a_container_in_a_user_namespace_owns_what_its_lazy_layers_hold(release: Release) {
    let root = TestRoot::new().unwrap();
    let mut stack = stack_under(release, NO_BACKGROUND);
    let reference = pulled(&stack, &root);
    let ctr = stack.containerd.ctr(NAMESPACE);
    let container = mapped(&reference, SCRIPT, &[MAP], &[MAP]);
    assert_eq!(ctr.run_ok(&container).unwrap(), expected());

    let kept = container_id();
    let kept = kept.as_str();
    // One that ends, and is started again later from the snapshot that it has.
    let create = ["run", "--detach", "--snapshotter", "soci"];
    let maps = ["--remap-labels", "--uidmap", MAP, "--gidmap", MAP];
    let command = [reference.as_str(), kept, "/bin/sh", "-c", SCRIPT];
    ctr.output(create.iter().chain(&maps).chain(&command))
        .unwrap();
    wait_until_holds(&stack, "the task has ended", || {
        ctr.output(["tasks", "rm", kept]).is_ok()
    });
    let directories = remapped_directories(&stack);
    assert!(directories.len() >= 3, "{directories:?}");
    let busybox = directories
        .iter()
        .map(|path| path.join("fs/bin/busybox"))
        .find_map(|path| fs::metadata(path).ok())
        .unwrap();
    assert_eq!((busybox.uid(), busybox.gid()), (100_000, 100_000));

    // The mounts come back when the daemon does, whichever way it ended.
    assert!(stack.daemon.terminate().unwrap().success());
    stack.daemon.start_again().unwrap();
    assert!(stack.daemon.interrupt().unwrap().success());
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    let shown = ctr.start_task(kept).unwrap();
    assert_eq!(shown, expected(), "{}", stack.log_tails());
    let ids = "busybox stat -c '%u:%g %n' /noise";
    let plain = run(&stack, &reference, &["/bin/sh", "-c", ids]);
    assert_eq!(plain, "3:4 /noise\n");

    ctr.output(["containers", "rm", kept]).unwrap();
    // containerd's collector runs after some deletions, but not after each.
    ctr.output(["content", "prune", "references"]).unwrap();
    wait_until_holds(&stack, "the shifted layers are removed", || {
        remapped_directories(&stack).is_empty() && lazy_mounts(&stack) == 2
    });
}

/// A container in a user namespace with these maps of users and of groups.
fn mapped(reference: &str, script: &str, users: &[&str], groups: &[&str]) -> Run {
    let command = ["/bin/sh", "-c", script];
    let mut container = Run::new(reference, "soci")
        .without_network()
        .command(command)
        .option("--remap-labels");
    for (option, maps) in [("--uidmap", users), ("--gidmap", groups)] {
        for map in maps {
            container = container.option(option).option(map);
        }
    }
    container
}

/// containerd 2.x takes several ranges; what they leave out belongs to the overflow ids.
#[test]
fn ranges_of_users_and_groups_are_mapped_each_for_itself() {
    let root = TestRoot::new().unwrap();
    let stack = stack_under(Release::V2_1, NO_BACKGROUND);
    let reference = pulled(&stack, &root);
    stack.proxy.reset_stats();
    let users = ["0:100000:4", "1000:200000:10"];
    let groups = ["0:300000:8", "1001:400000:1"];
    let script = "busybox stat -c '%u:%g %n' / /bin/busybox /etc/user /small /noise; \
        busybox touch /etc/new && busybox stat -c '%u:%g' /etc/new";
    let run = mapped(&reference, script, &users, &groups);
    let shown = stack.containerd.ctr(NAMESPACE).run_ok(&run).unwrap();
    assert_eq!(
        shown,
        "0:0 /\n0:0 /bin/busybox\n1000:1001 /etc/user\n65534:65534 /small\n3:4 /noise\n0:0\n"
    );
}

const LINE: &str = "capabilities = [\"remap-ids\", \"multi-remap-ids\"]";

/// Without the line containerd 2.x translates the owners of the image itself, in a copy, and requests
/// their translation as well.
#[test]
fn without_the_capabilities_line_a_user_namespace_is_refused_with_a_sentence_that_names_it() {
    let root = TestRoot::new().unwrap();
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
        release: Release::V2_1,
        cri: Some(CriPull::Local),
        without_capabilities: true,
        ..StackOptions::default()
    })
    .unwrap();
    let reference = pulled(&stack, &root);
    stack.proxy.reset_stats();
    let container = mapped(&reference, SCRIPT, &[MAP], &[MAP]);
    let refused = stack.containerd.ctr(NAMESPACE).run(&container).unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    assert!(refused.stderr.contains(LINE), "{refused:?}");
    assert_eq!(stack.proxy.stats().blobs().bytes, 0, "nothing is fetched");
    let cri = stack.containerd.cri().unwrap();
    let refused = cri.run_pod_in_user_namespace(root.path(), 100_000, 65_536);
    let refused = format!("{:#}", refused.unwrap_err()).replace('\\', "");
    assert!(refused.contains(LINE), "{refused}");
    // Containers without a user namespace are not concerned.
    assert_eq!(
        run(&stack, &reference, &["/bin/busybox", "cat", "/small"]),
        "unpacked"
    );
}

/// What the kubelet does for `hostUsers: false`.
#[test]
fn a_pod_in_a_user_namespace_owns_what_its_lazy_layers_hold() {
    let root = TestRoot::new().unwrap();
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
        release: Release::V2_1,
        cri: Some(CriPull::Local),
        ..StackOptions::default()
    })
    .unwrap();
    let reference = indexed_image(&stack, &root);
    let cri = stack.containerd.cri().unwrap();
    let name = cri.pull(&reference).unwrap();
    assert_eq!(lazy_mounts(&stack), 2, "{}", stack.log_tails());
    let pod = cri
        .run_pod_in_user_namespace(root.path(), 100_000, 65_536)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", stack.log_tails()));
    let container = cri
        .start_container(&pod, &name, &["/bin/sh", "-c", SCRIPT])
        .unwrap();
    assert_eq!(cri.wait_container(&container, PATIENCE).unwrap(), 0);
    let log = container.log().unwrap();
    assert_eq!(log, expected(), "{}", stack.log_tails());
    cri.remove_container(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
    wait_until_holds(&stack, "the shifted layers are removed", || {
        remapped_directories(&stack).is_empty()
    });
}
