//! Containers keep reading while parts of the daemon, or all of it, are gone. Needs root, FUSE, containerd, runc,
//! docker-registry, mmdebstrap and the two programs.

use std::time::{Duration, Instant};

use crate::support::survival::Scene;
use crate::support::{NAMESPACE, NO_BACKGROUND, indexed, pull, run, stack, status, wait_until};
use soci_testkit::image::{ImageBuilder, busybox_layer, small_image};
use soci_testkit::process::Signal;
use soci_testkit::{Layer, Run, Stack, TestRoot, container_id, kernel_caches};

/// How long readers read while parts go.
const TIME: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(180);

/// A stack with a small image, pulled.
fn small_stack(config: &str) -> (Stack, String) {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack(&format!("{NO_BACKGROUND}{config}"));
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    (stack, reference)
}

/// Whether the daemon logged this since its last start, sooner or later.
fn logs(stack: &Stack, words: &str) {
    let found = stack
        .daemon
        .log()
        .wait_for(0, PATIENCE, |line| line.contains(words));
    assert!(found.is_some(), "{words:?}:\n{}", stack.log_tails());
}

#[test]
fn readers_wait_while_the_daemon_is_stopped_and_started_again() {
    let mut scene = Scene::new("");
    let readers = scene.start_readers(TIME);
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        let ended = scene.stack.daemon.terminate().unwrap();
        assert!(ended.success(), "{ended}");
        scene.readers_wait();
        scene.stack.daemon.start_again().unwrap();
    }
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn readers_wait_while_supervisor_and_server_are_killed_and_the_daemon_is_started_again() {
    let mut scene = Scene::new("");
    let readers = scene.start_readers(TIME);
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        scene.stack.daemon.kill_supervisor_and_server().unwrap();
        scene.readers_wait();
        scene.stack.daemon.start_again().unwrap();
    }
    readers.finish();
    scene.nothing_leaks();
}

/// It holds the sockets and answers nothing.
#[test]
fn a_holder_that_hangs_delays_nothing_and_is_replaced() {
    let (stack, reference) = small_stack("");
    let root = TestRoot::new().unwrap();
    let data = Layer::new().dir("data").text("data/hello", "hello\n");
    let other = ImageBuilder::new()
        .layer(busybox_layer().unwrap())
        .layer(data.text("data/other", "it differs"));
    other.write(root.path(), "other").unwrap();
    let other = indexed(&stack, root.path(), "other");
    let holder = stack.daemon.suspend_holder().unwrap();
    let held = std::fs::read_dir(format!("/proc/{holder}/fd"));
    let held = held.unwrap().count();
    pull(&stack, &other);
    let both_read = || {
        for reference in [&reference, &other] {
            let read = run(&stack, reference, &["/bin/cat", "/data/hello"]);
            assert_eq!(read, "hello\n");
        }
    };
    both_read();
    stack.daemon.wait_for_holder(holder).unwrap();
    logs(&stack, "killing a holder that does not respond");
    wait_until("the holder has everything", PATIENCE, || {
        let holder = stack.daemon.holder_pid().unwrap();
        let files = std::fs::read_dir(format!("/proc/{holder}/fd")).unwrap();
        match files.count() >= held {
            true => Ok(()),
            false => Err(format!("fewer than {held} files")),
        }
    });
    let server = stack.daemon.signal_server(Signal::KILL).unwrap();
    stack.daemon.wait_for_successor(server).unwrap();
    both_read();
}

#[test]
fn readers_notice_nothing_when_the_holder_is_killed_and_later_the_server() {
    let scene = Scene::new("");
    let readers = scene.start_readers(TIME);
    while readers.go_on() {
        scene.pause_at_random();
        let holder = scene.daemon().kill_holder().unwrap();
        scene.daemon().wait_for_holder(holder).unwrap();
        scene.wait_until_all_is_held();
        scene.forget_caches();
        let server = scene.daemon().signal_server(Signal::KILL).unwrap();
        scene.daemon().wait_for_successor(server).unwrap();
        // Only a server that has started has another holder started.
        scene.wait_until_served();
    }
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn without_its_supervisor_the_server_serves_until_the_next_start_replaces_it() {
    let mut scene = Scene::new("");
    let readers = scene.start_readers(TIME);
    while readers.go_on() {
        scene.pause_at_random();
        let server = scene.daemon().server_pid().unwrap();
        scene.stack.daemon.kill_supervisor().unwrap();
        logs(&scene.stack, "supervisor lost");
        for _ in 0..10 {
            scene.forget_caches();
            scene.wait_until_served();
        }
        assert_eq!(scene.daemon().server_pid().unwrap(), server, "it serves on");
        scene.stack.daemon.start_again().unwrap();
        assert_ne!(scene.daemon().server_pid().unwrap(), server);
    }
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn when_everything_is_killed_the_next_start_says_which_containers_to_restart() {
    let (mut stack, reference) = small_stack("");
    let ctr = stack.containerd.ctr(NAMESPACE);
    let detached = ["run", "--detach", "--null-io", "--net-host"];
    let detached = detached.iter().chain(&["--snapshotter", "soci"]);
    let id = container_id();
    let id = id.as_str();
    let command = [reference.as_str(), id, "/bin/sleep", "1000"];
    ctr.output(detached.chain(&command)).unwrap();
    assert_eq!(status(&stack.daemon)["severed"], serde_json::json!([]));

    stack.daemon.kill_everything().unwrap();
    stack.daemon.start_again().unwrap();
    logs(&stack, "the connections of lazy layers were lost");
    stack.wait_for_snapshotter().unwrap();
    let listed = status(&stack.daemon);
    let severed = listed["severed"].as_array().unwrap();
    assert_eq!(severed.len(), 1, "{listed}");
    assert!(
        severed[0]["snapshot"].as_str().unwrap().ends_with(id),
        "{listed}"
    );
    // Others are not touched.
    let read = run(&stack, &reference, &["/bin/cat", "/data/hello"]);
    assert_eq!(read, "hello\n");

    wait_until("the container ends", PATIENCE, || {
        // It ends by itself when it needs a page of its program that is no longer in memory.
        let killed = ctr.output(["tasks", "kill", "--signal", "KILL", id]);
        let gone = ctr.output(["tasks", "rm", id]);
        gone.map(drop)
            .map_err(|error| format!("{error:#}, after {killed:?}"))
    });
    ctr.output(["tasks", "start", "--detach", "--null-io", id])
        .unwrap();
    let exec = ["tasks", "exec", "--exec-id", "look", id];
    let read = ctr.output(exec.iter().chain(&["/bin/cat", "/data/hello"]));
    assert_eq!(read.unwrap(), "hello\n");
    assert_eq!(status(&stack.daemon)["severed"], serde_json::json!([]));
}

#[test]
fn without_a_daemon_for_too_long_readers_get_errors_and_end() {
    let (mut stack, reference) = small_stack("[holder]\nabandon_after_sec = 2\n");
    let ctr = stack.containerd.ctr(NAMESPACE);
    let signals = TestRoot::new().unwrap();
    let shared = signals.path().display();
    let mount = format!("type=bind,src={shared},dst=/tmp,options=rbind:rw");
    // What it reads then was never read before, so that it has to be requested; but for the program, since
    // the kernel kills one that needs a page of itself which cannot be read.
    let script = "cat /bin/busybox >/dev/null; echo >/tmp/ready; while ! test -e /tmp/go; do sleep 0.1; done; cat /data/noise >/tmp/noise";
    let kept = kernel_caches::keep().unwrap();
    let waiting = Run::new(&reference, "soci")
        .option("--mount")
        .option(&mount);
    let container = ctr
        .start(&waiting.command(["/bin/sh", "-c", script]))
        .unwrap();
    wait_until("the container runs", PATIENCE, || {
        let ready = signals.path().join("ready").exists();
        ready.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    // Before the kill, which a busy machine may take its time for.
    let begin = Instant::now();
    stack.daemon.kill_supervisor_and_server().unwrap();
    std::fs::write(signals.path().join("go"), "").unwrap();
    let output = container.wait().unwrap();
    drop(kept);
    assert!(!output.status.success(), "{output:?}");
    assert!(
        output.stderr.contains("cat"),
        "the name of the program: {output:?}"
    );
    assert!(begin.elapsed() >= Duration::from_secs(1), "{output:?}");
    wait_until("the holder has ended", PATIENCE, || {
        let pid = stack.daemon.holder_pid();
        pid.map_or(Ok(()), |pid| Err(format!("process {pid}")))
    });

    stack.daemon.start_again().unwrap();
    logs(&stack, "the mounts of an earlier daemon were given up");
    stack.wait_for_snapshotter().unwrap();
    let read = run(&stack, &reference, &["/bin/cat", "/data/hello"]);
    assert_eq!(read, "hello\n");
}
