//! Private daemons run real containers and leave nothing behind. Needs root, containerd and runc.

use soci_testkit::image::busybox_image;
use soci_testkit::process::{mounts_below, processes_below};
use soci_testkit::{
    Containerd, ContainerdOptions, Proxy, Registry, Release, Run, TestRoot, container_id,
};

#[test]
fn a_container_runs_and_everything_of_its_containerd_goes_away() {
    let root = TestRoot::new().unwrap();
    busybox_image(root.path(), "t").unwrap();
    let registry = Registry::start().unwrap();
    registry.push_layout(root.path(), "t", "bb").unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let ctr = containerd.ctr("kit");
    let reference = proxy.reference("bb:t");
    ctr.pull(&reference, "overlayfs").unwrap();
    assert!(proxy.stats().blobs().bytes > 0);
    let run = Run::new(&reference, "overlayfs").command(["/bin/sh", "-c", "echo hi; exit 3"]);
    let output = ctr.run(&run).unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_str()),
        (Some(3), "hi\n")
    );
    assert!(output.first_output.unwrap() <= output.elapsed);

    // One that is still running when its containerd goes.
    let sleeper = ctr
        .start(&Run::new(&reference, "overlayfs").command(["/bin/sleep", "1000"]))
        .unwrap();
    let folder = containerd.root().to_owned();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !ctr.output(["tasks", "ls"]).unwrap().contains("RUNNING") {
        assert!(
            std::time::Instant::now() < deadline,
            "the container does not start"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!mounts_below(&folder).unwrap().is_empty());
    assert!(
        processes_below(&folder).len() >= 3,
        "containerd, shim and sleep at least"
    );
    containerd.close().unwrap();
    assert!(processes_below(&folder).is_empty());
    assert!(mounts_below(&folder).unwrap().is_empty());
    assert!(!folder.exists());
    assert!(!sleeper.wait().unwrap().status.success());
}

#[test]
fn a_panicking_test_takes_its_daemons_along() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
        sender
            .send((containerd.daemon().pid(), containerd.root().to_owned()))
            .unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    let (pid, folder) = receiver.recv().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists());
}

#[test]
fn a_restarted_containerd_keeps_its_images() {
    let root = TestRoot::new().unwrap();
    busybox_image(root.path(), "t").unwrap();
    let registry = Registry::start().unwrap();
    registry.push_layout(root.path(), "t", "bb").unwrap();
    let mut containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let reference = registry.reference("bb:t");
    containerd.ctr("kit").pull(&reference, "overlayfs").unwrap();
    containerd.restart().unwrap();
    let run = Run::new(&reference, "overlayfs").command(["/bin/echo", "again"]);
    assert_eq!(containerd.ctr("kit").run_ok(&run).unwrap(), "again\n");
}

#[test]
fn each_release_of_containerd_is_what_it_says_and_no_output_of_its_containers_is_lost() {
    let root = TestRoot::new().unwrap();
    busybox_image(root.path(), "t").unwrap();
    let registry = Registry::start().unwrap();
    registry.push_layout(root.path(), "t", "bb").unwrap();
    let reference = registry.reference("bb:t");
    let releases = [
        (Release::Installed, ""),
        (Release::V1_7, "1.7."),
        (Release::V2_1, "2.1."),
    ];
    for (release, version) in releases {
        let containerd = Containerd::start(&ContainerdOptions {
            release,
            ..ContainerdOptions::default()
        })
        .unwrap();
        let ctr = containerd.ctr("kit");
        let versions = ctr.output(["version"]).unwrap();
        let same = versions
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Version:"))
            .filter(|shown| shown.trim().starts_with(version))
            .count();
        assert_eq!(same, 2, "client and server of {release:?}: {versions}");
        ctr.pull(&reference, "overlayfs").unwrap();
        ctr.pull_locally(&reference, "overlayfs").unwrap();
        // As short as can be, more at once than there are processors.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let say = ["/bin/sh", "-c", "echo out; echo err >&2"];
                    let run = Run::new(&reference, "overlayfs").command(say);
                    let output = ctr.run(&run).unwrap();
                    assert_eq!(output.stdout, "out\n", "{release:?}: {output:?}");
                    assert!(
                        output.stderr.starts_with("err\n"),
                        "{release:?}: {output:?}"
                    );
                });
            }
        });
        let kept = container_id();
        let detached = ["run", "--detach", "--null-io", &reference, &kept];
        ctr.output(detached.into_iter().chain(["/bin/echo", "again"]))
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while ctr.output(["tasks", "rm", &kept]).is_err() {
            assert!(std::time::Instant::now() < deadline, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(ctr.start_task(&kept).unwrap(), "again\n");
        containerd.close().unwrap();
    }
}
