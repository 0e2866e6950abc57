//! The main job, end to end on real parts: index an image, pull it lazily, run it, and keep the
//! promises when the daemon, the index or the registry is missing. Needs root, FUSE, containerd,
//! runc, docker-registry, mmdebstrap and the two programs.

use std::time::{Duration, Instant};

use crate::support::releases::on_each_containerd;
use crate::support::{
    NAMESPACE, NO_BACKGROUND, indexed, lazy_mounts, pull, run, stack, stack_under,
    wait_for_lazy_mounts, wait_until, wait_until_durable,
};
use soci_testkit::image::{APP_OUTPUT, PYTHON_TAG, python_image, small_image, small_image_data};
use soci_testkit::{Release, Run, TestRoot, container_id};

on_each_containerd! {
    a_lazy_image_shows_exactly_what_unpacking_it_shows,
    an_image_without_an_index_is_unpacked_and_runs,
    an_indexed_image_is_an_ordinary_image_for_other_clients,
    sigint_takes_the_mounts_along_and_sigterm_leaves_them,
    what_a_container_on_lazy_layers_changed_can_be_compared_and_committed,
}

#[test]
fn python_computes_while_less_than_the_whole_image_has_been_fetched() {
    let image = python_image().unwrap();
    let mut stack = stack(NO_BACKGROUND);
    let reference = indexed(&stack, &image.dir, PYTHON_TAG);
    stack.proxy.reset_stats();
    pull(&stack, &reference);
    assert_eq!(
        lazy_mounts(&stack),
        image.layers.len(),
        "every layer is lazy"
    );
    assert_eq!(run(&stack, &reference, &[]), APP_OUTPUT);
    let fetched = stack.proxy.stats().total().bytes;
    let size = image.compressed_size();
    let stats = stack.proxy.stats();
    let by_layer: Vec<_> = image
        .layers
        .iter()
        .map(|layer| (stats.blob(layer.digest), layer.size))
        .collect();
    assert!(
        fetched < size * 4 / 5,
        "{fetched} of {size} bytes went over the network: {by_layer:?}"
    );
    assert!(
        fetched > size / 100,
        "{fetched} bytes cannot be enough: something else was read"
    );

    // The same image stays lazy after a restart, and what is stored is not fetched again.
    assert!(stack.daemon.terminate().unwrap().success());
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), image.layers.len());
    stack.proxy.reset_stats();
    assert_eq!(run(&stack, &reference, &[]), APP_OUTPUT);
    let again = stack.proxy.stats().total().bytes;
    assert!(
        again < fetched / 10,
        "{again} bytes were fetched again, {fetched} at first"
    );
}

fn a_lazy_image_shows_exactly_what_unpacking_it_shows(release: Release) {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack_under(release, NO_BACKGROUND);
    let lazy = indexed(&stack, root.path(), "small");
    stack.push(root.path(), "small", "plain").unwrap();
    let plain = stack.reference("plain:small");
    pull(&stack, &lazy);
    assert!(lazy_mounts(&stack) > 0);
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.pull(&plain, "overlayfs").unwrap();
    // Inode numbers and device numbers differ by nature, and so does the size of directories. runc
    // makes files in /etc, which changes the directory itself.
    let script = "cd / && find bin data etc/passwd -xdev | while read -r name; do \
        stat -c '%A %u:%g %h %Y %t:%T %n' \"$name\"; \
        if [ -L \"$name\" ]; then readlink \"$name\"; \
        elif [ -f \"$name\" ]; then stat -c %s \"$name\"; sha256sum \"$name\"; fi; done";
    // The links of a directory count its subdirectories on disk, and 1 or so elsewhere.
    let without_links = |text: String| -> Vec<String> {
        text.lines()
            .map(|line| match line.split_once(' ') {
                Some((mode, rest)) if mode.starts_with("dr") => {
                    let mut words = rest.split(' ').collect::<Vec<_>>();
                    words.remove(1);
                    format!("{mode} {}", words.join(" "))
                }
                _ => line.to_owned(),
            })
            .collect()
    };
    let show = |reference: &str, snapshotter: &str| {
        let run = Run::new(reference, snapshotter).command(["/bin/sh", "-c", script]);
        let mut lines = without_links(ctr.run_ok(&run).unwrap());
        lines.sort();
        lines
    };
    let (expected, seen) = (show(&plain, "overlayfs"), show(&lazy, "soci"));
    assert!(expected.len() > 50, "{expected:?}");
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .cloned()
            .collect()
    };
    assert_eq!(
        only(&seen, &expected),
        only(&expected, &seen),
        "lazy and unpacked differ"
    );
    assert_eq!(seen.len(), expected.len());
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    assert!(
        seen.iter().any(|line| line.starts_with(&digest)),
        "{seen:?}"
    );
    assert!(
        !seen
            .iter()
            .any(|line| line.contains("gone") || line.contains("hidden"))
    );
}

fn an_image_without_an_index_is_unpacked_and_runs(release: Release) {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let stack = stack_under(release, NO_BACKGROUND);
    stack.push(root.path(), "small", "plain").unwrap();
    let reference = stack.reference("plain:small");
    let said = pull(&stack, &reference);
    for layer in &image.layers {
        let line = said
            .lines()
            .find(|line| line.contains(&layer.digest.to_string()));
        let line = line.unwrap_or_else(|| panic!("no word about {}:\n{said}", layer.digest));
        assert!(!line.contains(" lazy"), "{line}");
    }
    assert_eq!(lazy_mounts(&stack), 0);
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
    // And with containerd's own client.
    stack.push(root.path(), "small", "other").unwrap();
    let other = stack.reference("other:small");
    stack.containerd.ctr("plain").pull(&other, "soci").unwrap();
    let run = Run::new(&other, "soci");
    assert_eq!(
        stack.containerd.ctr("plain").run_ok(&run).unwrap(),
        "hello\n"
    );
}

fn an_indexed_image_is_an_ordinary_image_for_other_clients(release: Release) {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack_under(release, NO_BACKGROUND);
    let reference = indexed(&stack, root.path(), "small");
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.pull(&reference, "overlayfs").unwrap();
    let run = Run::new(&reference, "overlayfs");
    assert_eq!(ctr.run_ok(&run).unwrap(), "hello\n");
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused_and_harms_nothing() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack(NO_BACKGROUND);
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    let mut rival = stack.daemon.spawn_rival().unwrap();
    let status = rival.wait(Duration::from_secs(120)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", rival.log().tail(20));
    let said = rival.log().tail(20);
    assert!(
        said.contains(&stack.daemon.daemon().pid().to_string()),
        "the owner is named: {said}"
    );
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
}

#[test]
fn a_read_that_needs_a_dead_registry_fails_with_eio_and_the_reader_continues() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let quick = "[http]\nMaxRetries = 1\nMinWaitMsec = 10\nMaxWaitMsec = 50\n\
        [blob]\nmax_retries = 1\nmin_wait_msec = 10\nmax_wait_msec = 50\n";
    let mut stack = stack(&format!("{quick}{NO_BACKGROUND}"));
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
    stack.registry.kill().unwrap();
    let read = "cat /data/noise > /dev/null; echo status $?; cat /data/hello";
    let run_read = Run::new(&reference, "soci").command(["/bin/sh", "-c", read]);
    let ctr = stack.containerd.ctr(NAMESPACE);
    let output = ctr.run(&run_read).unwrap();
    assert_eq!(output.stdout, "status 1\nhello\n", "{}", output.stderr);
    assert!(
        output.stderr.contains("I/O error") || output.stderr.contains("Input/output error"),
        "{}",
        output.stderr
    );
    // Nothing of the failure is kept: when the registry is back, the bytes are the right ones.
    stack.registry.start_again().unwrap();
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let run = Run::new(&reference, "soci").command(["/bin/sha256sum", "/data/noise"]);
        let output = ctr.run(&run).unwrap();
        if output.status.success() {
            assert!(output.stdout.starts_with(&digest), "{}", output.stdout);
            break;
        }
        assert!(Instant::now() < deadline, "still fails: {}", output.stderr);
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn once_the_background_fetcher_is_done_the_registry_may_die() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let mut stack =
        stack("[background_fetch]\nsilence_period_msec = 100\nfetch_period_msec = 10\n");
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    wait_until_durable(&stack.daemon, true);
    stack.registry.kill().unwrap();
    let read =
        "sha256sum /data/noise; cat /data/words | wc -c; cat /data/hello; cat /bin/busybox | wc -c";
    let output = run(&stack, &reference, &["/bin/sh", "-c", read]);
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let busybox = std::fs::metadata("/bin/busybox").unwrap().len();
    assert_eq!(
        output,
        format!("{digest}  /data/noise\n{}\nhello\n{busybox}\n", 3 << 20)
    );
}

fn sigint_takes_the_mounts_along_and_sigterm_leaves_them(release: Release) {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let mut stack = stack_under(release, NO_BACKGROUND);
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    let mounted = lazy_mounts(&stack);
    assert!(mounted > 0);
    assert!(stack.daemon.terminate().unwrap().success());
    assert_eq!(lazy_mounts(&stack), mounted);
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
    assert!(stack.daemon.interrupt().unwrap().success());
    assert_eq!(lazy_mounts(&stack), 0);
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
}

/// containerd's differ compares extended attributes and takes "not supported" for a failure.
fn what_a_container_on_lazy_layers_changed_can_be_compared_and_committed(release: Release) {
    let root = TestRoot::new().unwrap();
    let image = small_image(&root.dir("image").unwrap(), "v1").unwrap();
    let stack = stack_under(release, NO_BACKGROUND);
    let reference = indexed(&stack, &image.dir, "small");
    pull(&stack, &reference);
    let lazy = lazy_mounts(&stack);
    let ctr = stack.containerd.ctr(NAMESPACE);
    let script = "echo new > /data/new && rm /data/hello";
    let app = container_id();
    let run = [
        "run",
        "--snapshotter",
        "soci",
        &reference,
        &app,
        "/bin/sh",
        "-c",
        script,
    ];
    ctr.output(run).unwrap();

    let archive = root.path().join("diff.tar.gz");
    let mut diff = ctr.command();
    diff.args(["snapshots", "--snapshotter", "soci", "diff", &app])
        .stdout(std::fs::File::create(&archive).unwrap());
    assert!(diff.status().unwrap().success(), "{}", stack.log_tails());
    let mut list = std::process::Command::new("tar");
    list.arg("-tzf").arg(&archive);
    let changed = soci_testkit::output_of(list).unwrap();
    let changed: Vec<_> = changed
        .lines()
        .filter(|path| !path.ends_with('/'))
        .collect();
    assert_eq!(changed, ["data/.wh.hello", "data/new"]);

    ctr.output(["containers", "rm", &app]).unwrap();
    // containerd's collector runs after some deletions, but not after each.
    ctr.output(["content", "prune", "references"]).unwrap();
    wait_until(
        "what was mounted for it is gone",
        Duration::from_secs(120),
        || match lazy_mounts(&stack) {
            count if count == lazy => Ok(()),
            count => Err(format!("{count} mounts instead of {lazy}")),
        },
    );
}
