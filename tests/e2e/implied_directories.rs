//! Directories that a layer only implies look as in the layers below, as containerd's own snapshotter
//! shows them: real containerd, runc, registry and FUSE. Needs root and user namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use soci_testkit::image::OciImage;
use soci_testkit::kernel_caches;
use soci_testkit::{Content, ImageBuilder, Layer, Run, Stack, TestRoot, container_id};

use crate::support::{self, NAMESPACE, NO_BACKGROUND, PATIENCE, lazy_mounts, stack, wait_until};

/// Layers of less are unpacked.
const MINIMUM: &str = "100000";
/// When the newest entry of the image was changed.
const NEWEST: u64 = 1_704_067_200;
const MAP: &str = "0:100000:65536";

/// Five layers, of which the upper ones have files and hardly any directories. Every second one is
/// large.
fn image(root: &TestRoot, large: usize) -> OciImage {
    let base = Layer::new()
        .program("bin/busybox", Path::new("/bin/busybox"))
        .unwrap()
        .symlink("bin/sh", "busybox")
        .text("etc/passwd", "app:x:65532:65532::/:/bin/sh\n")
        .text("etc/group", "app:x:65532:\n")
        .dir("tmp")
        .mode(0o1777)
        .dir("home")
        .mode(0o751)
        .owner(7, 8)
        .dir("home/app")
        .mode(0o700)
        .owner(65532, 65532)
        .dir("home/app/.cache")
        .mode(0o2770)
        .owner(65532, 10)
        .dir("srv")
        .mode(0o3771)
        .owner(33, 34)
        .xattr("user.note", b"from below")
        .xattr("trusted.forged", b"t")
        .dir("srv/deep")
        .mode(0o711)
        .owner(35, 36)
        .xattr("user.note", b"from below")
        .dir("opq")
        .mode(0o701)
        .owner(41, 42)
        .dir("opq/in")
        .mode(0o702)
        .owner(43, 44)
        .text("opq/in/old", "")
        .dir("gone")
        .mode(0o703)
        .owner(45, 46)
        .text("gone/old", "")
        .dir("once")
        .mode(0o704)
        .owner(47, 48)
        .dir("linked")
        .mode(0o705)
        .owner(49, 50)
        .symlink("alias", "linked")
        .text("file-then-directory", "");
    let implying = Layer::new()
        .text("tmp/one", "")
        .text("home/app/bin/tool", "")
        .owner(65532, 65532)
        .text("home/app/.cache/new/x", "")
        .text("srv/deep/new/file", "")
        .text("once/a", "")
        .text("new/a/b/c", "");
    let hiding = Layer::new()
        .whiteout("gone")
        .dir("opq")
        .mode(0o706)
        .owner(51, 52)
        .opaque("opq")
        .whiteout("file-then-directory");
    let again = Layer::new()
        .text("gone/new", "")
        .text("opq/in/new", "")
        .text("tmp/two", "")
        .text("once/b", "")
        .text("alias-is-hidden/x", "")
        .text("home/app/bin/tool2", "")
        .text("file-then-directory/x", "")
        .text("new/a/b/d", "");
    let top = Layer::new()
        .dir("once")
        .mode(0o715)
        .owner(53, 54)
        .text("srv/deep/new/file2", "")
        .text("new/late", "")
        .dir("new")
        .mode(0o707)
        .owner(55, 56)
        .text("new/a/e", "");
    let layers = [base, implying, hiding, again, top].into_iter().enumerate();
    let mut builder = ImageBuilder::new();
    for (number, layer) in layers {
        let layer = match number % 2 == large {
            true => layer.file(
                &format!("noise-{number}"),
                Content::Noise {
                    seed: number as u64,
                    length: 300_000,
                },
            ),
            false => layer,
        };
        builder = builder.layer(layer);
    }
    let layout = root.dir(&format!("layout-{large}")).unwrap();
    builder.write(&layout, "plain").unwrap()
}

/// Pulls the image, with the layers lazy that are at least of this size.
fn pull(stack: &Stack, image: &OciImage, least: &str) -> String {
    let reference = support::push_indexed(stack, image, least);
    support::pull(stack, &reference);
    reference
}

/// The names of the layers' snapshots, lowest first.
fn chain(stack: &Stack, (namespace, snapshotter): (&str, &str)) -> Vec<String> {
    let ctr = stack.containerd.ctr(namespace);
    let listed = ctr
        .output(["snapshots", "--snapshotter", snapshotter, "ls"])
        .unwrap();
    let by_parent: BTreeMap<&str, &str> = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter_map(|columns| match columns[..] {
            [name, "Committed"] => Some(("", name)),
            [name, parent, "Committed"] => Some((parent, name)),
            _ => None,
        })
        .collect();
    let mut chain = Vec::new();
    let mut below = "";
    while let Some(name) = by_parent.get(below) {
        chain.push((*name).to_owned());
        below = name;
    }
    chain
}

/// Everything in a view of a snapshot: type, mode, owner and note of each file, by path.
fn view(
    stack: &Stack,
    root: &TestRoot,
    (namespace, snapshotter): (&str, &str),
    name: &str,
) -> BTreeMap<PathBuf, String> {
    let ctr = stack.containerd.ctr(namespace);
    let key = format!("look-{}", root.path().file_name().unwrap().display());
    let target = root.dir("view").unwrap();
    let snapshots = ["snapshots", "--snapshotter", snapshotter];
    let at = target.display().to_string();
    // With its mounts: containerd's collector may remove the view at any time.
    let view = ["view", "--target", &at, &key, name];
    let mount = ctr.output(snapshots.iter().chain(&view)).unwrap();
    let mounted = Command::new("sh").args(["-c", &mount]).status().unwrap();
    assert!(mounted.success(), "{mount}");
    let mut seen = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let at = target.join(&path);
        let stat = at.symlink_metadata().unwrap();
        let mut note = [0; 64];
        let length = rustix::fs::lgetxattr(&at, "user.note", &mut note).unwrap_or(0);
        let note = std::str::from_utf8(&note[..length]).unwrap();
        let line = format!("{:o} {}:{} {note}", stat.mode(), stat.uid(), stat.gid());
        seen.insert(path.clone(), line);
        // The root of an unpacked layer is as old as its unpacking.
        assert!(
            stat.mtime().unsigned_abs() >= NEWEST || path.as_os_str().is_empty(),
            "{at:?}"
        );
        if stat.is_dir() {
            let entries = fs::read_dir(&at).unwrap();
            open.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        }
    }
    // What a process of another test inherited in a namespace of its own may still use it.
    unmount(&target, UnmountFlags::DETACH).unwrap();
    let _ = ctr.output(snapshots.iter().chain(&["rm", &key]));
    seen
}

/// The views of all chains of layers, lowest first.
fn views(stack: &Stack, root: &TestRoot, of: (&str, &str)) -> Vec<BTreeMap<PathBuf, String>> {
    let chain = chain(stack, of);
    assert_eq!(chain.len(), 5, "{chain:?}");
    chain
        .iter()
        .map(|name| view(stack, root, of, name))
        .collect()
}

#[test]
fn implied_directories_of_lazy_layers_look_as_containerd_shows_them() {
    let root = TestRoot::new().unwrap();
    // Lazy: all layers; the first, third and fifth; the first, second and fourth.
    for (large, least, lazy) in [(0, "0", 5), (0, MINIMUM, 3), (1, MINIMUM, 3)] {
        let mut stack = stack(NO_BACKGROUND);
        pull(&stack, &image(&root, large), least);
        assert_eq!(lazy_mounts(&stack), lazy, "{}", stack.log_tails());
        let ctr = stack.containerd.ctr("plain");
        let plain = stack.registry.reference("app:plain");
        ctr.pull(&plain, "overlayfs").unwrap();
        let expected = views(&stack, &root, ("plain", "overlayfs"));
        let top = expected.last().unwrap();
        for (path, line) in [
            ("tmp", "41777 0:0 "),
            ("home/app", "40700 65532:65532 "),
            ("home/app/.cache", "42770 65532:10 "),
            ("home/app/.cache/new", "40755 0:10 "),
            ("srv", "43771 33:34 from below"),
            ("srv/deep", "40711 35:36 from below"),
            ("opq/in", "40702 43:44 "),
            ("gone", "40755 0:0 "),
            ("new", "40707 55:56 "),
        ] {
            assert_eq!(top[Path::new(path)], line, "{path}");
        }
        let compare = |stack: &Stack, when: &str| {
            let seen = views(stack, &root, (NAMESPACE, "soci"));
            for (layer, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
                assert_eq!(seen, expected, "{when}: {lazy} lazy, layers 0 to {layer}");
            }
        };
        compare(&stack, "after the pull");
        // A restart that hands over, without what the kernel knows; one that ends the mounts.
        assert!(stack.daemon.terminate().unwrap().success());
        stack.daemon.start_again().unwrap();
        stack.wait_for_snapshotter().unwrap();
        kernel_caches::forget_unused().unwrap();
        compare(&stack, "after a restart");
        assert!(stack.daemon.interrupt().unwrap().success());
        stack.daemon.start_again().unwrap();
        stack.wait_for_snapshotter().unwrap();
        compare(&stack, "after mounting again");
    }
}

/// What a container sees of implied directories.
const LOOK: &str =
    "busybox stat -c '%a %u:%g %n' / /tmp /home/app /home/app/.cache /srv /srv/deep /gone";
const SEEN: &str = "755 0:0 /\n1777 0:0 /tmp\n700 65532:65532 /home/app\n\
    2770 65532:10 /home/app/.cache\n3771 33:34 /srv\n711 35:36 /srv/deep\n755 0:0 /gone\n";

#[test]
fn containers_see_and_use_implied_directories_also_in_a_user_namespace() {
    let root = TestRoot::new().unwrap();
    for least in ["0", MINIMUM] {
        let mut stack = stack(NO_BACKGROUND);
        let reference = pull(&stack, &image(&root, 0), least);
        let ctr = stack.containerd.ctr(NAMESPACE);
        let run = || Run::new(&reference, "soci").without_network();
        let look = || run().command(["/bin/sh", "-c", LOOK]);
        assert_eq!(ctr.run_ok(&look()).unwrap(), SEEN, "{least}");
        let maps = ["--remap-labels", "--uidmap", MAP, "--gidmap", MAP];
        let mapped = |run: Run| maps.into_iter().fold(run, |run, option| run.option(option));
        assert_eq!(ctr.run_ok(&mapped(look())).unwrap(), SEEN, "{least}");
        let user =
            "start-stop-daemon -S -n none -a /bin/busybox -c app:app -- touch /tmp/y /home/app/x";
        let write = format!("busybox {user} && busybox stat -c %u /home/app/x");
        let write = || run().command(["/bin/sh", "-c", &write]);
        assert_eq!(ctr.run_ok(&write()).unwrap(), "65532\n", "{least}");
        assert_eq!(ctr.run_ok(&mapped(write())).unwrap(), "65532\n");

        // A container that exists, after its mounts were made again.
        let kept = container_id();
        let kept = kept.as_str();
        let create = ["run", "--detach", "--snapshotter", "soci"];
        let command = [reference.as_str(), kept, "/bin/sh", "-c", LOOK];
        ctr.output(create.iter().chain(&maps).chain(&command))
            .unwrap();
        wait_until("the container has ended", PATIENCE, || {
            let removed = ctr.output(["tasks", "rm", kept]);
            removed.map(drop).map_err(|error| error.to_string())
        });
        assert!(stack.daemon.interrupt().unwrap().success());
        stack.daemon.start_again().unwrap();
        stack.wait_for_snapshotter().unwrap();
        let shown = ctr.start_task(kept).unwrap();
        assert_eq!(shown, SEEN, "{}", stack.log_tails());
    }
}
