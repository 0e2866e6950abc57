//! Containers in user namespaces on lazy layers: real containerd, runc, registry and FUSE. Needs root
//! and user namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{NAMESPACE, NO_BACKGROUND, lazy_mounts, pull, run, stack};
use soci_testkit::{Content, ImageBuilder, Layer, Run, SociCli, Stack, TestRoot};

const MAP: &str = "0:100000:65536";

/// A lazy layer below, a small one in between, a lazy one on top; gives the image's name.
fn pulled(stack: &Stack, root: &TestRoot) -> String {
    let noise = |seed| Content::Noise {
        seed,
        length: 300_000,
    };
    let image = ImageBuilder::new()
        .layer(
            Layer::new()
                .program("bin/busybox", Path::new("/bin/busybox"))
                .unwrap()
                .symlink("bin/sh", "busybox")
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
    stack.push(&image.dir, "plain", "app").unwrap();
    let at = |tag: &str| {
        format!(
            "docker://{}",
            stack.registry.reference(&format!("app:{tag}"))
        )
    };
    let convert = ["convert", "--standalone", "--min-layer-size", "100000"];
    let arguments = convert.map(str::to_owned).into_iter();
    let arguments = arguments.chain([at("plain"), at("soci")]);
    SociCli::standalone().unwrap().output(arguments).unwrap();
    let reference = stack.reference("app:soci");
    pull(stack, &reference);
    assert_eq!(lazy_mounts(stack), 2, "{}", stack.log_tails());
    reference
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

#[test]
fn a_container_in_a_user_namespace_owns_what_its_lazy_layers_hold() {
    let root = TestRoot::new().unwrap();
    let mut stack = stack(NO_BACKGROUND);
    let reference = pulled(&stack, &root);
    let ctr = stack.containerd.ctr(NAMESPACE);
    let mut container = Run::new(&reference, "soci")
        .without_network()
        .command(["/bin/sh", "-c", SCRIPT]);
    for option in ["--remap-labels", "--uidmap", MAP, "--gidmap", MAP] {
        container = container.option(option);
    }
    assert_eq!(ctr.run_ok(&container).unwrap(), expected());

    // One that ends, and is started again later from the snapshot that it has.
    let create = ["run", "--detach", "--snapshotter", "soci"];
    let maps = ["--remap-labels", "--uidmap", MAP, "--gidmap", MAP];
    let command = [reference.as_str(), "kept", "/bin/sh", "-c", SCRIPT];
    ctr.output(create.iter().chain(&maps).chain(&command))
        .unwrap();
    wait_until(&stack, || ctr.output(["tasks", "rm", "kept"]).is_ok());
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
    let shown = ctr.start_task("kept").unwrap();
    assert_eq!(shown.stdout, expected(), "{}", stack.log_tails());
    let ids = "busybox stat -c '%u:%g %n' /noise";
    let plain = run(&stack, &reference, &["/bin/sh", "-c", ids]);
    assert_eq!(plain, "3:4 /noise\n");

    ctr.output(["containers", "rm", "kept"]).unwrap();
    // containerd's collector runs after some deletions, but not after each.
    ctr.output(["content", "prune", "references"]).unwrap();
    wait_until(&stack, || {
        remapped_directories(&stack).is_empty() && lazy_mounts(&stack) == 2
    });
}

fn wait_until(stack: &Stack, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{}", stack.log_tails());
        std::thread::sleep(Duration::from_millis(100));
    }
}
