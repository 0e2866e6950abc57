//! What the kubelet does, through containerd's CRI socket: pulling, pods, exec, logs, removal. Needs
//! root, FUSE, containerd, runc, docker-registry, busybox-static and the two programs.

use std::time::Duration;

use crate::support::releases::on_each_containerd;
use crate::support::{NO_BACKGROUND, fetched_once, indexed, lazy_mounts, left_behind, wait_until};
use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::{Cri, CriPull, Release, SociDaemonOptions, Stack, StackOptions, TestRoot};

/// Containers start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn stack(release: Release, pull: CriPull) -> Stack {
    Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
        release,
        cri: Some(pull),
        ..StackOptions::default()
    })
    .unwrap()
}

/// Removes all images through CRI and waits until nothing is left of any layer.
fn remove_everything(stack: &Stack, cri: &Cri) {
    for image in cri.images().unwrap() {
        cri.remove_image(&image.id).unwrap();
    }
    wait_until(
        "nothing is left of the images",
        PATIENCE,
        || match left_behind(stack) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        },
    );
}

on_each_containerd! {
    the_kubelet_pulls_lazily_runs_a_pod_and_removing_the_image_leaves_nothing,
}

fn the_kubelet_pulls_lazily_runs_a_pod_and_removing_the_image_leaves_nothing(release: Release) {
    pulled_and_removed(stack(release, CriPull::Local));
}

/// The default way of containerd 2.1.
#[test]
fn the_kubelet_pulls_lazily_through_the_transfer_service() {
    let stack = stack(Release::V2_1, CriPull::Transfer);
    pulled_and_removed(stack);
}

fn pulled_and_removed(stack: Stack) {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let reference = indexed(&stack, root.path(), "small");
    let cri = stack.containerd.cri().unwrap();
    stack.proxy.reset_stats();
    let name = cri.pull(&reference).unwrap();
    assert_eq!(lazy_mounts(&stack), image.layers.len(), "all are lazy");
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        assert_eq!(stats.blob(layer.digest).bytes, 0, "nothing is downloaded");
    }

    let pod = cri.run_pod(root.path()).unwrap();
    let script = "cat /data/hello; exec sleep 100000";
    let container = cri
        .start_container(&pod, &name, &["/bin/sh", "-c", script])
        .unwrap();
    wait_until("the container has written", PATIENCE, || {
        match container.log().unwrap_or_default() {
            log if log == "hello\n" => Ok(()),
            other => Err(other),
        }
    });
    let done = cri
        .exec(&container, &["/bin/sha256sum", "/data/noise"])
        .unwrap();
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stdout.starts_with(&digest), "{done:?}");
    let done = cri
        .exec(
            &container,
            &["/bin/sh", "-c", "echo x > /data/hello && cat /data/hello"],
        )
        .unwrap();
    assert_eq!(done.stdout, "x\n", "the container may write: {done:?}");
    let failing = cri.exec(&container, &["/bin/cat", "/data/gone"]).unwrap();
    assert_eq!(failing.status, 1, "{failing:?}");

    cri.stop_container(&container).unwrap();
    let code = cri.wait_container(&container, PATIENCE).unwrap();
    assert_eq!(code, 137, "killed");
    cri.remove_container(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
    remove_everything(&stack, &cri);
}

#[test]
fn pods_of_one_image_that_start_at_once_fetch_each_span_once() {
    const PODS: usize = 8;
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let stack = stack(Release::Installed, CriPull::Local);
    let reference = indexed(&stack, root.path(), "small");
    let cri = stack.containerd.cri().unwrap();
    let name = cri.pull(&reference).unwrap();
    stack.proxy.reset_stats();
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let read = ["/bin/sha256sum", "/data/noise"];
    let pods: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..PODS)
            .map(|_| {
                scope.spawn(|| {
                    let pod = cri.run_pod(root.path()).unwrap();
                    let container = cri.start_container(&pod, &name, &read).unwrap();
                    (pod, container)
                })
            })
            .collect();
        starts.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    for (pod, container) in &pods {
        assert_eq!(cri.wait_container(container, PATIENCE).unwrap(), 0);
        let log = container.log().unwrap();
        assert!(log.starts_with(&digest), "{log:?}");
        cri.remove_container(container).unwrap();
        cri.remove_pod(pod).unwrap();
    }
    assert_eq!(lazy_mounts(&stack), image.layers.len());
    fetched_once(&stack, &image);
    remove_everything(&stack, &cri);
}
