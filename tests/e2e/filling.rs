//! Filling, and independence of the registry once an image is stored. Needs root, FUSE, containerd,
//! runc, docker-registry, mmdebstrap and the two programs.

use std::process::Command;

use serde_json::Value;
use soci_testkit::image::{APP_OUTPUT, PYTHON_TAG, python_image, small_image};
use soci_testkit::proxy::RequestRecord;
use soci_testkit::{Fault, Rule, Stack, TestRoot, output_of};

use crate::support::{
    NAMESPACE, NO_BACKGROUND, indexed, lazy_mounts, pull, run, stack, status, wait_for_lazy_mounts,
    wait_until_durable,
};

/// A command of our CLI against the daemon.
fn soci(stack: &Stack, arguments: &[&str]) -> Command {
    let mut command = stack.soci(NAMESPACE).unwrap().command(arguments);
    command
        .arg("--snapshotter-address")
        .arg(stack.daemon.socket());
    command
}

/// What `soci status` says of the image with a reference.
fn image(stack: &Stack, reference: &str) -> Value {
    let status = status(&stack.daemon);
    let images = status["images"].as_array().unwrap().iter();
    let mut images = images.filter(|image| image["reference"] == reference);
    images.next().unwrap().clone()
}

/// `soci pull --complete`, a reboot, and a registry that is gone: the image starts, without a
/// request for a manifest, an index, a profile or a byte.
#[test]
fn a_complete_image_starts_after_a_reboot_without_a_request_to_its_registry() {
    let python = python_image().unwrap();
    let mut stack = stack("");
    let reference = indexed(&stack, &python.dir, PYTHON_TAG);
    let arguments = [
        "pull",
        "--plain-http",
        "--complete",
        "--timeout",
        "300s",
        "--json",
        &reference,
    ];
    let pulled = output_of(soci(&stack, &arguments)).unwrap();
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!(pulled["filled"]["complete"], true, "{pulled}");
    assert_eq!(
        pulled["filled"]["storedBytes"],
        pulled["filled"]["lazyBytes"]
    );
    let known = image(&stack, &reference);
    assert_eq!(
        (&known["complete"], &known["fill"]),
        (&true.into(), &"complete".into())
    );
    assert_eq!(run(&stack, &reference, &[]), APP_OUTPUT);
    wait_until_durable(&stack.daemon, true);

    // Pulled again: the client looks the tag up, and there is no other request.
    let tag = reference.rsplit_once(':').unwrap().1;
    let pull_again = |namespace: &str| {
        stack.proxy.reset_stats();
        let pull = ["pull", "--plain-http", "--json", &reference];
        let again = stack.soci(namespace).unwrap().output(pull).unwrap();
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again["sociIndex"], pulled["sociIndex"], "{namespace}");
        stack.proxy.stats().log
    };
    let log = pull_again(NAMESPACE);
    let of_tag = format!("/manifests/{tag}");
    let expected =
        |request: &RequestRecord| request.method == "HEAD" && request.path.ends_with(&of_tag);
    assert!(log.iter().all(expected), "{log:?}");
    // In a namespace that does not have it the client reads its documents; the daemon has all it needs.
    let log = pull_again("other");
    let document =
        |request: &RequestRecord| request.range.is_none() && request.path.contains("/manifests/");
    let others: Vec<_> = log.iter().filter(|request| !document(request)).collect();
    assert_eq!(others.len(), 1, "the configuration: {log:?}");
    let ctr = stack.containerd.ctr("other");
    ctr.output(["images", "rm", "--sync", &reference]).unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), python.layers.len());

    // A final stop takes the mounts along, as a reboot does.
    assert!(stack.daemon.interrupt().unwrap().success());
    assert_eq!(lazy_mounts(&stack), 0);
    stack.proxy.inject(Rule::always(Fault::Reset));
    stack.proxy.reset_stats();
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    wait_for_lazy_mounts(&stack.daemon.root(), python.layers.len());
    assert_eq!(run(&stack, &reference, &[]), APP_OUTPUT);
    let waited = output_of(soci(&stack, &["wait", "--timeout", "120s", &reference])).unwrap();
    assert!(waited.contains("complete"), "{waited}");
    // And after a crash of the server.
    stack.daemon.kill().unwrap();
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(run(&stack, &reference, &[]), APP_OUTPUT);
    assert!(image(&stack, &reference)["complete"] == true);
    let stats = stack.proxy.stats();
    assert_eq!(stats.total().requests, 0, "{:?}", stats.log);
}

/// A client that waits is served with filling turned off, in the face of a registry that throttles,
/// and gives up with a code of its own.
#[test]
fn waiting_for_an_image_fills_it_and_reports_how_it_ended() {
    let root = TestRoot::new().unwrap();
    small_image(root.path(), "small").unwrap();
    let stack = stack(NO_BACKGROUND);
    let reference = indexed(&stack, root.path(), "small");
    let code = |arguments: &[&str]| {
        let output = soci(&stack, arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (unknown, text) = code(&["wait", &reference]);
    assert_eq!(unknown, Some(1), "{text}");
    assert!(text.contains("pull it first"), "{text}");

    pull(&stack, &reference);
    assert_eq!(image(&stack, &reference)["fill"], "off");
    stack
        .proxy
        .inject(Rule::always(Fault::status(429)).ranged(true));
    let (late, text) = code(&["wait", "--timeout", "3s", &reference]);
    assert_eq!(late, Some(124), "{text}");
    assert!(text.contains("is not stored within --timeout"), "{text}");
    stack.proxy.clear_faults();
    let waited = output_of(soci(
        &stack,
        &["wait", "--json", "--timeout", "120s", &reference],
    ));
    let waited: Value = serde_json::from_str(&waited.unwrap()).unwrap();
    assert_eq!(waited["complete"], true, "{waited}");
    assert_eq!(run(&stack, &reference, &[]), "hello\n");
}
