//! A crash of the daemon at each step of an eager pull: the test kills it at every fault point in turn, and
//! looks at what the next start and the client's retry make of it. Needs root and the two programs, built for
//! debugging.

use std::os::unix::process::ExitStatusExt;

use crate::eager::{ENABLED, layers, remove, scratch_is_empty};
use crate::faults::{ABORTED, fault_points};
use crate::support::{NAMESPACE, NO_BACKGROUND, PATIENCE, pull, run, stack, wait_until};
use soci_oci::Digest;
use soci_testkit::{Content, SociDaemonOptions, Stack, TestRoot};

/// Bytes of noise in each layer but the lowest: more than one message to containerd.
const BYTES: u64 = 1_200_000;
/// Points of the snapshotter that eager layers pass as others do.
const OF_PREPARE: [&str; 3] = [
    "prepare-directory-made",
    "prepare-layer-unpacked",
    "prepare-layer-committed",
];
/// At these the pull is complete, and only its last answer may be lost.
const AFTER_THE_PULL: [&str; 2] = ["eager-layers-kept", "eager-lease-released"];

/// Starts the daemon again, with a fault point or without.
fn start(stack: &mut Stack, config: &str, point: Option<&str>) {
    let mut options = SociDaemonOptions::with_config(config);
    options.containerd = Some(stack.containerd.address().to_owned());
    if let Some(point) = point {
        options.environment = vec![("SOCI_FAULT_POINT".to_owned(), point.to_owned())];
        // A supervisor would have another server mend what this one leaves.
        options.alone = true;
    }
    stack.daemon.start_again_with(options).unwrap();
    stack.wait_for_snapshotter().unwrap();
}

/// Removes what a lease of the crashed daemon keeps for a day.
fn drop_leases(stack: &Stack) {
    let ctr = stack.containerd.ctr(NAMESPACE);
    for lease in ctr.output(["leases", "ls", "-q"]).unwrap().lines() {
        ctr.output(["leases", "delete", "--sync", lease]).unwrap();
    }
    wait_until("containerd has no content", PATIENCE, || {
        let content = ctr.output(["content", "ls", "-q"]).unwrap();
        match content.trim().is_empty() {
            true => Ok(()),
            false => Err(content),
        }
    });
}

#[test]
fn a_crash_at_any_step_of_an_eager_pull_leaves_nothing_half_done_and_the_retry_succeeds() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 3, BYTES);
    let keep = ENABLED.replace("discard_unpacked_layers = true", "");
    let config = format!("{NO_BACKGROUND}{keep}");
    let mut stack = stack(&config);
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let soci = stack.soci(NAMESPACE).unwrap();
    let noise = [1, 2].map(|seed| {
        let content = Content::Noise {
            seed,
            length: BYTES,
        };
        format!("{}  /data/{seed}", Digest::of(&content.to_vec()).hex())
    });
    let mut points: Vec<String> = fault_points(&["eager", "unpack"]).into_iter().collect();
    assert!(points.len() > 10, "{points:?}");
    points.extend(OF_PREPARE.map(str::to_owned));
    for point in points {
        stack.daemon.terminate().unwrap();
        start(&mut stack, &config, Some(&point));
        let pulled = soci.output(["pull", "--plain-http", &reference]);
        assert!(
            pulled.is_err() || AFTER_THE_PULL.contains(&point.as_str()),
            "{point} is never reached"
        );
        let status = stack.daemon.wait().unwrap();
        assert_eq!(status.signal(), Some(ABORTED), "{point}: {status}");
        start(&mut stack, &config, None);
        scratch_is_empty(&stack);
        // A layer that was committed before it was whole would stay as it is.
        pull(&stack, &reference);
        let read = run(
            &stack,
            &reference,
            &["/bin/sha256sum", "/data/1", "/data/2"],
        );
        assert_eq!(read.lines().collect::<Vec<_>>(), noise, "{point}");
        scratch_is_empty(&stack);
        remove(&stack, &reference);
        drop_leases(&stack);
    }
}
