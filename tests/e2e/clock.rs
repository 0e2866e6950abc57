//! A time of day that jumps, by libfaketime, while the monotonic clock does not. Needs root, FUSE, containerd,
//! runc, docker-registry, faketime and the two programs.

use std::path::{Path, PathBuf};

use soci_testkit::image::{busybox_layer, small_image};
use soci_testkit::{
    Auth, Fault, ImageBuilder, Layer, Rule, SociDaemonOptions, Stack, TestRoot, output_of,
};

use crate::support::{
    NAMESPACE, PATIENCE, indexed, lazy_mounts, left_behind, pull, run, stack_with, status,
    wait_for_lazy_mounts, wait_until, wait_until_durable,
};

/// The library that the package faketime installs.
fn library() -> String {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let mut found = folders
        .map(|folder| {
            let folder = folder.unwrap().path();
            folder.join("faketime/libfaketimeMT.so.1")
        })
        .filter(|library| library.exists());
    let found = found
        .next()
        .expect("scripts/install-deps.sh installs faketime");
    found.display().to_string()
}

/// The time of day of the daemon, as an offset to the machine's.
struct Clock(PathBuf);

impl Clock {
    fn new(root: &Path) -> Self {
        let clock = Self(root.join("clock"));
        clock.set("+0d");
        clock
    }

    fn set(&self, offset: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(&new, &self.0).unwrap();
    }

    fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// The year of the last line of the daemon's log.
fn year_in_log(stack: &Stack) -> u32 {
    let log = stack.daemon.json_log();
    let time = log.iter().rev().find_map(|line| line["time"].as_str());
    time.unwrap().get(..4).unwrap().parse().unwrap()
}

/// Makes the clock jump, and waits until the daemon has logged at the new time.
fn jump(stack: &Stack, clock: &Clock, offset: &str) {
    let before = year_in_log(stack);
    clock.set(offset);
    wait_until("the daemon's clock has jumped", PATIENCE, || {
        let _ = status(&stack.daemon);
        match year_in_log(stack) {
            year if year.abs_diff(before) > 1 => Ok(()),
            year => Err(format!("it logs {year}")),
        }
    });
}

/// Waits until all of an image is stored.
fn complete(stack: &Stack, reference: &str) {
    let mut wait = stack
        .soci(NAMESPACE)
        .unwrap()
        .command(["wait", "--timeout", "120s", reference]);
    wait.arg("--snapshotter-address").arg(stack.daemon.socket());
    let waited = output_of(wait).unwrap();
    assert!(waited.contains("complete"), "{waited}");
}

fn profiles(stack: &Stack) -> usize {
    let folder = stack.daemon.root().join("soci/profiles");
    let files = std::fs::read_dir(folder).into_iter().flatten();
    let names = files.map(|file| file.unwrap().path());
    names
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .count()
}

/// Five years ahead while one image is filled, ten back while another one is pulled and read, then a
/// crash, a reboot without a registry, and the right time again.
#[test]
fn a_clock_that_jumps_changes_no_read_fill_profile_token_or_removal() {
    let root = TestRoot::new().unwrap();
    let clock = Clock::new(root.path());
    let first = small_image(&root.dir("first").unwrap(), "first").unwrap();
    let second = ImageBuilder::new()
        .layer(busybox_layer().unwrap())
        .layer(Layer::new().dir("data").text("data/hello", "later\n"))
        .command(["/bin/cat", "/data/hello"])
        .write(&root.dir("second").unwrap(), "second")
        .unwrap();
    let mut stack = stack_with(SociDaemonOptions {
        environment: clock.environment(),
        ..SociDaemonOptions::default()
    });
    let [a, b] = [(&first, "first"), (&second, "second")]
        .map(|(image, name)| indexed(&stack, &image.dir, name));
    // Tokens are renewed by what the registry refuses, and by the monotonic clock.
    stack.proxy.demand(Auth::Bearer {
        user: None,
        uses: Some(4),
    });

    pull(&stack, &a);
    jump(&stack, &clock, "+1830d");
    assert_eq!(run(&stack, &a, &[]), "hello\n");
    complete(&stack, &a);
    jump(&stack, &clock, "-3660d");
    pull(&stack, &b);
    assert_eq!(run(&stack, &b, &[]), "later\n");
    assert_eq!(run(&stack, &a, &[]), "hello\n");
    complete(&stack, &b);
    wait_until("both starts are recorded", PATIENCE, || {
        match profiles(&stack) {
            2 => Ok(()),
            count => Err(format!("{count} profiles")),
        }
    });
    wait_until_durable(&stack.daemon, true);

    // What was written at other times is the next server's, and the next boot's.
    stack.daemon.kill().unwrap();
    clock.set("+1830d");
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    for (reference, says) in [(&a, "hello\n"), (&b, "later\n")] {
        assert_eq!(&run(&stack, reference, &[]), says);
    }
    let mounted = lazy_mounts(&stack);
    assert!(stack.daemon.interrupt().unwrap().success());
    assert_eq!(lazy_mounts(&stack), 0);
    clock.set("+0d");
    stack.proxy.inject(Rule::always(Fault::Reset));
    stack.proxy.reset_stats();
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), mounted);
    for (reference, says) in [(&a, "hello\n"), (&b, "later\n")] {
        assert_eq!(&run(&stack, reference, &[]), says);
    }
    assert_eq!(stack.proxy.stats().total().requests, 0);

    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &a, &b]).unwrap();
    wait_until("all is removed", PATIENCE, || match left_behind(&stack) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}
