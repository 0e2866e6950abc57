//! The state that a crash of the daemon leaves, and the next start on it. Needs root, FUSE,
//! containerd, runc, docker-registry and the two programs.

use crate::support::{
    NO_BACKGROUND, indexed, pull, run, stack, wait_for_lazy_mounts, wait_until_durable,
};
use soci_testkit::TestRoot;
use soci_testkit::image::{small_image, small_image_data};

#[test]
fn after_a_kill_the_next_start_serves_the_layers_again_and_fetches_nothing_twice() {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let mut stack = stack(NO_BACKGROUND);
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let read = ["/bin/sha256sum", "/data/noise"];
    let output = run(&stack, &reference, &read);
    assert!(output.starts_with(&digest), "{output:?}");
    wait_until_durable(&stack.daemon, false);

    stack.daemon.kill().unwrap();
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), image.layers.len());
    // What is stored needs no registry: neither spans nor index nor zTOCs.
    stack.registry.kill().unwrap();
    let output = run(&stack, &reference, &read);
    assert!(output.starts_with(&digest), "{output:?}");
}
