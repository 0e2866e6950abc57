//! Layers of an indexed image that cannot be lazy are fetched and unpacked by the daemon: real
//! containerd, runc, registry and FUSE. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::releases::on_each_containerd;
use crate::support::{
    self, NAMESPACE, NO_BACKGROUND, lazy_mounts, pull, run, stack, stack_under, wait_for_lines,
};
use soci_testkit::image::{OciImage, shell_layer};
use soci_testkit::listing::{self, Listing};
use soci_testkit::{Fault, ImageBuilder, Layer, Release, Rule, Stack, TestRoot};

/// Smaller layers get no zTOC.
const MINIMUM: &str = "100000";

/// A large layer, and two small ones with what is hard to unpack.
fn image(root: &TestRoot) -> OciImage {
    let busybox = shell_layer()
        .unwrap()
        .symlink("bin/cat", "busybox")
        .dir("srv")
        .mode(0o2770)
        .owner(11, 12)
        .xattr("user.note", b"n")
        .symlink("link", "srv")
        .dir("old")
        .text("old/one", "1")
        .text("gone", "");
    let middle = Layer::new()
        .text("srv/implied", "i")
        .text("link/through", "t")
        .opaque("old")
        .text("old/two", "2")
        .whiteout("gone")
        .text("etc/suid", "s")
        .mode(0o4755)
        .owner(5, 6)
        .fifo("etc/fifo")
        .hardlink("etc/hard", "etc/suid")
        .mode(0o4755)
        .owner(5, 6)
        .text("etc/motd", "local\n");
    let top = Layer::new().text("srv/top", "t").whiteout("etc/hard");
    ImageBuilder::new()
        .layer(busybox)
        .layer(middle)
        .layer(top)
        .command(["cat", "/etc/motd"])
        .write(&root.dir("layout").unwrap(), "plain")
        .unwrap()
}

/// Pushes the image with an index that lists its large layer only; gives its name.
fn indexed(stack: &Stack, image: &OciImage) -> String {
    support::push_indexed(stack, image, MINIMUM)
}

fn numbered(folder: &Path) -> Vec<PathBuf> {
    let mut ids: Vec<u32> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.parse().unwrap())
        .collect();
    ids.sort_unstable();
    ids.iter()
        .map(|id| folder.join(id.to_string()).join("fs"))
        .collect()
}

/// Times of unpacking are taken out.
fn files(folder: &Path) -> Listing {
    let mut files = listing::of(folder);
    for file in files.values_mut() {
        let mut columns: Vec<&str> = file.line.split('|').collect();
        if !columns[4].starts_with("1704067200.") {
            columns[4] = "-";
        }
        file.line = columns.join("|");
    }
    files
}

/// How many layers were prepared in which way, of as many as `expected` has.
fn outcomes_are<const N: usize>(stack: &Stack, expected: [(&'static str, usize); N]) {
    let keys = [
        "remote-snapshot-prepared",
        "local-snapshot-prepared",
        "defer-snapshot-runtime",
    ];
    let outcome = |line: &serde_json::Value| keys.into_iter().find(|key| line[*key] == "true");
    let layers = expected.iter().map(|(_, count)| count).sum();
    let lines = wait_for_lines(&stack.daemon, layers, |line| outcome(line).is_some());
    let mut counts = BTreeMap::new();
    for key in lines.iter().filter_map(outcome) {
        *counts.entry(key).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from(expected));
}

on_each_containerd! {
    layers_without_ztoc_are_unpacked_by_the_daemon_as_by_containerd,
}

fn layers_without_ztoc_are_unpacked_by_the_daemon_as_by_containerd(release: Release) {
    let root = TestRoot::new().unwrap();
    let image = image(&root);
    let mut stack = stack_under(release, NO_BACKGROUND);
    let reference = indexed(&stack, &image);
    let lines = pull(&stack, &reference);
    assert_eq!(
        lines.matches("unpacked by the snapshotter").count(),
        2,
        "{lines}"
    );
    assert_eq!(lazy_mounts(&stack), 1, "{}", stack.log_tails());
    let expected = [
        ("local-snapshot-prepared", 2),
        ("remote-snapshot-prepared", 1),
    ];
    outcomes_are(&stack, expected);

    // Nothing went through containerd, and each small layer was fetched once.
    let content = stack
        .containerd
        .ctr(NAMESPACE)
        .output(["content", "ls"])
        .unwrap();
    for layer in &image.layers {
        assert!(
            !content.contains(&format!("\n{}", layer.digest)),
            "{content}"
        );
    }
    for layer in &image.layers[1..] {
        let asked = stack.proxy.stats().blob(layer.digest);
        assert_eq!(asked.bytes, layer.size, "{asked:?}");
    }

    // The same files as containerd's own snapshotter unpacks from the plain image.
    let ctr = stack.containerd.ctr("plain");
    ctr.pull(&stack.registry.reference("app:plain"), "overlayfs")
        .unwrap();
    let theirs = stack
        .containerd
        .root()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let ours = numbered(&stack.daemon.root().join("snapshotter/snapshots"));
    for (ours, theirs) in ours.iter().zip(numbered(&theirs)).skip(1) {
        assert_eq!(files(ours), files(&theirs), "{}", ours.display());
    }

    let script = "cat /etc/motd /srv/implied /srv/top /link/through; ls /old; ls /gone /etc/hard";
    let command = ["/bin/sh", "-c", &format!("{script} 2>/dev/null; true")];
    let shown = run(&stack, &reference, &command);
    assert_eq!(shown, "local\nitttwo\n");
    assert!(
        fs::read_dir(stack.daemon.root().join("unpack"))
            .unwrap()
            .next()
            .is_none()
    );

    // They need no one after a restart.
    assert!(stack.daemon.terminate().unwrap().success());
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(run(&stack, &reference, &command), shown);

    // And go with the image.
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &reference]).unwrap();
    let snapshots = stack.daemon.root().join("snapshotter/snapshots");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while fs::read_dir(&snapshots).unwrap().next().is_some() {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            stack.log_tails()
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn below_min_layer_size_layers_are_unpacked_without_a_look_at_the_index() {
    let root = TestRoot::new().unwrap();
    let image = image(&root);
    let config = format!("{NO_BACKGROUND}[snapshotter]\nmin_layer_size = 100000000\n");
    let stack = stack(&config);
    // The image has no index at all.
    stack.push(&image.dir, "plain", "app").unwrap();
    let reference = stack.reference("app:plain");
    let lines = pull(&stack, &reference);
    assert_eq!(
        lines.matches("unpacked by the snapshotter").count(),
        3,
        "{lines}"
    );
    assert_eq!(lazy_mounts(&stack), 0);
    outcomes_are(&stack, [("local-snapshot-prepared", 3)]);
    assert_eq!(run(&stack, &reference, &[]), "local\n");
}

#[test]
fn a_layer_that_the_registry_damages_is_never_unpacked_and_leaves_nothing() {
    let root = TestRoot::new().unwrap();
    let image = image(&root);
    let config =
        format!("{NO_BACKGROUND}[http]\nMaxRetries = 1\nMinWaitMsec = 5\nMaxWaitMsec = 20\n");
    let stack = stack(&config);
    let reference = indexed(&stack, &image);
    let damaged = Rule::always(Fault::CorruptBlob(100)).blob(image.layers[1].digest);
    stack.proxy.inject(damaged);
    let soci = stack.soci(NAMESPACE).unwrap();
    let failed = soci.output(["pull", "--plain-http", &reference]);
    assert!(failed.is_err(), "{failed:?}");
    let expected = [
        ("remote-snapshot-prepared", 1),
        ("defer-snapshot-runtime", 1),
    ];
    outcomes_are(&stack, expected);
    assert!(
        fs::read_dir(stack.daemon.root().join("unpack"))
            .unwrap()
            .next()
            .is_none()
    );
    // The lazy layer below is there, and nothing of the damaged one.
    let ours = numbered(&stack.daemon.root().join("snapshotter/snapshots"));
    for folder in ours.iter().skip(1) {
        assert!(
            fs::read_dir(folder).unwrap().next().is_none(),
            "{}",
            folder.display()
        );
    }
    // When the registry is well again, so is the image.
    stack.proxy.clear_faults();
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &[]), "local\n");
}

#[test]
fn images_that_are_pulled_at_once_share_no_harm() {
    let root = TestRoot::new().unwrap();
    let image = image(&root);
    let stack = stack(NO_BACKGROUND);
    let reference = indexed(&stack, &image);
    // Each namespace has snapshots of its own.
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6)
            .map(|number| {
                let (stack, reference) = (&stack, &reference);
                scope.spawn(move || {
                    let soci = stack.soci(&format!("ns{number}")).unwrap();
                    soci.output(["pull", "--plain-http", reference]).unwrap()
                })
            })
            .collect();
        for pull in pulls {
            pull.join().unwrap();
        }
    });
    for number in 0..6 {
        let ctr = stack.containerd.ctr(&format!("ns{number}"));
        let shown = ctr
            .run_ok(&soci_testkit::Run::new(&reference, "soci"))
            .unwrap();
        assert_eq!(shown, "local\n");
    }
}
