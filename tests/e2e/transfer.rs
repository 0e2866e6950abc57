//! containerd 2.1's transfer service, through which `ctr images pull`, nerdctl 2.3 and, by default,
//! CRI pull. Needs root, FUSE, docker-registry and the two programs.

use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, indexed, lazy_mounts, left_behind, wait_until,
};
use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::{
    Release, Run, SociDaemonOptions, Stack, StackOptions, TestRoot, TransferOptions,
};

fn stack(transfer: TransferOptions) -> Stack {
    Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
        release: Release::V2_1,
        transfer,
        ..StackOptions::default()
    })
    .unwrap()
}

/// Runs the image and reads all of it, then removes the image: nothing is left.
fn works_and_leaves_nothing(stack: &Stack, reference: &str) {
    let ctr = stack.containerd.ctr(NAMESPACE);
    let read = Run::new(reference, "soci").command(["/bin/sha256sum", "/data/noise"]);
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    assert!(ctr.run_ok(&read).unwrap().starts_with(&digest));
    // Without what its layers delete.
    let list = Run::new(reference, "soci").command(["/bin/ls", "/data", "/data/old"]);
    let listed = "/data:\nhello\nnoise\nold\nwords\nwords.link\n\n/data/old:\nnew\n";
    assert_eq!(ctr.run_ok(&list).unwrap(), listed);
    ctr.output(["images", "rm", "--sync", reference]).unwrap();
    wait_until(
        "nothing is left of the image",
        PATIENCE,
        || match left_behind(stack) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        },
    );
}

#[test]
fn with_annotations_the_transfer_service_pulls_lazily() {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let mut stack = stack(TransferOptions::default());
    let reference = indexed(&stack, root.path(), "small");
    stack.proxy.reset_stats();
    stack
        .containerd
        .ctr(NAMESPACE)
        .pull(&reference, "soci")
        .unwrap();
    assert_eq!(
        lazy_mounts(&stack),
        image.layers.len(),
        "{}",
        stack.log_tails()
    );
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        assert_eq!(stats.blob(layer.digest).bytes, 0, "nothing is downloaded");
    }
    // What containerd has the daemon reads from it: it requests the SOCI index alone.
    let manifests = stats.log.iter().filter(|request| {
        request.path.contains("/manifests/") && {
            let agent = request.user_agent.as_deref().unwrap_or_default();
            !agent.starts_with("containerd")
        }
    });
    let manifests: Vec<_> = manifests.map(|request| &request.path).collect();
    assert_eq!(manifests.len(), 1, "{:?}", stats.log);
    let by_containerd = stats.log.iter().filter(|one| &one.path == manifests[0]);
    assert_eq!(by_containerd.count(), 1, "{:?}", stats.log);
    // containerd and the daemon start again, each in its turn.
    stack.containerd.restart().unwrap();
    assert!(stack.daemon.terminate().unwrap().success());
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    works_and_leaves_nothing(&stack, &reference);
}

#[test]
fn without_annotations_the_transfer_service_unpacks_and_the_log_says_why() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack(TransferOptions {
        annotations: false,
        ..TransferOptions::default()
    });
    let reference = indexed(&stack, root.path(), "small");
    stack
        .containerd
        .ctr(NAMESPACE)
        .pull(&reference, "soci")
        .unwrap();
    assert_eq!(lazy_mounts(&stack), 0);
    let log = stack.daemon.log();
    let reason = log.wait_for(0, PATIENCE, |line| line.contains("missing-label"));
    assert!(reason.is_some(), "{}", stack.log_tails());
    works_and_leaves_nothing(&stack, &reference);
}

#[test]
fn without_an_unpack_configuration_the_transfer_service_refuses_as_we_document() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack(TransferOptions {
        unpack: false,
        ..TransferOptions::default()
    });
    let reference = indexed(&stack, root.path(), "small");
    let ctr = stack.containerd.ctr(NAMESPACE);
    let refused = format!("{:#}", ctr.pull(&reference, "soci").unwrap_err());
    let documented = "unable to initialize unpacker: no unpack platforms defined";
    assert!(refused.contains(documented), "{refused}");
    assert_eq!(left_behind(&stack), Vec::<String>::new());
    // `--local` needs no such configuration, and sends no labels.
    ctr.pull_locally(&reference, "soci").unwrap();
    assert_eq!(lazy_mounts(&stack), 0);
    works_and_leaves_nothing(&stack, &reference);
}
